"""What one call of a class of module takes: shapes from its configuration and a size.

One small function per class, in a table keyed by (class name, method).  They follow the pipelines that ship the
classes: packed latents for FLUX, frames before channels for CogVideoX, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.models import Input, InputRule, Inputs, Size

Config = Mapping[str, Any]


def _frames(config: Config, size: Size) -> int:
    """Latent frames of a causal video autoencoder: the first frame alone, then some at a time."""
    ratio = int(config.get("temporal_compression_ratio") or size.frame_ratio)
    if (size.frames - 1) % ratio:
        raise ValueError(f"frames={size.frames}; allowed: 1 + a multiple of {ratio}")
    return (size.frames - 1) // ratio + 1


def _last(value: Any) -> int:
    return int(value[-1] if isinstance(value, list | tuple) else value)


def unet2d_condition(config: Config, size: Size) -> Inputs:
    inputs: dict[str, Any] = {
        "sample": Input(shape=(size.batch, config.get("in_channels", 4), size.rows, size.columns)),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, _last(config.get("cross_attention_dim", 1280)))),
    }
    if config.get("addition_embed_type") == "text_time":
        ids = 6
        text = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {
            "text_embeds": Input(shape=(size.batch, text)),
            "time_ids": Input(shape=(size.batch, ids)),
        }
    return inputs


def unet2d(config: Config, size: Size) -> Inputs:
    return {
        "sample": Input(shape=(size.batch, config.get("in_channels", 3), size.rows, size.columns)),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
    }


def pixart(config: Config, size: Size) -> Inputs:
    return {
        "hidden_states": Input(shape=(size.batch, config["in_channels"], size.rows, size.columns)),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["caption_channels"])),
        "encoder_attention_mask": Input(shape=(size.batch, size.tokens), dtype="int64"),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def dit(config: Config, size: Size) -> Inputs:
    if size.height != size.width:
        raise ValueError(f"height={size.height}, width={size.width}; allowed: squares")
    return {
        "hidden_states": Input(shape=(size.batch, config["in_channels"], size.rows, size.columns)),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "class_labels": Input(shape=(size.batch,), dtype="int64"),
    }


def sd3(config: Config, size: Size) -> Inputs:
    return {
        "hidden_states": Input(shape=(size.batch, config["in_channels"], size.rows, size.columns)),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["joint_attention_dim"])),
        "pooled_projections": Input(shape=(size.batch, config["pooled_projection_dim"])),
        "timestep": Input(shape=(size.batch,)),
    }


def flux(config: Config, size: Size) -> Inputs:
    if size.rows % 2 or size.columns % 2:
        raise ValueError(f"height={size.height}, width={size.width}; allowed: multiples of {2 * size.downscale}")
    image = size.rows // 2 * (size.columns // 2)
    inputs = {
        "hidden_states": Input(shape=(size.batch, image, config["in_channels"])),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["joint_attention_dim"])),
        "pooled_projections": Input(shape=(size.batch, config["pooled_projection_dim"])),
        "timestep": Input(shape=(size.batch,)),
        "img_ids": Input(shape=(image, 3)),
        "txt_ids": Input(shape=(size.tokens, 3)),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = Input(shape=(size.batch,))
    return inputs


def cogvideox(config: Config, size: Size) -> Inputs:
    frames = _frames(config, size)
    return {
        "hidden_states": Input(shape=(size.batch, frames, config["in_channels"], size.rows, size.columns)),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["text_embed_dim"])),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
    }


def wan(config: Config, size: Size) -> Inputs:
    frames = _frames(config, size)
    return {
        "hidden_states": Input(shape=(size.batch, config["in_channels"], frames, size.rows, size.columns)),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["text_dim"])),
    }


def ltx(config: Config, size: Size) -> Inputs:
    frames = _frames(config, size)
    return {
        "hidden_states": Input(shape=(size.batch, frames * size.rows * size.columns, config["in_channels"])),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["caption_channels"])),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "encoder_attention_mask": Input(shape=(size.batch, size.tokens), dtype="int64"),
        "num_frames": frames,
        "height": size.rows,
        "width": size.columns,
    }


def hunyuan_video(config: Config, size: Size) -> Inputs:
    frames = _frames(config, size)
    inputs = {
        "hidden_states": Input(shape=(size.batch, config["in_channels"], frames, size.rows, size.columns)),
        "timestep": Input(shape=(size.batch,), dtype="int64"),
        "encoder_hidden_states": Input(shape=(size.batch, size.tokens, config["text_embed_dim"])),
        "encoder_attention_mask": Input(shape=(size.batch, size.tokens), dtype="int64"),
        "pooled_projections": Input(shape=(size.batch, config["pooled_projection_dim"])),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = Input(shape=(size.batch,))
    return inputs


def kl_decode(config: Config, size: Size) -> Inputs:
    return {"z": Input(shape=(size.batch, config.get("latent_channels", 4), size.rows, size.columns))}


def video_decode(config: Config, size: Size) -> Inputs:
    channels = config.get("z_dim", config.get("latent_channels", 16))
    return {"z": Input(shape=(size.batch, channels, _frames(config, size), size.rows, size.columns))}


def text(config: Config, size: Size) -> Inputs:
    return {"input_ids": Input(shape=(size.batch, size.tokens), dtype="int64")}


INPUTS: Mapping[tuple[str, str], InputRule] = {
    ("UNet2DConditionModel", "forward"): unet2d_condition,
    ("UNet2DModel", "forward"): unet2d,
    ("PixArtTransformer2DModel", "forward"): pixart,
    ("DiTTransformer2DModel", "forward"): dit,
    ("SD3Transformer2DModel", "forward"): sd3,
    ("FluxTransformer2DModel", "forward"): flux,
    ("CogVideoXTransformer3DModel", "forward"): cogvideox,
    ("WanTransformer3DModel", "forward"): wan,
    ("LTXVideoTransformer3DModel", "forward"): ltx,
    ("HunyuanVideoTransformer3DModel", "forward"): hunyuan_video,
    ("AutoencoderKL", "decode"): kl_decode,
    ("AutoencoderKLCogVideoX", "decode"): video_decode,
    ("AutoencoderKLWan", "decode"): video_decode,
    ("AutoencoderKLHunyuanVideo", "decode"): video_decode,
    ("AutoencoderKLLTXVideo", "decode"): video_decode,
    ("CLIPTextModel", "forward"): text,
    ("CLIPTextModelWithProjection", "forward"): text,
    ("T5EncoderModel", "forward"): text,
    ("UMT5EncoderModel", "forward"): text,
    ("LlamaModel", "forward"): text,
}
