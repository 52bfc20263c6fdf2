"""Instruction by instruction against MMA-Sim (PyPI `mmasim`), an independent emulator by the authors of the models.

It covers single instructions with float operands. Where a library GEMM chains instructions, and for integers, see the
reference and silicon tests.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim.formats import container, scalar_format
from fpsim.gemm import RESULT_DTYPES
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, cancelling, random_codes

nv_ptx = pytest.importorskip("mmasim.nv_ptx", reason="the mmasim oracle is not installed")
amd = pytest.importorskip("mmasim.amd")

TORCH_VIEW = {
    "f64": (np.float64, torch.float64),
    "f16": (np.float16, torch.float16),
    "bf16": (np.int16, torch.bfloat16),
    "tf32": (np.float32, torch.float32),
    "e4m3": (np.uint8, torch.float8_e4m3fn),
    "e5m2": (np.uint8, torch.float8_e5m2),
    "e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
    "f32": (np.float32, torch.float32),
    "xf32": (np.float32, torch.float32),
    "e8m0": (np.uint8, torch.float8_e8m0fnu),
    "ue4m3": (np.uint8, torch.float8_e4m3fn),
}
ARCHITECTURES = {
    "volta": "Volta",
    "turing": "Turing",
    "ampere": "Ampere",
    "ada": "Ada Lovelace",
    "hopper": "Hopper",
    "blackwell": "Blackwell",
    "rtx-blackwell": "RTX Blackwell",
}
F8F6F4 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


def instructions() -> list[tuple[str, str, str, str, int, int | None, str]]:
    """(engine, a, b, out, K of the instruction, k= for the engine, mmasim qualifier)."""
    rows: list[tuple[str, str, str, str, int, int | None, str]] = []
    for arch in ARCHITECTURES:
        engine = f"{arch}/mma"
        if arch == "volta":
            rows += [(engine, "f16", "f16", d, 4, None, f"m8n8k4.{d}.f16.f16.{d}") for d in ("f32", "f16")]
            continue
        rows += [(engine, "f16", "f16", d, 8, None, f"m16n8k8.{d}.f16.f16.{d}") for d in ("f32", "f16")]
        if arch == "turing":
            continue
        rows += [(engine, "f16", "f16", d, 16, None, f"m16n8k16.{d}.f16.f16.{d}") for d in ("f32", "f16")]
        rows.append((engine, "bf16", "bf16", "f32", 16, None, "m16n8k16.f32.bf16.bf16.f32"))
        rows.append((engine, "tf32", "tf32", "f32", 8, None, "m16n8k8.f32.tf32.tf32.f32"))
        rows.append((engine, "f64", "f64", "f64", 4, None, "m8n8k4.f64.f64.f64.f64"))
    for a in ("e4m3", "e5m2"):
        for b in ("e4m3", "e5m2"):
            for d in ("f32", "f16"):
                rows.append(("ada/mma", a, b, d, 32, None, f"m16n8k32.{d}.{a}.{b}.{d}"))
                rows.append(("rtx-blackwell/mma", a, b, d, 16, 16, f"m16n8k16.{d}.{a}.{b}.{d}"))
                rows.append(("hopper/wgmma", a, b, d, 32, None, f"m64n8k32.{d}.{a}.{b}"))
    rows.append(("hopper/wgmma", "f16", "f16", "f32", 16, None, "m64n8k16.f32.f16.f16"))
    rows.append(("hopper/wgmma", "f16", "f16", "f16", 16, None, "m64n8k16.f16.f16.f16"))
    rows.append(("hopper/wgmma", "bf16", "bf16", "f32", 16, None, "m64n8k16.f32.bf16.bf16"))
    rows.append(("hopper/wgmma", "tf32", "tf32", "f32", 8, None, "m64n8k8.f32.tf32.tf32"))
    for a in F8F6F4:
        for b in F8F6F4:
            d = "f16" if F8F6F4.index(a) % 2 else "f32"
            rows.append(("rtx-blackwell/mma", a, b, d, 32, None, f"m16n8k32.kind::f8f6f4.{d}.{a}.{b}.{d}"))
            rows.append(("blackwell/tcgen05", a, b, d, 32, None, f"m64n8k32.kind::f8f6f4.{d}.{a}.{b}"))
    rows.append(("blackwell/tcgen05", "bf16", "bf16", "f32", 16, None, "m64n8k16.kind::f16.f32.bf16.bf16"))
    rows.append(("blackwell/tcgen05", "tf32", "tf32", "f32", 8, None, "m64n8k8.kind::tf32.f32.tf32.tf32"))
    return rows


def oracle(engine: str, qualifier: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    arch, _, instruction = engine.partition("/")
    kind = {"mma": nv_ptx.MMA, "wgmma": nv_ptx.WGMMA, "tcgen05": nv_ptx.TCGen05MMA}[instruction]
    return kind(ARCHITECTURES[arch], qualifier)


def to_torch(codes: np.ndarray, name: str) -> torch.Tensor:
    """mmasim takes FP6 in the low six bits of a byte, FP4 in bits 5 to 2, everything else as torch's own types."""
    codes = np.ascontiguousarray(codes)
    if name in TORCH_VIEW:
        dtype, kind = TORCH_VIEW[name]
        return torch.from_numpy(codes.view(dtype)).view(kind)
    return torch.from_numpy(codes << 2 if name == "e2m1" else codes)


