"""What one layer does: multiply-accumulates, other operations, and the elements it must move.

An operation here is a shape, not a number format: `Gemm(m=4096, n=4096, k=4096)` costs the same 68.7 G
multiply-accumulates in every format.  The format enters through a `Precision` (see `precision.py`), which turns
elements into bytes and picks the rate.  Three conventions hold everywhere:

* `.macs`, `.flops`, `.ops()`, `.bytes()` are for ONE execution; `.count` says how often the layer runs, and only
  `Workload` multiplies by it.
* elements are counted once, as if every operand were read once and every result written once.  That is the least any
  machine can move, so what is built on it alone (`roofline.py`) is a lower bound.
* a matrix product is `out[m, n] = sum_k a[m, k] * b[n, k]`: m rows of activations, n output and k input features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .precision import Precision

LARGEST = 2**53  # counts stay exact in float64, which the vectorised models compute in


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Elements one execution moves, by role: `Precision` gives each role its width."""

    weights: int = 0
    reads: int = 0
    writes: int = 0
    wide: int = 0  # parameters that stay 16 bits wide in every scheme: biases, norm gains


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of a model.

    path: where it sits in the module tree ("" if it has no layer); count: executions per forward pass.
    dtype, out_dtype: types of what is read and written when they are not those of the precision asked for (a norm a
    model insists on running in float32, say); "" means "as the precision says".
    """

    path: str = ""
    count: int = 1
    dtype: str = ""
    out_dtype: str = ""

    MATMUL: ClassVar[bool] = False  # runs on the matrix engine; the others run on the vector units
    FUSABLE: ClassVar[bool] = False  # a compiler merges it with its neighbours

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int":
                check_size(type(self).__name__, item.name, value, 0 if item.name in _MAY_BE_ZERO else 1)
        self._check()

    def _check(self) -> None:
        """Cross-field checks of a subclass."""

    @property
    def kind(self) -> str:
        """The class's name in lower case: what tables group by."""
        return type(self).__name__.lower()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one execution (0 where nothing is multiplied by a matrix)."""
        return 0

    @property
    def flops(self) -> int:
        """Operations outside the matrix engine: one per element and elementary function."""
        return 0

    def ops(self) -> int:
        """Arithmetic operations of one execution: two per multiply-accumulate, plus the vector work."""
        return 2 * self.macs + self.flops

    @property
    def traffic(self) -> Traffic:
        """Elements moved by one execution."""
        raise NotImplementedError

    def bytes(self, precision: Precision) -> float:
        """Bytes one execution must move in this precision, each operand once (block scales included)."""
        t = self.traffic
        weight, read, write = precision.widths(self)
        return (t.weights * weight + t.reads * read + t.writes * write) / 8 + 2 * t.wide

    @property
    def parameters(self) -> int:
        """Stored parameters this operation reads."""
        t = self.traffic
        return t.weights + t.wide

    @cached_property
    def shape_key(self) -> tuple[Any, ...]:
        """Equal for operations that cost the same: everything but path and count."""
        skip = ("path", "count")
        return (type(self).__name__, *(getattr(self, f.name) for f in fields(self) if f.name not in skip))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the class's name under "op", then every field that differs from its default."""
        out: dict[str, Any] = {"op": type(self).__name__}
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                out[item.name] = list(value) if isinstance(value, tuple) else value
        return out

    def describe(self) -> str:
        """Shape in the notation of the field, for tables."""
        return " ".join(f"{k}={v}" for k, v in self.to_dict().items() if k not in ("op", "path", "count"))


#: fields of operations that may be zero
_MAY_BE_ZERO = frozenset({"reads", "outputs", "affine", "writes", "group"})


def check_size(owner: str, name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer in [least, 2**53]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ValueError(f"{owner}: {name}={value!r}; allowed: an integer from {least} to 2**53")
