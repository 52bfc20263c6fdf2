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
