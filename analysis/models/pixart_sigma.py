"""PixArt-Sigma XL/2, 1024 x 1024: a DiT with cross-attention to T5 tokens (Chen et al., arXiv:2403.04692)."""

from analysis.models import Model, Part
from analysis.models._shared import kl_decoder, t5_xxl

MODEL = Model(
    title="PixArt-Sigma XL/2 1024 MS",
    source="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS on the Hugging Face hub: transformer/config.json (2024-03)",
    height=1024,
    width=1024,
    tokens=300,
    steps=20,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.PixArtTransformer2DModel",
                config={
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "in_channels": 4,
                    "out_channels": 8,
                    "num_layers": 28,
                    "cross_attention_dim": 1152,
                    "caption_channels": 4096,
                    "sample_size": 128,
                    "patch_size": 2,
                    "interpolation_scale": 2,
                    "use_additional_conditions": False,
                    "norm_elementwise_affine": False,
                    "norm_eps": 1e-6,
                },
            ),
        ),
        "vae-decode": (kl_decoder(),),
        "text-encoder": (t5_xxl(300),),
    },
)
