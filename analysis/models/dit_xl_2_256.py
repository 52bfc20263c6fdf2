"""DiT-XL/2, 256 x 256, class-conditional: the plain diffusion transformer (Peebles and Xie, arXiv:2212.09748)."""

from analysis.models import Model, Part
from analysis.models._shared import kl_decoder

MODEL = Model(
    title="DiT-XL/2 256",
    source="facebook/DiT-XL-2-256 on the Hugging Face hub: transformer/config.json (2023-01)",
    height=256,
    width=256,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.DiTTransformer2DModel",
                config={
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "in_channels": 4,
                    "out_channels": 8,
                    "num_layers": 28,
                    "sample_size": 32,
                    "patch_size": 2,
                    "num_embeds_ada_norm": 1000,
                    "norm_type": "ada_norm_zero",
                    "norm_elementwise_affine": False,
                },
            ),
        ),
        "vae-decode": (kl_decoder(),),
    },
)
