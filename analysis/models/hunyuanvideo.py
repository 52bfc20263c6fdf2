"""HunyuanVideo, 129 frames of 720 x 1280: 12.8 B parameters, distilled guidance (Kong et al., arXiv:2412.03603)."""

from analysis.models import Model, Part
from analysis.models._shared import clip_l

MODEL = Model(
    title="HunyuanVideo",
    source="hunyuanvideo-community/HunyuanVideo on the Hugging Face hub: transformer/config.json (2024-12)",
    height=720,
    width=1280,
    frames=129,
    tokens=256,
    guided=False,
    steps=50,
    parts={
        "denoiser": (
            Part(
                cls="diffusers.HunyuanVideoTransformer3DModel",
                config={
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_attention_heads": 24,
                    "attention_head_dim": 128,
                    "num_layers": 20,
                    "num_single_layers": 40,
                    "num_refiner_layers": 2,
                    "mlp_ratio": 4.0,
                    "patch_size": 2,
                    "patch_size_t": 1,
                    "qk_norm": "rms_norm",
                    "guidance_embeds": True,
                    "text_embed_dim": 4096,
                    "pooled_projection_dim": 768,
                    "rope_theta": 256.0,
                    "rope_axes_dim": (16, 56, 56),
                },
            ),
        ),
        "vae-decode": (
            Part(
                cls="diffusers.AutoencoderKLHunyuanVideo",
                config={
                    "in_channels": 3,
                    "out_channels": 3,
                    "latent_channels": 16,
                    "block_out_channels": (128, 256, 512, 512),
                    "layers_per_block": 2,
                    "spatial_compression_ratio": 8,
                    "temporal_compression_ratio": 4,
                },
                method="decode",
                drop=("encoder", "quant_conv"),
            ),
        ),
        "text-encoder": (
            Part(
                cls="transformers.LlamaModel",
                config={
                    "vocab_size": 128320,
                    "hidden_size": 4096,
                    "intermediate_size": 14336,
                    "num_hidden_layers": 32,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "max_position_embeddings": 8192,
                    "use_cache": False,
                },
                tokens=351,  # 256 of the prompt and 95 of the template it is wrapped in
            ),
            clip_l(),
        ),
    },
)
