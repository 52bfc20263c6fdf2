"""SDXL base 1.0, 1024 x 1024: a U-Net whose transformers hold most of the work (Podell et al., arXiv:2307.01952)."""

from analysis.models import Model, Part
from analysis.models._shared import clip_bigg, clip_l, kl_decoder

MODEL = Model(
    title="Stable Diffusion XL base 1.0",
    source="stabilityai/stable-diffusion-xl-base-1.0 on the Hugging Face hub: unet/config.json (2023-07)",
    height=1024,
    width=1024,
    tokens=77,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.UNet2DConditionModel",
                config={
                    "sample_size": 128,
                    "in_channels": 4,
                    "out_channels": 4,
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "block_out_channels": (320, 640, 1280),
                    "layers_per_block": 2,
                    "transformer_layers_per_block": (1, 2, 10),
                    "attention_head_dim": (5, 10, 20),  # the number of heads, in this configuration's words
                    "cross_attention_dim": 2048,
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
        ),
        "vae-decode": (kl_decoder(),),
        "text-encoder": (clip_l(), clip_bigg()),
    },
)
