"""The CUDA backend: its kernels in numba's simulator here, on the device itself where there is one."""

import os
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
from numba import cuda

import fpsim
from fpsim.accumulators import FixedPoint
from tests.strategies import DISTRIBUTIONS, assert_same_bits

# One thread per output: every kind of accumulator, against the reference.
OUTPUTS = """
import sys
import numpy as np, fpsim
from fpsim.accumulators import FixedPoint, FusedDot, IntegerAccumulator, Promoted, SplitK
rng = np.random.default_rng(0)
inner = FusedDot(4, 13, "rz", "e8m13", -133)
engine = fpsim.engine
specs = [
    engine("hopper/wgmma", "e4m3"), engine("hopper/wgmma", "e5m2", out="f16"), engine("ampere/mma", "bf16"),
    engine("hopper/mma", "tf32"), engine("hopper/mma", "e4m3", "e5m2", out="f32"),
    engine("hopper/mma", "e4m3", out="f16"),
    engine("cdna1/mfma", "f16"), engine("cdna2/mfma", "bf16"), engine("cdna3/mfma", "f16"),
    engine("cdna3/mfma", "e4m3fnuz"), engine("generic/fp32", "f32"), engine("ampere/mma", "f64"),
    engine("x86/vdpbf16ps", "bf16"), engine("x86/vpmaddubsw", "uint8", "int8"),
    fpsim.MatmulSpec("e4m3", "e4m3", Promoted(inner, 8)), fpsim.MatmulSpec("e4m3", "e4m3", SplitK(inner, 2, 8)),
    engine("blackwell/tcgen05-mxf8f6f4", "e4m3", "e2m1", scale="e8m0", block=32),
    engine("blackwell/tcgen05-mxf4nvf4", "e2m1", scale="ue4m3", block=16),
    *(fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(bits, overflow))
      for bits in (12, 32) for overflow in ("wrap", "saturate")),
    *(fpsim.MatmulSpec(a, b, FixedPoint(bits, lsb, overflow)) for overflow in ("wrap", "saturate")
      for a, b, bits, lsb in (("e4m3", "e4m3", 24, None), ("e5m2", "int8", 20, -9), ("f16", "bf16", 52, -30))),
]
for spec in specs:
    depth = 20 if spec.block is None else 2 * spec.block
    def draw(row, shape):
        if row.kind == "int":
            return rng.integers(int(row.min), int(row.max) + 1, shape).astype(row.code_dtype)
        return (rng.integers(0, 1 << row.bits, shape, dtype=np.uint64) << np.uint64(row.shift)).astype(row.code_dtype)
    a, b = draw(spec.a, (3, depth)), draw(spec.b, (depth, 2))
    scales = {}
    if spec.block:
        top = 256 if spec.scale == "e8m0" else 128
        scales = {"a_scale": rng.integers(0, top, (3, 2)).astype(np.uint8),
                  "b_scale": rng.integers(0, top, (2, 2)).astype(np.uint8)}
    got, want = (fpsim.matmul(a, b, spec, backend=backend, **scales) for backend in ("cuda", "reference"))
    nan = spec.accumulator.output == "f64"  # a payload is what the machine makes of it
    same = got.tobytes() == want.tobytes() or (nan and np.array_equal(got, want, equal_nan=True))
    if not same:
        sys.exit(f"{spec} {got} {want}")
"""

