"""Stable Diffusion 3 medium, 1024 x 1024: a 2 B parameter MMDiT (Esser et al., arXiv:2403.03206)."""

from analysis.models import Model, Part
from analysis.models._shared import clip_bigg, clip_l, kl_decoder, t5_xxl

MODEL = Model(
    title="Stable Diffusion 3 medium",
    source="stabilityai/stable-diffusion-3-medium-diffusers on the Hugging Face hub: transformer/config.json (2024-06)",
    height=1024,
    width=1024,
    tokens=333,  # 77 of CLIP and 256 of T5
    steps=28,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.SD3Transformer2DModel",
                config={
                    "sample_size": 128,
                    "patch_size": 2,
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_layers": 24,
                    "attention_head_dim": 64,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 192,
                },
            ),
        ),
        "vae-decode": (kl_decoder(16),),
        "text-encoder": (clip_l(projection=True), clip_bigg(), t5_xxl(256)),
    },
)
