"""Wan2.1 T2V 14B, 81 frames of 480 x 832: a video DiT with cross-attention to UMT5 tokens (arXiv:2503.20314)."""

from analysis.models import Model, Part
from analysis.models._shared import umt5_xxl, wan_decoder

MODEL = Model(
    title="Wan2.1 T2V 14B",
    source="Wan-AI/Wan2.1-T2V-14B-Diffusers on the Hugging Face hub: transformer/config.json (2025-03)",
    height=480,
    width=832,
    frames=81,
    tokens=512,
    steps=50,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.WanTransformer3DModel",
                config={
                    "patch_size": (1, 2, 2),
                    "num_attention_heads": 40,
                    "attention_head_dim": 128,
                    "in_channels": 16,
                    "out_channels": 16,
                    "text_dim": 4096,
                    "freq_dim": 256,
                    "ffn_dim": 13824,
                    "num_layers": 40,
                    "cross_attn_norm": True,
                    "qk_norm": "rms_norm_across_heads",
                    "rope_max_seq_len": 1024,
                },
            ),
        ),
        "vae-decode": (wan_decoder(),),
        "text-encoder": (umt5_xxl(512),),
    },
)
