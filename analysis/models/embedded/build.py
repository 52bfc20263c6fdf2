"""The architectures of the embedded pipelines: small members of the classes that diffusers ships.

Both share one autoencoder and one whole-word tokenizer. `shapes-sd` is Stable Diffusion in miniature: a U-Net with skip
concatenation, GroupNorm, SiLU, self- and cross-attention behind a causal CLIP text model. `shapes-dit` is
PixArt-Sigma in miniature: adaLN-single transformer blocks with cross-attention behind a T5 encoder. The noise schedule
is the same: squared cosine, rescaled to zero terminal SNR (arXiv 2305.08891), v-prediction (arXiv 2202.00512), so the
first sampling step starts from pure noise and a few steps suffice.

Everything here is randomly initialised; `train.py` fills it and `load` reads what was filled.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from analysis.scenes import BOS, EOS, MAX_TOKENS, PAD, VOCABULARY

LATENT_CHANNELS = 4
LATENT_SIZE = 16
TEXT_WIDTH = 128


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, `<bos> words <eos>` padded to MAX_TOKENS; equals `Scenes.tokens` on every caption."""
    index = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(index, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, index[BOS]), (EOS, index[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_TOKENS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
    )


def scheduler() -> Any:
    """DDIM (eta 0 by default) on the schedule the models were trained for."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # unused with trailing spacing; diffusers warns about any other value
    )


def autoencoder() -> Any:
    """0.5 M parameters, factor 4: 64 x 64 RGB to 16 x 16 x 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def clip_text() -> Any:
    """Causal text encoder of shapes-sd; the token embeddings, two layers."""
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
    return CLIPTextModel(config)


def t5_text() -> Any:
    """Bidirectional text encoder of shapes-dit; relative positions, two layers."""
    config = T5Config(
        vocab_size=len(VOCABULARY),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=VOCABULARY.index(PAD),
        eos_token_id=VOCABULARY.index(EOS),
    )
    return T5EncoderModel(config)


def unet() -> Any:
    """3.5 M parameters. In UNet2DConditionModel `attention_head_dim` is the number of heads."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 112),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def transformer() -> Any:
    """3.6 M parameters. The norms keep their affine weights (PixArt's have none) so that the outlier variant can be
    an exact rescale: see `outliers.py`."""
    model = PixArtTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        cross_attention_dim=160,
        sample_size=LATENT_SIZE,
        patch_size=1,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
        norm_elementwise_affine=True,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def shapes_sd(vae: Any, text: Any, denoiser: Any) -> Any:
    """The stock pipeline around the parts."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=denoiser,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def shapes_dit(vae: Any, text: Any, denoiser: Any) -> Any:
    """The stock pipeline around the parts. Call it with `use_resolution_binning=False`."""
    return PixArtSigmaPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(), transformer=denoiser, scheduler=scheduler()
    )
