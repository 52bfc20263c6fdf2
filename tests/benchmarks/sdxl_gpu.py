"""Full-size SDXL with random weights through calibration, search and one quantized step on one GPU.

    python tests/benchmarks/sdxl_gpu.py [--method fp-ptq] [--scheme fp8-w8a8] [--write FILE]

Both text encoders, the U-Net and the pipeline have the published sizes; the autoencoder, which nothing here calls, is a
small one. A line of JSON per phase, as it ends: its seconds, and the most memory allocated since it began. --small
builds the same in a fraction of the width, to try on a CPU. The limits are 10 minutes and 60 GB.
"""

import argparse
import json
import string
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from analysis.models import model
from analysis.runner import calibrate, quantize
from analysis.runner.sample import call
from analysis.scenes import held_out

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SECONDS, GIGABYTES = 600, 60


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is built: the published configurations, with some entries replaced."""

    unet: dict[str, Any]
    text: tuple[dict[str, Any], dict[str, Any]]
    tokens: int
    pixels: int


FULL = Size(unet={}, text=({}, {}), tokens=77, pixels=1024)
SMALL = Size(
    unet={
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    },
    text=(
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
    ),
    tokens=77,
    pixels=64,
)


def tokenizer(tokens: int) -> CLIPTokenizer:
    """Every letter is a token; with random weights that is as good as any vocabulary."""
    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=tokens)


def pipeline(size: Size, dtype: torch.dtype, device: str) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    found = model("sdxl-base")
    (denoiser,) = found.part("denoiser")
    configs = [
        CLIPTextConfig(**{**part.config, **changes, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
        for part, changes in zip(found.part("text-encoder"), size.text, strict=True)
    ]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(**{**denoiser.config, **size.unet}).eval()
            texts = CLIPTextModel(configs[0]).eval(), CLIPTextModelWithProjection(configs[1]).eval()
            vae = AutoencoderKL(
                block_out_channels=(8,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4,
            ).eval()
    finally:
        torch.set_default_dtype(before)
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        tokenizer=tokenizer(size.tokens),
        tokenizer_2=tokenizer(size.tokens),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    return pipe.to(device=device, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="fp8-w8a8")
    parser.add_argument(
        "--method", default="fp-ptq", help="with rounding='nearest', inputs='full-precision' for fp-ptq"
    )
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="fp16", choices=DTYPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    diffusers_logging.set_verbosity_error()  # captions of letters are longer than 77 tokens and cut
    transformers_logging.set_verbosity_error()
    size = SMALL if options.small else FULL
    on_gpu = options.device.startswith("cuda")
    rows: list[dict[str, Any]] = []

    def phase(name: str, run: Callable[[], Any]) -> Any:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        made = run()
        if on_gpu:
            torch.cuda.synchronize()
        row: dict[str, Any] = {"phase": name, "seconds": round(time.perf_counter() - start, 2)}
        if on_gpu:
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.write is not None:
            options.write.write_text(json.dumps({"phases": rows}, indent=1), encoding="utf-8")
        return made

    captions = held_out(options.captions).captions()
    with torch.no_grad():
        pipe = phase("build", lambda: pipeline(size, DTYPES[options.dtype], options.device))
        seen = phase("calibrate", lambda: calibrate(pipe, captions, steps=options.steps, guidance=5.0))
        extra = {"rounding": "nearest", "inputs": "full-precision"} if options.method == "fp-ptq" else {}
        made = phase("search", lambda: quantize(pipe, options.scheme, options.method, seen, **extra))

        def step(pipe: Any) -> torch.Tensor:
            return call(pipe, captions[:1], [0], 1, 5.0, output="latent").float()

        wanted = phase("full-precision step", lambda: step(pipe))
        got = phase("quantized step", lambda: step(made))
        again = phase("quantized step again", lambda: step(made))
    noise = 10 * torch.log10(wanted.square().mean() / (got - wanted).square().mean())
    peak = max(row.get("peak_gb", 0.0) for row in rows)
    total = sum(row["seconds"] for row in rows)
    summary = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "scheme": options.scheme,
        "method": options.method,
        "options": extra,
        "captions": options.captions,
        "steps": options.steps,
        "dtype": options.dtype,
        "parameters": sum(p.numel() for p in pipe.unet.parameters()),
        "report": str(made._quantization_report),
        "seconds": round(total, 1),
        "peak_gb": peak,
        "within": total <= SECONDS and peak <= GIGABYTES,
        "sqnr_db": round(float(noise), 1),
        "repeatable": bool(torch.equal(got, again)),
        "finite": bool(torch.isfinite(got).all()),
    }
    print(json.dumps(summary), flush=True)
    if options.write is not None:
        options.write.write_text(json.dumps({"phases": rows, **summary}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
