"""Stable Diffusion 1.5, 512 x 512: a U-Net with convolutions, self- and cross-attention (Rombach et al., 2022)."""

from analysis.models import Model, Part
from analysis.models._shared import clip_l, kl_decoder

MODEL = Model(
    title="Stable Diffusion 1.5",
    source="stable-diffusion-v1-5/stable-diffusion-v1-5 on the Hugging Face hub: unet/config.json (2022-10)",
    height=512,
    width=512,
    tokens=77,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.UNet2DConditionModel",
                config={
                    "sample_size": 64,
                    "in_channels": 4,
                    "out_channels": 4,
                    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                    "block_out_channels": (320, 640, 1280, 1280),
                    "layers_per_block": 2,
                    "cross_attention_dim": 768,
                    "attention_head_dim": 8,  # the number of heads, in this configuration's words
                },
            ),
        ),
        "vae-decode": (kl_decoder(),),
        "text-encoder": (clip_l(),),
    },
)
