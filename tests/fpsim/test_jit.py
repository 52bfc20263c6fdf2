"""Compilation: one place, no fastmath, a cache that follows the sources and the user's cache folder."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fpsim
from fpsim import _jit

PACKAGE = Path(fpsim.__file__).parent


def test_only_jit_compiles_and_nothing_is_fastmath() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("njit", "vectorize", "guvectorize"):
                assert path.name == "_jit.py", path
            if isinstance(node, ast.keyword) and node.arg == "fastmath":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


def test_kernels_import_nothing_that_the_cache_key_leaves_out() -> None:
    allowed = {"fpsim._jit", *(f"fpsim._kernels.{p.stem}" for p in (PACKAGE / "_kernels").glob("*.py"))}
    for path in (PACKAGE / "_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fpsim"):
                assert node.module in allowed, f"{path.name} imports {node.module}"


def run(**environment: str) -> None:
    code = "import fpsim; fpsim.encode([1.0], 'int8')"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)


def test_cache_goes_where_the_user_keeps_caches(tmp_path: Path) -> None:
    run(XDG_CACHE_HOME=str(tmp_path), CI="")
    assert list(tmp_path.glob("fpsim/kernels-*/**/*.nbi"))
    off = tmp_path / "off"
    run(XDG_CACHE_HOME=str(off), FPSIM_CACHE="0")
    assert not off.exists()


def test_parallel_covers_every_index_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in ("1", "3"):
        monkeypatch.setenv("FPSIM_THREADS", threads)
        for count, grain in ((0, 1), (1, 1), (7, 2), (1000, 10)):
            ranges: list[tuple[int, int]] = []
            _jit.parallel(lambda i, j, out=ranges: out.append((i, j)), count, grain)  # type: ignore[misc]
            assert sorted(k for i, j in ranges for k in range(i, j)) == list(range(count))


def test_errors_in_threads_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSIM_THREADS", "2")

    def fail(start: int, stop: int) -> None:
        raise ValueError(f"{start} {stop}")

    with pytest.raises(ValueError, match="0 "):
        _jit.parallel(fail, 100)


SAMPLE = """
import hashlib, numpy as np, fpsim
from fpsim import blocks
x, made = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32), []
for name in ("e4m3", "bf16", "e2m1", "e4m3fnuz", "ue4m3", "int8"):
    made.append(fpsim.encode(x, name))
for name in ("mxfp4", "nvfp4", "nvfp4-4over6", "int4-g32", "mxint8"):
    made.append(fpsim.quantize(x, name))
for engine, scale in (("hopper/wgmma", 1), ("blackwell/tcgen05", 1), ("blackwell/tcgen05", 100)):
    made.append(fpsim.matmul(*(fpsim.encode(v * scale, "e4m3") for v in (x, x.T)), fpsim.engine(engine, "e4m3")))
spec = fpsim.engine("rtx-blackwell/mma-mxf4nvf4", "e2m1", "e2m1", "f32", scale="ue4m3", block=16)
a, b = blocks.encode(x, "nvfp4"), blocks.encode(x.T.copy(), "nvfp4", axis=0)
made.append(fpsim.matmul(a.codes, b.codes, spec, a_scale=a.scales, b_scale=b.scales))
print([hashlib.sha256(array.tobytes()).hexdigest() for array in made])
"""


def test_kernels_and_vector_instructions_mean_what_their_python_says() -> None:
    """The same bits without a compiler, where the vector intrinsics are a few lines of numpy."""
    compiled, plain = (
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SAMPLE],
            env={**os.environ, "NUMBA_DISABLE_JIT": off},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for off in ("0", "1")
    )
    assert compiled == plain