def start_values(rng: np.random.Generator, spec: MatmulSpec, shape: tuple[int, int], index: int) -> np.ndarray:
    held = container(spec.accumulator.output)
    dtype = RESULT_DTYPES[held.name]
    choices: list[Callable[[], np.ndarray]] = [
        lambda: np.zeros(shape, dtype),
        lambda: random_codes(rng, held, shape).view(dtype),
        lambda: rng.standard_normal(shape).astype(dtype),
        lambda: (rng.uniform(-1, 1, shape) * held.max).astype(dtype),
    ]
    return choices[index % 4]()


@pytest.mark.parametrize("case", instructions(), ids=lambda c: f"{c[0]}-{c[6]}")
def test_instruction_equals_mmasim(case: tuple[str, str, str, str, int, int | None, str]) -> None:
    engine, a, b, out, depth, k, qualifier = case
    spec = fpsim.engine(engine, a, b, out, k=k)
    run = oracle(engine, qualifier)
    rng = np.random.default_rng(17)
    m, n = (16, 8)
    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        x, y = draw(rng, scalar_format(a), (m, depth)), draw(rng, scalar_format(b), (n, depth)).T
        if name == "normal" and a == b:
            x, y = cancelling(x, y, spec.a)
        for start in (index, index + 1):
            c = start_values(rng, spec, (m, n), start)
            want = run(to_torch(x, a), to_torch(y, b), torch.from_numpy(c.copy())).numpy()
            got = fpsim.matmul(x, np.ascontiguousarray(y), spec, c)
            if out == "f64":  # x86 hands NaN payloads through; the engine's NaN is canonical here
                assert (np.isnan(got) == np.isnan(want)).all()
                got, want = np.nan_to_num(got), np.nan_to_num(want)
            assert_same_bits(got, want, f"{qualifier} {name} start {start % 4}")


def test_chained_instructions_equal_one_long_product() -> None:
    """K beyond one instruction: the result of one is the c of the next."""
    spec = fpsim.engine("hopper/wgmma", "e4m3", "e5m2")
    run = oracle("hopper/wgmma", "m64n8k32.f32.e4m3.e5m2")
    rng = np.random.default_rng(3)
    x = fpsim.encode(rng.standard_normal((16, 256)), "e4m3")
    y = fpsim.encode(rng.standard_normal((256, 8)), "e5m2")
    c = torch.zeros(16, 8)
    for k in range(0, 256, 32):
        c = run(to_torch(x[:, k : k + 32], "e4m3"), to_torch(y[k : k + 32], "e5m2"), c)
    assert_same_bits(fpsim.matmul(x, y.view(ml_dtypes.float8_e5m2), spec), c.numpy())


