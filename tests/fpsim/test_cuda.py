"""The CUDA backend: its kernels in numba's simulator here, on the device itself where there is one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import cuda

import fpsim
from tests.strategies import DISTRIBUTIONS, assert_same_bits

SCRIPT = """
import sys
import numpy as np, fpsim
from fpsim.accumulators import FusedDot, IntegerAccumulator, Promoted, SplitK
rng = np.random.default_rng(0)
inner = FusedDot(4, 13, "rz", "e8m13", -133)
float_specs = [
    fpsim.engine("hopper/wgmma", "e4m3"), fpsim.engine("hopper/wgmma", "e5m2", out="f16"),
    fpsim.engine("ampere/mma", "bf16"), fpsim.MatmulSpec("e4m3", "e4m3", Promoted(inner, 8)),
    fpsim.MatmulSpec("e4m3", "e4m3", SplitK(inner, 2, 8)),
]
integer_specs = [fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(bits, overflow))
                 for bits in (12, 32) for overflow in ("wrap", "saturate")]
for spec in float_specs + integer_specs:
    top = 1 << spec.a.bits
    low = -top // 2 if spec.a.kind == "int" else 0
    a, b = (rng.integers(low, low + top, s).astype(spec.a.code_dtype) for s in ((3, 20), (20, 2)))
    got, want = (fpsim.matmul(a, b, spec, backend=backend) for backend in ("cuda", "reference"))
    if got.tobytes() != want.tobytes():
        sys.exit(f"{spec} {got} {want}")
"""


def test_kernels_in_the_simulator_equal_the_reference() -> None:
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_it_cannot_do_is_said() -> None:
    a = np.zeros((2, 4), np.uint16)
    with pytest.raises(ValueError, match="backend='cuda' does not run TwoStageDot"):
        fpsim.matmul(a, a.T.copy(), fpsim.engine("cdna3/mfma", "f16"), backend="cuda")
    if not cuda.is_available():
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
            fpsim.matmul(a, a.T.copy(), fpsim.engine("hopper/wgmma", "f16"), backend="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("operand", ["e4m3", "e5m2", "f16", "bf16", "tf32"])
def test_device_equals_cpu(operand: str) -> None:
    spec = fpsim.engine("hopper/wgmma", operand)
    rng = np.random.default_rng(1)
    for name, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (130, 300)), draw(rng, spec.b, (70, 300)).T
        b = np.ascontiguousarray(b)
        assert_same_bits(fpsim.matmul(a, b, spec, backend="cuda"), fpsim.matmul(a, b, spec), name)