# Register tiles, made to take small products too: float32 and coded sums, wide and narrow, promoted, scaled, ragged K.
TILES = """
import sys
import numpy as np, fpsim, fpsim._cuda.fused
from fpsim.accumulators import FusedDot, Promoted
sys.modules["fpsim._cuda.fused"]._FEWEST = 1
rng = np.random.default_rng(0)
specs = [
    (fpsim.engine("hopper/wgmma", "e5m2", out="f16"), 33),
    (fpsim.engine("ampere/mma", "bf16"), 20), (fpsim.engine("hopper/mma", "e4m3", out="f32"), 33),
    (fpsim.MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(4, 13, "rz", "e8m13", -133), 8)), 20),
    (fpsim.engine("blackwell/tcgen05-mxf8f6f4", "e4m3", "e4m3", scale="e8m0", block=32), 64),
]
for spec, depth in specs:
    def draw(row, shape):
        x = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3, shape)
        return fpsim.encode(x, row, conversion="ocp-nonsat")
    a, b = draw(spec.a, (2, depth)), draw(spec.b, (depth, 3))
    a[1, 1] = spec.a.nan_code  # a row that the tiles leave to the other kernel
    scales = {}
    if spec.block:
        scales = {"a_scale": rng.integers(120, 134, (2, depth // 32)).astype(np.uint8),
                  "b_scale": rng.integers(120, 134, (depth // 32, 3)).astype(np.uint8)}
    got, want = (fpsim.matmul(a, b, spec, backend=backend, **scales) for backend in ("cuda", "reference"))
    if got.tobytes() != want.tobytes():
        sys.exit(f"{spec} {got} {want}")
"""


@pytest.mark.parametrize("script", [OUTPUTS, TILES], ids=["outputs", "tiles"])
def test_kernels_in_the_simulator_equal_the_reference(script: str) -> None:
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_it_cannot_do_is_said() -> None:
    a = np.zeros((2, 4), np.uint16)
    if not cuda.is_available():
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
            fpsim.matmul(a, a.T.copy(), fpsim.engine("hopper/wgmma", "f16"), backend="cuda")


