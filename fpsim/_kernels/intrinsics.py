"""Hardware operations numba has no name for."""

from typing import Any

from numba.core import types
from numba.extending import intrinsic


@intrinsic
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """IEEE fusedMultiplyAdd of three floats of the same type, to nearest even."""
    del typingctx
    if x != y or x != z or not isinstance(x, types.Float):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.fma(*arguments)

    return x(x, y, z), generate