MFMA = [
    ("cdna1/mfma", "CDNA1", "f32_16x16x4f32", "f32", "f32", 4, None),
    ("cdna1/mfma", "CDNA1", "f32_16x16x16f16", "f16", "f16", 16, None),
    ("cdna1/mfma", "CDNA1", "f32_16x16x8bf16", "bf16", "bf16", 8, None),
    ("cdna2/mfma", "CDNA2", "f64_16x16x4f64", "f64", "f64", 4, None),
    ("cdna2/mfma", "CDNA2", "f32_16x16x16f16", "f16", "f16", 16, None),
    ("cdna2/mfma", "CDNA2", "f32_16x16x16bf16_1k", "bf16", "bf16", 16, None),
    ("cdna2/mfma-bf16", "CDNA2", "f32_16x16x8bf16", "bf16", "bf16", 8, None),
    ("cdna3/mfma", "CDNA3", "f32_16x16x4_f32", "f32", "f32", 4, None),
    ("cdna3/mfma", "CDNA3", "f32_16x16x8_xf32", "xf32", "xf32", 8, None),
    ("cdna3/mfma", "CDNA3", "f32_16x16x16_f16", "f16", "f16", 16, None),
    ("cdna3/mfma", "CDNA3", "f32_16x16x16_bf16", "bf16", "bf16", 16, None),
    ("cdna3/mfma", "CDNA3", "f32_4x4x4_16b_f16", "f16", "f16", 4, 4),
    ("cdna3/mfma", "CDNA3", "f32_16x16x32_fp8_bf8", "e4m3fnuz", "e5m2fnuz", 32, None),
    ("cdna3/mfma", "CDNA3", "f32_16x16x32_bf8_bf8", "e5m2fnuz", "e5m2fnuz", 32, None),
]


@pytest.mark.parametrize("case", MFMA, ids=lambda c: f"{c[0]}-{c[2]}")
def test_mfma_equals_mmasim(case: tuple[str, str, str, str, str, int, int | None]) -> None:
    """AMD: NaN payloads and the sign of an exact zero are not part of the models, so they are compared as classes."""
    engine, arch, suffix, a, b, depth, k = case
    spec = fpsim.engine(engine, a, b, k=k)
    run = amd.MFMA(arch, suffix)
    rng = np.random.default_rng(23)
    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        x, y = draw(rng, scalar_format(a), (16, depth)), draw(rng, scalar_format(b), (16, depth)).T
        if name == "normal" and a == b and a in ("f16", "bf16", "f32", "xf32"):
            x, y = cancelling(x, y, spec.a)
        for start in (index, index + 1):
            c = start_values(rng, spec, (16, 16), start)
            want = run(to_torch(x, a), to_torch(y, b), torch.from_numpy(c.copy())).numpy()
            got = fpsim.matmul(x, np.ascontiguousarray(y), spec, c)
            keep = np.ones(got.shape, bool)
            if "bf8" in suffix or "fp8" in suffix:  # mmasim 2.1.1 drops a NaN together with a c it takes for small
                keep = np.isfinite(got) & np.isfinite(c)
                keep[np.isnan(fpsim.decode(x, a)).any(axis=1)] = False
                keep[:, np.isnan(fpsim.decode(np.ascontiguousarray(y), b)).any(axis=0)] = False
            assert (np.isnan(got) == np.isnan(want))[keep].all(), f"{suffix} {name}"
            got, want = (np.where(keep & ~np.isnan(v), v, 0) + 0 for v in (got, want))
            assert_same_bits(got.astype(c.dtype), want.astype(c.dtype), f"{suffix} {name} start {start % 4}")


SCALED = [
    *(("mma-mxf8f6f4", a, b, "e8m0", 32, 32) for a, b in (("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e3m2", "e2m3"))),
    ("mma-mxf4nvf4", "e2m1", "e2m1", "e8m0", 32, 64),
    ("mma-mxf4nvf4", "e2m1", "e2m1", "e8m0", 16, 64),
    ("mma-mxf4nvf4", "e2m1", "e2m1", "ue4m3", 16, 64),
]


