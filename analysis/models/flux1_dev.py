"""FLUX.1-dev, 1024 x 1024: 12 B parameters, double- and single-stream blocks, distilled guidance (2024-08)."""

from analysis.models import Model, Part
from analysis.models._shared import clip_l, kl_decoder, t5_xxl

MODEL = Model(
    title="FLUX.1-dev",
    source="black-forest-labs/FLUX.1-dev on the Hugging Face hub: transformer/config.json (2024-08)",
    height=1024,
    width=1024,
    tokens=512,
    guided=False,
    steps=50,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.FluxTransformer2DModel",
                config={
                    "patch_size": 1,
                    "in_channels": 64,
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "attention_head_dim": 128,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "pooled_projection_dim": 768,
                    "guidance_embeds": True,
                    "axes_dims_rope": (16, 56, 56),
                },
            ),
        ),
        "vae-decode": (kl_decoder(16),),
        "text-encoder": (clip_l(), t5_xxl(512)),
    },
)
