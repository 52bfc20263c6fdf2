"""One-pass kernels against `fpsim.quantize` and against the chain of torch operations they stand for, as bit patterns.

The sign of zero is not kept by either way, so zeros are made positive before comparing.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch

import fpsim
from fpsim.formats import BlockFormat, Format, ScaleRule
from fpsim.nn import fused, scaling
from fpsim.nn.quantizer import Quantizer, resolve
from fpsim.nn.scaling import Scales

#: Under TRITON_INTERPRET=1 the GPU's kernels run on CPU tensors; that interpreter truncates to bfloat16.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = "cpu" if INTERPRETED else "cuda"
DEVICES = [pytest.param("triton", marks=pytest.mark.gpu), pytest.param("host")]

FORMATS = ("e4m3", "e5m2", "e3m4", "e2m3", "e3m2", "e2m1", "int8", "int4", "uint8", "ue2m2", "e1m2-finite")
BLOCKS = ("mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8", "nvfp4")
RULES = [
    *((name, None) for name in BLOCKS),
    *((name, "mse") for name in ("mxfp4", "mxfp8", "mxint8")),
    ("nvfp4", "four-over-six"),
]
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


def tensors() -> dict[str, torch.Tensor]:
    """(4, 70, 6, 5): the last block of the channels is short for every block length."""
    rng = np.random.default_rng(0)
    shape = (4, 70, 6, 5)
    broken = rng.standard_normal(shape)
    broken[1, 3, 2, 1], broken[2, 40, 0, 0], broken[3, 69, 5, 4] = np.nan, np.inf, -np.inf
    sparse = np.where(rng.random(shape) < 0.95, -0.0, rng.standard_normal(shape))
    sparse[2] = 0
    made = {
        "normal": rng.standard_normal(shape).astype(np.float32),
        "wide": (rng.standard_normal(shape) * np.exp(6 * rng.standard_normal((4, 70, 1, 1)))).astype(np.float32),
        "sparse": sparse.astype(np.float32),
        "broken": broken.astype(np.float32),
        "bits": rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32),
        "subnormal": rng.integers(0, 1 << 24, shape, dtype=np.uint32).view(np.float32),
    }
    return {name: torch.from_numpy(x) for name, x in made.items()}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tensors go; kernels must exist there."""
    if request.param == "host":
        return "cpu"
    if INTERPRETED:
        monkeypatch.setattr(fused, "_kernels", lambda *_: fused._triton())
    elif not (torch.cuda.is_available() and fused._kernels(torch.zeros(1, device="cuda"))):
        pytest.skip("needs an NVIDIA GPU and Triton")
    return GPU


def scalar(name: str) -> Format:
    row = resolve(name)
    assert isinstance(row, Format)
    return row


