"""Pipelines of the classes people use, with random weights and a few hundred thousand parameters; built in a second."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 24
torch.set_num_threads(1)  # on tensors this small, threads only wait for each other


def tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding without merges: every letter is a token."""
    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def text_encoder(width: int, vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
        beta_schedule="squaredcos_cap_v2",
    )


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    ).eval()


def unet_pipeline(channels: tuple[int, ...] = (32, 48)) -> StableDiffusionPipeline:
    """A U-Net with skip concatenations and cross-attention; 16 x 16 images from 8 x 8 latents."""
    torch.manual_seed(0)
    words = tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(32, len(words)),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=channels,
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        ).eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def dit_pipeline() -> PixArtSigmaPipeline:
    """Two transformer blocks with adaLN-single and cross-attention; 16 x 16 images from 8 x 8 latents."""
    torch.manual_seed(0)
    words = tokenizer()
    return PixArtSigmaPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(32, len(words)),
        tokenizer=words,
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=8,
            patch_size=2,
            caption_channels=32,
            use_additional_conditions=False,
        ).eval(),
        scheduler=scheduler(),
    )


# The three below have no text encoders: `denoiser_inputs` calls the denoiser itself.


def sdxl_pipeline() -> StableDiffusionXLPipeline:
    """The U-Net of SDXL in small: linear projections, two transformer blocks at the bottom, added conditions."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return StableDiffusionXLPipeline(
        vae=autoencoder(), unet=unet.eval(), scheduler=scheduler(), add_watermarker=False, **parts
    )


def sd3_pipeline() -> StableDiffusion3Pipeline:
    """Two joint blocks; the last one has no attention output for the text."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        qk_norm="rms_norm",
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    return StableDiffusion3Pipeline(
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(names),
    )


def flux_pipeline() -> FluxPipeline:
    """A double and a single block, with rotary embeddings and norms on queries and keys."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )


def denoiser_inputs(name: str) -> dict[str, object]:
    """Keyword arguments for one call of the denoiser of "sdxl", "sd3" or "flux": two images, seven words."""
    torch.manual_seed(1)
    images, words, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.randn(2, 32)
    if name == "sdxl":
        added = {"text_embeds": pooled, "time_ids": torch.randn(2, 6)}
        time = torch.tensor(500.0)
        return {"sample": images, "timestep": time, "encoder_hidden_states": words, "added_cond_kwargs": added}
    given = {"encoder_hidden_states": words, "pooled_projections": pooled}
    if name == "sd3":
        return {"hidden_states": images, "timestep": torch.tensor([500.0, 500.0]), **given}
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3)}
    return {"hidden_states": torch.randn(2, 16, 16), "timestep": torch.tensor([0.5, 0.5]), **given, **places}
