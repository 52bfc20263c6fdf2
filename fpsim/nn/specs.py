"""A layer's `MatmulSpec` as plain values and back, for checkpoints: an engine by its name, any other by its parts."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from fpsim._names import unknown
from fpsim.accumulators import Accumulator
from fpsim.engines import ENGINES, engine
from fpsim.spec import MatmulSpec

_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Accumulator)}


def to_dict(spec: MatmulSpec) -> dict[str, Any]:
    """Plain values. Raises ValueError for a free spec with an epilogue, which layers do not have."""
    named = {"name": spec.engine, "a": spec.a.name, "b": spec.b.name, "scale": spec.scale, "block": spec.block}
    if spec.engine in ENGINES:
        return named
    if spec.epilogue is not None:
        raise ValueError("only matrix engines that have a name can be saved with an epilogue")
    return {**named, "out": spec.out, "accumulator": _plain(spec.accumulator)}


def from_dict(data: Mapping[str, Any]) -> MatmulSpec:
    """Read what `to_dict` wrote. Raises ValueError, or TypeError for wrong keys, for anything else."""
    if "accumulator" not in data:
        return engine(**data)
    values = dict(data)
    name, accumulator = values.pop("name"), _accumulator(values.pop("accumulator"))
    return MatmulSpec(**values, accumulator=accumulator, engine=str(name))


def _plain(accumulator: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(accumulator).__name__}
    for field in fields(accumulator):
        value = getattr(accumulator, field.name)
        if field.default is MISSING or value != field.default:
            found[field.name] = _plain(value) if type(value).__name__ in _KINDS else value
    return found


def _accumulator(data: Any) -> Any:
    if not isinstance(data, Mapping) or data.get("kind") not in _KINDS:
        raise unknown("kind of accumulator", str(data.get("kind") if isinstance(data, Mapping) else data), _KINDS)
    values = {key: _accumulator(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    return _KINDS[values.pop("kind")](**values)