def by_torch(x: torch.Tensor, scales: Scales, row: Format, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`scaling.rounded` without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_kernels", lambda *_: None)
        return scaling.rounded(x, scales, row, dtype)


def self_scaled_by_torch(x: torch.Tensor, quantizer: Quantizer, axis: int, dtype: torch.dtype) -> torch.Tensor:
    """`scaling.self_scaled` without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_kernels", lambda *_: None)
        return scaling.self_scaled(x, quantizer, axis, 0, dtype)


def assert_same_bits(ours: torch.Tensor | None, wanted: torch.Tensor, what: str) -> None:
    assert ours is not None, f"{what}: no kernel"
    assert ours.dtype == wanted.dtype
    a, b = ours.cpu().float() + 0.0, wanted.cpu().float() + 0.0
    same = (a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())
    bad = (~same).nonzero()[:3].tolist()
    assert same.all(), f"{what}: {int((~same).sum())} of {same.numel()} differ, e.g. {[(i, a[*i], b[*i]) for i in bad]}"


@pytest.mark.parametrize("name", [name for name in FORMATS if "finite" not in name])
def test_scale_one_is_the_numpy_codec(name: str, device: str) -> None:
    for kind, x in tensors().items():
        plain = x.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # NaN stays NaN here, see round_
        one = torch.ones((), device=device)
        ours = fused.given(plain.to(device), one, None, scalar(name), torch.float32)
        assert_same_bits(ours, torch.from_numpy(fpsim.quantize(plain.numpy(), name)), f"{name} {kind}")


@pytest.mark.parametrize(("name", "rule"), RULES)
@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # squared errors of huge values overflow in float32 products
def test_block_formats_are_the_numpy_codec(name: str, rule: ScaleRule | None, axis: int, device: str) -> None:
    row = Quantizer(format=name, granularity="block", rule=rule).row
    assert isinstance(row, BlockFormat)
    for kind, x in tensors().items():
        ours = fused.found(x.to(device), row, row.block, axis, 1, torch.float32)
        wanted = fpsim.quantize(x.numpy(), row, axis=axis)
        assert_same_bits(ours, torch.from_numpy(wanted), f"{name} {rule} {kind}")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_scales_and_zero_points_of_every_shape(name: str, dtype: torch.dtype, device: str) -> None:
    row = scalar(name)
    generator = torch.Generator().manual_seed(1)
    for kind, whole in tensors().items():
        x = whole.to(dtype)
        for shape in ((), (4, 1, 1, 1), (4, 1, 6, 5), (1, 1, 1, 1), (4, 70, 6, 1), (4, 70, 1, 1)):
            step = torch.rand(shape, generator=generator) + 0.01
            zero = None if row.signed else scaling.from_range(-step, 3 * step, row).zero
            scales = Scales(step=step, zero=zero)
            there = Scales(step=step.to(device), zero=None if zero is None else zero.to(device))
            ours = fused.given(x.to(device), there.step, there.zero, row, dtype)
            wanted = by_torch(x, scales, row, dtype)
            assert_same_bits(ours, wanted, f"{name} {kind} {shape}")


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "int8", "mxint8-element", "ue2m2", "uint8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prepared_scale_serves_tensors_of_every_size(name: str, dtype: torch.dtype, device: str) -> None:
    block = fpsim.format("mxint8")
    row = block.element if name == "mxint8-element" and isinstance(block, BlockFormat) else scalar(name)
    scales = scaling.from_range(torch.tensor(-1.0), torch.tensor(2.5), row)
    zero = None if scales.zero is None else scales.zero.to(device)
    prepared = fused.Prepared(scales.step.to(device), zero, row, dtype)
    for kind, whole in tensors().items():
        flat = whole.to(dtype).flatten()
        for x in (
            whole.to(dtype),
            flat[:4096],
            flat[4096:6144],
            flat[3:1003],
            flat[:1],
            flat[:0],
            whole.to(dtype)[:, :, 1:4],
        ):
            wanted = by_torch(x, scales, row, dtype)
            assert_same_bits(prepared(x.to(device)), wanted, f"{name} {kind} {tuple(x.shape)}")


DYNAMIC = [
    *({"format": name, "granularity": "token"} for name in ("e4m3", "int8", "uint8", "ue2m2")),
    *({"format": name, "granularity": "block", "group": 32} for name in ("e2m1", "uint8")),
    *({"format": name, "granularity": "block", "rule": rule} for name, rule in RULES),
]


@pytest.mark.parametrize("options", DYNAMIC, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_of_the_tensor_itself(options: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    quantizer = Quantizer(**options, range="dynamic")
    for kind, whole in tensors().items():
        for x, axis in ((whole.to(dtype), 1), (whole.to(dtype).flatten(2).mT.contiguous(), -1)):
            ours = scaling.self_scaled(x.to(device), quantizer, axis, 0, dtype)
            wanted = self_scaled_by_torch(x, quantizer, axis, dtype)
            assert_same_bits(ours, wanted, f"{quantizer} {kind} axis {axis}")


def test_a_channels_last_tensor_keeps_its_layout(device: str) -> None:
    x = tensors()["normal"].to(memory_format=torch.channels_last)
    row = scalar("e4m3")
    ours = fused.given(x.to(device), torch.full((), 0.1, device=device), None, row, torch.float32)
    assert ours is not None
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(ours, by_torch(x, Scales(step=torch.tensor(0.1)), row), "channels last")


def test_runs_describe_how_a_scale_is_shared() -> None:
    def numbers(shape: tuple[int, ...], step: tuple[int, ...]) -> None:
        found = fused.runs(torch.Size(shape), torch.Size(step))
        assert found is not None
        i = torch.arange(torch.Size(shape).numel())
        index = i // (found.size * found.inner) * found.inner + i % found.inner
        wanted = torch.arange(torch.Size(step).numel()).reshape(step).expand(shape).flatten()
        assert torch.equal(index, wanted)

    for step in ((), (1, 1, 1), (3, 1, 1), (3, 1, 5), (3, 4, 1), (3, 4, 5), (1, 4, 5), (1, 1, 5), (5,)):
        numbers((3, 4, 5), step)
    assert fused.runs(torch.Size((3, 4, 5)), torch.Size((1, 4, 1))) is None
    assert fused.runs(torch.Size((3, 4, 5)), torch.Size((2, 1, 1))) is None
    assert fused.runs(torch.Size((4, 5)), torch.Size((1, 4, 5))) is None


def test_what_kernels_do_not_take_is_left_to_torch() -> None:
    row, one = scalar("e4m3"), torch.ones(())
    assert fused.given(torch.ones(3, dtype=torch.float64), one, None, row, torch.float64) is None
    assert fused.given(torch.ones(3, requires_grad=True), one, None, row, torch.float32) is None
    assert fused.given(torch.ones(3), one, None, scalar("bf16"), torch.float32) is None
