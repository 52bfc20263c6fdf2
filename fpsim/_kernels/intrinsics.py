"""Hardware operations numba has no name for."""

from typing import Any

import numba
import numpy as np
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


@intrinsic
def _shift_right(typingctx: Any, x: Any, count: Any) -> Any:
    """Arithmetic shift of an int32 that stays an int32: numba's own widens to int64 and halves the vector width."""
    del typingctx
    if x != types.int32 or count != types.int32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ashr(*arguments)

    return types.int32(x, count), generate


def _uncompiled_shift_right(x: Any, count: Any) -> Any:
    return x >> count


shift_right: Any = _uncompiled_shift_right if numba.config.DISABLE_JIT else _shift_right


@intrinsic
def _bits_of(typingctx: Any, x: Any) -> Any:
    """The bit pattern of a float32 as an int32, in a register: array views would send it through memory."""
    del typingctx
    if x != types.float32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(x), generate


@intrinsic
def _float_of(typingctx: Any, x: Any) -> Any:
    """The float32 of a bit pattern in an int32."""
    del typingctx
    if x != types.int32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(x), generate


bits_of: Any = (lambda x: np.float32(x).view(np.int32)) if numba.config.DISABLE_JIT else _bits_of
float_of: Any = (lambda x: np.int32(x).view(np.float32)) if numba.config.DISABLE_JIT else _float_of