class OnDevice:
    """Something that says it lives on a GPU."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {}


def test_arrays_on_a_gpu_are_not_read_by_other_backends() -> None:
    with pytest.raises(ValueError, match="the operands are on a GPU; backend='cpu' takes host arrays"):
        fpsim.matmul(OnDevice(), OnDevice(), fpsim.engine("hopper/wgmma", "f16"), backend="cpu")  # type: ignore[arg-type]


ENGINES = [
    *(("hopper/wgmma", operand, {}) for operand in ("e4m3", "e5m2", "f16", "bf16", "tf32")),
    ("hopper/wgmma", "e4m3", {"out": "f16"}),
    ("hopper/mma", "e4m3", {"out": "f32"}),
    ("hopper/mma", "e5m2", {"out": "f16"}),
    ("blackwell/tcgen05", "e4m3", {"out": "f32"}),
    ("cdna1/mfma", "bf16", {}),
    ("cdna2/mfma", "f16", {}),
    ("cdna3/mfma", "f16", {}),
    ("cdna3/mfma", "e4m3fnuz", {}),
    ("generic/fp32", "f32", {}),
    ("x86/vdpbf16ps", "bf16", {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "operand", "more"), ENGINES)
def test_device_equals_cpu(name: str, operand: str, more: dict[str, Any]) -> None:
    spec = fpsim.engine(name, operand, **more)
    rng = np.random.default_rng(1)
    for kind, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (130, 300)), np.ascontiguousarray(draw(rng, spec.b, (70, 300)).T)
        want = fpsim.matmul(a, b, spec)
        assert_same_bits(fpsim.matmul(a, b, spec, backend="cuda"), want, kind)
        there = fpsim.matmul(cuda.to_device(a), cuda.to_device(b), spec).copy_to_host()
        assert_same_bits(there.view(want.dtype), want, kind)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("a", "b", "bits", "lsb"), [("e4m3", "e4m3", 32, None), ("e5m2", "e5m2", 24, -9), ("int8", "f16", 40, -20)]
)
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_registers_on_the_device(a: str, b: str, bits: int, lsb: int | None, overflow: Any) -> None:
    spec = fpsim.MatmulSpec(a, b, FixedPoint(bits, lsb, overflow))
    rng = np.random.default_rng(7)
    for kind, draw in DISTRIBUTIONS.items():
        x, y = draw(rng, spec.a, (60, 300)), np.ascontiguousarray(draw(rng, spec.b, (70, 300)).T)
        c = draw(rng, fpsim.formats.scalar_format("f32"), (60, 70)).view(np.float32)
        for start in (None, c):
            assert_same_bits(fpsim.matmul(x, y, spec, start, backend="cuda"), fpsim.matmul(x, y, spec, start), kind)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "operand", "scale", "block"),
    [("blackwell/tcgen05-mxf8f6f4", "e4m3", "e8m0", 32), ("blackwell/tcgen05-mxf4nvf4", "e2m1", "ue4m3", 16)],
)
def test_block_scaled_on_the_device(name: str, operand: str, scale: str, block: int) -> None:
    spec = fpsim.engine(name, operand, operand, scale=scale, block=block)
    rng, depth = np.random.default_rng(2), 128
    top = 256 if scale == "e8m0" else 128
    for kind, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (100, depth)), np.ascontiguousarray(draw(rng, spec.b, (70, depth)).T)
        sides = [
            rng.integers(0, top, shape).astype(np.uint8) for shape in ((100, depth // block), (depth // block, 70))
        ]
        want = fpsim.matmul(a, b, spec, a_scale=sides[0], b_scale=sides[1])
        x, y, p, q = (cuda.to_device(v) for v in (a, b, *sides))
        assert_same_bits(fpsim.matmul(x, y, spec, a_scale=p, b_scale=q).copy_to_host(), want, kind)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "geometry", [{"groups": 2, "padding": 1}, {"stride": 2, "padding": (1, 2), "order": "row-column-channel"}]
)
def test_convolution_on_the_device(geometry: dict[str, Any]) -> None:
    spec = fpsim.engine("hopper/wgmma", "e4m3")
    rng = np.random.default_rng(3)
    x = fpsim.encode(rng.standard_normal((2, 16, 20, 24)), "e4m3")
    w = fpsim.encode(rng.standard_normal((32, 16 // geometry.get("groups", 1), 3, 3)), "e4m3")
    there = fpsim.conv2d(cuda.to_device(x), cuda.to_device(w), spec, **geometry).copy_to_host()
    assert_same_bits(there, fpsim.conv2d(x, w, spec, **geometry))


@pytest.mark.gpu
@pytest.mark.parametrize("out", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("rows", [False, True])
def test_scales_bias_and_cast_on_the_device(rows: bool, out: str) -> None:
    spec = fpsim.engine("hopper/scaled_mm-fast", "e4m3", out=out)
    rng = np.random.default_rng(4)
    a, b = (fpsim.encode(rng.standard_normal(shape), "e4m3") for shape in ((100, 256), (256, 80)))
    sides: list[Any] = [np.float32(0.3), np.float32(0.7)]
    if rows:
        sides = [rng.uniform(0.5, 2, shape).astype(np.float32) for shape in ((100, 1), (1, 80))]
    bias = rng.standard_normal(80).astype(np.float32)
    want = fpsim.matmul(a, b, spec, a_scale=sides[0], b_scale=sides[1], bias=bias)
    there = fpsim.matmul(cuda.to_device(a), cuda.to_device(b), spec, a_scale=sides[0], b_scale=sides[1], bias=bias)
    assert_same_bits(there.copy_to_host().view(want.dtype), want)


@pytest.mark.gpu
def test_layers_on_the_device_equal_those_on_the_cpu() -> None:
    import torch

    from fpsim.nn.linear import QuantizedLinear
    from fpsim.nn.quantizer import Quantizer

    torch.manual_seed(0)
    weight = Quantizer(format="e4m3", granularity="channel", range="static")
    activation = Quantizer(format="e4m3", granularity="tensor", range="dynamic")
    spec = fpsim.engine("hopper/wgmma", "e4m3")
    layer = QuantizedLinear.from_float(torch.nn.Linear(256, 96), weight=weight, activation=activation, spec=spec)
    x = torch.randn(3, 50, 256)
    with torch.no_grad():
        here, there = layer(x), layer.cuda()(x.cuda()).cpu()
    assert_same_bits(there.numpy(), here.numpy())
