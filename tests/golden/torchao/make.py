"""Writes layouts.json: what torchao stores of a few weights, and what they read as. Needs torchao (0.18.0 here):

python tests/golden/torchao/make.py

The weight is 32 x 48 with values k / 64, k from a linear congruential sequence: exact in float32, the same everywhere.
"""

import base64
import json
from importlib.metadata import version
from pathlib import Path

import torch
from torchao.core.config import config_to_dict
from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig, NVFP4WeightOnlyConfig
from torchao.prototype.mx_formats.nvfp4_tensor import (
    NVFP4Tensor,
    QuantizeTensorToNVFP4Kwargs,
    per_tensor_amax_to_scale,
)
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    PerRow,
    PerTensor,
)
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

ROWS, COLUMNS = 32, 48


def weight() -> torch.Tensor:
    state, values = 1, []
    for _ in range(ROWS * COLUMNS):
        state = (state * 1103515245 + 12345) % 2**31
        values.append(((state >> 16) % 1001 - 500) / 64)
    return torch.tensor(values, dtype=torch.float32).view(ROWS, COLUMNS)


def plain(value: torch.Tensor) -> dict[str, object]:
    raw = base64.b64encode(bytes(value.contiguous().view(-1).view(torch.uint8).tolist())).decode()
    return {"dtype": str(value.dtype), "shape": list(value.shape), "bytes": raw}


def stored(tensor: torch.Tensor, config: object) -> dict[str, object]:
    tensors, header = flatten_tensor_state_dict({"layer.weight": tensor})
    return {
        "tensors": {name: plain(value) for name, value in tensors.items()},
        "header": {name: json.loads(text) for name, text in header.items()},
        "config": config_to_dict(config),
        "values": plain(tensor.dequantize(torch.float32)),
    }


def main() -> None:
    w = weight()
    top = per_tensor_amax_to_scale(w.abs().amax())
    dynamic = Float8DynamicActivationFloat8WeightConfig

    def eights(grain: object, inputs: bool) -> Float8Tensor:
        config = dynamic(granularity=grain)
        given = QuantizeTensorToFloat8Kwargs(granularity=grain) if inputs else None
        products = config.mm_config if inputs else None
        return Float8Tensor.from_hp(w, granularity=grain, mm_config=products, act_quant_kwargs=given)

    cases = {
        "fp8 row": stored(eights(PerRow(), False), Float8WeightOnlyConfig()),
        "fp8 tensor": stored(eights(PerTensor(), False), Float8WeightOnlyConfig()),
        "fp8 row, inputs": stored(eights(PerRow(), True), dynamic(granularity=PerRow())),
        "fp8 tensor, inputs": stored(eights(PerTensor(), True), dynamic(granularity=PerTensor())),
        "nvfp4": stored(NVFP4Tensor.to_nvfp4(w, per_tensor_scale=top), NVFP4WeightOnlyConfig()),
        "nvfp4, inputs": stored(
            NVFP4Tensor.to_nvfp4(
                w,
                per_tensor_scale=top,
                act_quant_kwargs=QuantizeTensorToNVFP4Kwargs(use_dynamic_per_tensor_scale=True),
            ),
            NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False),
        ),
    }
    made = {"torchao": version("torchao"), "torch": torch.__version__, "cases": cases}
    Path(__file__).with_name("layouts.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
