"""Whole pipelines with random weights, text encoders and all: what `save_pretrained` writes, anybody can load.

All of them take the little tokenizer of `tiny_pipelines`, which is enough for any text encoder.
"""

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_pipelines import TOKENS, flux_pipeline, sd3_pipeline, sdxl_pipeline, text_encoder, tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)


def projecting(width: int, projection: int) -> CLIPTextModelWithProjection:
    """A text encoder with a pooled projection, one layer."""
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": TOKENS}
    config = CLIPTextConfig(vocab_size=len(tokenizer()), projection_dim=projection, **sizes, **special)
    return CLIPTextModelWithProjection(config).eval()


def t5(kind: type, config: type, width: int) -> T5EncoderModel:
    """A T5 (or UMT5) encoder of one layer."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 1, "num_heads": 2}
    return kind(config(vocab_size=len(tokenizer()), **sizes)).eval()


def sdxl() -> DiffusionPipeline:
    parts = {"text_encoder": text_encoder(16, len(tokenizer())), "tokenizer": tokenizer()}
    parts |= {"text_encoder_2": projecting(16, 32), "tokenizer_2": tokenizer()}
    made = sdxl_pipeline()
    rest = {"vae": made.vae, "unet": made.unet, "scheduler": made.scheduler}
    return StableDiffusionXLPipeline(**rest, **parts, add_watermarker=False)


def sd3() -> DiffusionPipeline:
    parts = {"text_encoder": projecting(16, 16), "tokenizer": tokenizer()}
    parts |= {"text_encoder_2": projecting(16, 16), "tokenizer_2": tokenizer()}
    parts |= {"text_encoder_3": t5(T5EncoderModel, T5Config, 32), "tokenizer_3": tokenizer()}
    made = sd3_pipeline()
    made.vae.register_to_config(shift_factor=0.0)  # as the released ones have it
    rest = {"vae": made.vae, "transformer": made.transformer, "scheduler": made.scheduler}
    return StableDiffusion3Pipeline(**rest, **parts)


def flux() -> DiffusionPipeline:
    parts = {"text_encoder": text_encoder(32, len(tokenizer())), "tokenizer": tokenizer()}
    parts |= {"text_encoder_2": t5(T5EncoderModel, T5Config, 32), "tokenizer_2": tokenizer()}
    made = flux_pipeline()
    made.vae.register_to_config(shift_factor=0.0)  # as the released ones have it
    rest = {"vae": made.vae, "transformer": made.transformer, "scheduler": made.scheduler}
    return FluxPipeline(**rest, **parts)


def cogvideox() -> DiffusionPipeline:
    """Nine frames of 32 x 32."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        time_embed_dim=8,
        text_embed_dim=32,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=TOKENS,
    )
    return CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(T5EncoderModel, T5Config, 32),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=CogVideoXDDIMScheduler(),
    )


def wan() -> DiffusionPipeline:
    """Its call's own size is 81 frames of 480 x 832: to be given a smaller one."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(UMT5EncoderModel, UMT5Config, 32),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
