"""CogVideoX-2B, 49 frames of 480 x 720: joint attention over text and video tokens (Yang et al., arXiv:2408.06072)."""

from analysis.models import Model, Part
from analysis.models._shared import t5_xxl

MODEL = Model(
    title="CogVideoX-2B",
    source="THUDM/CogVideoX-2b on the Hugging Face hub: transformer/config.json, vae/config.json (2024-08)",
    height=480,
    width=720,
    frames=49,
    tokens=226,
    steps=50,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.CogVideoXTransformer3DModel",
                config={
                    "num_attention_heads": 30,
                    "attention_head_dim": 64,
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_layers": 30,
                    "time_embed_dim": 512,
                    "text_embed_dim": 4096,
                    "sample_width": 90,
                    "sample_height": 60,
                    "sample_frames": 49,
                    "patch_size": 2,
                    "temporal_compression_ratio": 4,
                    "max_text_seq_length": 226,
                    "spatial_interpolation_scale": 1.875,
                    "use_rotary_positional_embeddings": False,
                },
            ),
        ),
        "vae-decode": (
            Part(
                cls="diffusers.AutoencoderKLCogVideoX",
                config={
                    "in_channels": 3,
                    "out_channels": 3,
                    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
                    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
                    "block_out_channels": (128, 256, 256, 512),
                    "latent_channels": 16,
                    "layers_per_block": 3,
                    "norm_num_groups": 32,
                    "temporal_compression_ratio": 4,
                },
                method="decode",
                drop=("encoder",),
            ),
        ),
        "text-encoder": (t5_xxl(226),),
    },
)
