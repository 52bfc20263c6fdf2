"""Configurations several architectures share: autoencoders and text encoders.  Each names where it is published."""

from __future__ import annotations

from analysis.models import Part


def kl_decoder(channels: int = 4) -> Part:
    """Decoder of the 8x autoencoder family of Stable Diffusion (stabilityai/sd-vae-ft-mse, sdxl-vae, SD3, FLUX).

    channels: latent channels; SD3 and FLUX use 16 and leave out the 1x1 convolution in front of the decoder.
    """
    return Part(
        cls="diffusers.AutoencoderKL",
        config={
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": channels,
            "norm_num_groups": 32,
            "use_quant_conv": channels == 4,
            "use_post_quant_conv": channels == 4,
        },
        method="decode",
        drop=("encoder", "quant_conv"),
    )


def clip_l(projection: bool = False) -> Part:
    """Text tower of openai/clip-vit-large-patch14: 12 layers of width 768, 77 tokens."""
    return Part(
        cls="transformers.CLIPTextModelWithProjection" if projection else "transformers.CLIPTextModel",
        config={
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "projection_dim": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
        },
        tokens=77,
    )


def clip_bigg() -> Part:
    """Text tower of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k: 32 layers of width 1280, 77 tokens."""
    return Part(
        cls="transformers.CLIPTextModelWithProjection",
        config={
            "vocab_size": 49408,
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "projection_dim": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "max_position_embeddings": 77,
            "hidden_act": "gelu",
        },
        tokens=77,
    )


def t5_xxl(tokens: int) -> Part:
    """Encoder of google/t5-v1_1-xxl: 24 layers of width 4096."""
    return Part(
        cls="transformers.T5EncoderModel",
        config={
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        tokens=tokens,
    )


def umt5_xxl(tokens: int) -> Part:
    """Encoder of google/umt5-xxl: 24 layers of width 4096, a relative position bias in every layer."""
    return Part(
        cls="transformers.UMT5EncoderModel",
        config={
            "vocab_size": 256384,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        tokens=tokens,
    )


def wan_decoder() -> Part:
    """Decoder of the Wan2.1 video autoencoder: 8x in space, 4x in time, causal, one latent frame at a time."""
    return Part(
        cls="diffusers.AutoencoderKLWan",
        config={
            "base_dim": 96,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [False, True, True],
        },
        method="decode",
        drop=("encoder",),
    )