@pytest.mark.parametrize("case", SCALED, ids=lambda c: "-".join(map(str, c)))
def test_block_scaled_instruction_equals_mmasim(case: tuple[str, str, str, str, int, int]) -> None:
    instruction, a, b, scale, block, depth = case
    spec = fpsim.engine(f"rtx-blackwell/{instruction}", a, b, scale=scale, block=block)
    kind = instruction.removeprefix("mma-")
    torch_scale = {"e8m0": "ue8m0", "ue4m3": "ue4m3"}[scale]
    run = nv_ptx.MMABlockScale(
        "RTX Blackwell", f"m16n8k{depth}.kind::{kind}.block{block}.f32.{a}.{b}.f32.{torch_scale}"
    )
    rng = np.random.default_rng(29)
    blocks = depth // block
    near = {"e8m0": 127, "ue4m3": 0x38}[scale]

    def packed(codes: np.ndarray, name: str) -> torch.Tensor:
        """mmasim takes two FP4 codes per byte for this instruction, the first in the high half."""
        if depth != 64:
            return to_torch(codes, name)
        return torch.from_numpy(np.ascontiguousarray((codes[..., ::2] << 4) | codes[..., 1::2]))

    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        x, y = draw(rng, scalar_format(a), (16, depth)), draw(rng, scalar_format(b), (8, depth))
        for scales in ("any", "near"):
            low, high = (0, 256) if scales == "any" else (near - 8, near + 9)
            sa = rng.integers(low, high, (16, blocks)).astype(np.uint8)
            sb = rng.integers(low, high, (8, blocks)).astype(np.uint8)
            c = start_values(rng, spec, (16, 8), index + (scales == "near"))
            # mmasim's float64 scaling leaves its range with two extreme E8M0 scales; within 2**+-126 it is exact
            if scale == "e8m0" and scales == "any":
                sa, sb = np.clip(sa, 64, 190), np.clip(sb, 64, 190)
                sa[0, 0] = 255
            want = run(
                packed(x, a), packed(y, b).T, torch.from_numpy(c.copy()), to_torch(sa, scale), to_torch(sb, scale).T
            ).numpy()
            got = fpsim.matmul(x, np.ascontiguousarray(y.T), spec, c, a_scale=sa, b_scale=np.ascontiguousarray(sb.T))
            assert_same_bits(got, want, f"{kind} {name} {scales}")
            slow = fpsim.matmul(
                x[:3], np.ascontiguousarray(y.T), spec, c[:3], a_scale=sa[:3], b_scale=sb.T.copy(), backend="reference"
            )
            assert_same_bits(got[:3], slow, f"{kind} {name} {scales} reference")


#: numerics of one vector, arXiv:2511.10909: a = [-2**13, -.5, -.25, -.125], b = [2**10, 1, 1, 1], c = 2**23
FINGERPRINT = [
    ("volta/mma", "f16", 0.0),
    ("turing/mma", "f16", -0.5),
    ("ampere/mma", "f16", -0.5),
    ("ampere/mma", "tf32", -0.5),
    ("ada/mma", "f16", -0.5),
    ("hopper/wgmma", "f16", -0.75),
    ("hopper/mma", "tf32", -0.75),
    ("blackwell/tcgen05", "f16", -0.75),
    ("ada/mma", "e5m2", 0.0),
    ("hopper/wgmma", "e5m2", 0.0),
    ("blackwell/tcgen05", "e5m2", -0.75),
    ("cdna1/mfma", "f16", -0.875),
    ("cdna1/mfma", "bf16", -0.875),
    ("cdna2/mfma", "f16", 0.0),
    ("cdna2/mfma-bf16", "bf16", -0.375),
    ("cdna3/mfma", "f16", -0.5),
    ("cdna3/mfma", "e5m2fnuz", -1.0),
]


@pytest.mark.parametrize(("engine", "operand", "want"), FINGERPRINT)
def test_fingerprint_vector(engine: str, operand: str, want: float) -> None:
    a = fpsim.encode([[-(2.0**13), -0.5, -0.25, -0.125]], operand)
    b = fpsim.encode([[2.0**10], [1.0], [1.0], [1.0]], operand)
    c = np.array([[2.0**23]], np.float32)
    for backend in ("cpu", "reference"):
        assert fpsim.matmul(a, b, fpsim.engine(engine, operand), c, backend=backend).item() == want
