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

TORCH_VIEW = {
    "f64": (np.float64, torch.float64),
    "f16": (np.float16, torch.float16),
    "bf16": (np.int16, torch.bfloat16),
    "tf32": (np.float32, torch.float32),
    "e4m3": (np.uint8, torch.float8_e4m3fn),
    "e5m2": (np.uint8, torch.float8_e5m2),
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
