"""Pipelines of the classes people use, with random weights and a few hundred thousand parameters; built in a second."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
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
