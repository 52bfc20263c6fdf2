"""The frozen object itself: ordered rules and the arithmetic they run in."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from analysis.scheme.notation import checked, describe, plain, rule_from, toml
from analysis.scheme.rule import KINDS, Attention, Rule
from fpsim._names import unknown
from fpsim.formats import Format
from fpsim.formats import format as format_row
from fpsim.nn.quantizer import Quantizer

if TYPE_CHECKING:
    from hwmodels import Precision

Arithmetic = Literal["quantize", "exact"]

_COST_WORDS: Mapping[str, Literal["tensor", "token", "group"]] = {
    "tensor": "tensor",
    "token": "token",
    "block": "group",
}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """An ordered list of rules and the arithmetic they run in.

    name       : shown in tables and file names
    rules      : first match decides; a layer without a match stays in full precision
    arithmetic : "quantize" puts operands on their grids and multiplies in float32; "exact" sends the codes through
                 `fpsim.matmul` on each rule's engine
    rest       : format that the operations no rule quantizes are *priced* in; the emulation runs them in the
                 pipeline's own dtype
    attention  : how the products inside of attention are quantized; None leaves them in full precision

    Raises ValueError for no rules, repeated rules, or "exact" arithmetic with a rule that names no engine.
    """

    name: str
    rules: tuple[Rule, ...]
    arithmetic: Arithmetic = "quantize"
    rest: str = "bf16"
    attention: Attention | None = None

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError(f"scheme {self.name!r} has no rules")
        if len(set(self.rules)) != len(self.rules):
            raise ValueError(f"scheme {self.name!r} repeats a rule; the second one could never decide a layer")
        if self.arithmetic not in get_args(Arithmetic):
            raise ValueError(unknown("arithmetic", self.arithmetic, get_args(Arithmetic)))
        format_row(self.rest)
        if self.arithmetic == "exact":
            if self.attention is not None:
                raise ValueError(
                    f"scheme {self.name!r}: the products of attention have no exact arithmetic; leave attention out"
                )
            for rule in self.rules:
                if rule.quantizes and (rule.spec is None or rule.activation is None):
                    missing = "spec (see `fpsim list engines`)" if rule.spec is None else "activation quantizer"
                    raise ValueError(
                        f"scheme {self.name!r}: exact arithmetic multiplies codes by codes on an engine, and rule "
                        f"{rule.pattern!r} has no {missing}"
                    )

    def rule_for(self, path: str, kind: str | None = None) -> Rule | None:
        """The first rule that speaks of the layer, or None."""
        return next((rule for rule in self.rules if rule.matches(path, kind)), None)

    def unused_rules(self, paths: Iterable[str] | Mapping[str, str]) -> tuple[Rule, ...]:
        """Rules that decide none of the layers, in order.

        paths : layer paths, or a mapping from path to layer kind; without kinds a rule's kinds are not looked at.
        A rule whose layers are all taken by earlier rules counts as unused.
        """
        kinds: Mapping[str, str | None] = dict(paths) if isinstance(paths, Mapping) else dict.fromkeys(paths)
        used = {id(self.rule_for(path, kind)) for path, kind in kinds.items()}
        return tuple(rule for rule in self.rules if id(rule) not in used)

    def precision_for(self, op: Any) -> "Precision":
        """The `hwmodels.Precision` that one operation of a workload runs in.

        op : an operation with `.path`; a Gemm is a Linear layer, a Conv2d a convolution, anything else (attention
        products, norms, elementwise work) runs in `rest`.
        """
        from hwmodels import Precision

        kind = KINDS.get(type(op).__name__)
        rule = self.rule_for(op.path, kind) if kind is not None and op.path else None
        weight, activation = (rule.weight, rule.activation) if rule is not None else (None, None)
        if weight is None:
            return Precision(weight=self.rest, activation=self.rest, output=self.rest)
        group = (weight.block or 0) if not weight.is_block else 0
        if activation is None:
            return Precision(weight=weight.format, activation=self.rest, output=self.rest, weight_group=group)
        whole = all(isinstance(row, Format) and row.kind == "int" for row in (weight.row, activation.row))
        return Precision(
            weight=weight.format,
            activation=activation.format,
            accumulator="int32" if whole else "f32",
            output=activation.format if activation.is_cast else self.rest,
            dynamic=activation.range == "dynamic" and not activation.is_cast,
            granularity=_COST_WORDS[activation.granularity],
            group=0 if activation.is_block else activation.block or 0,
            weight_group=group,
        )

    def exact(self, engine: str) -> "Scheme":
        """The same scheme with every product and sum on the matrix engine `engine`."""
        rules = tuple(replace(rule, spec=engine) if rule.quantizes else rule for rule in self.rules)
        return replace(self, name=f"{self.name}@{engine}", rules=rules, arithmetic="exact")

    @property
    def summary(self) -> str:
        """One line of prose: what each rule does, per tensor / channel / token, static / dynamic."""
        inside = self.attention
        words = [] if inside is None else [f"attention: products {inside.operands}; softmax {inside.probabilities}"]
        return "; ".join([*(describe(rule) for rule in self.rules), *words])

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings, defaults left out; `from_dict` reads it back."""
        data: dict[str, Any] = {"name": self.name, "arithmetic": self.arithmetic, "rest": self.rest}
        data["rules"] = [plain(rule) for rule in self.rules]
        if self.attention is not None:
            data["attention"] = plain(self.attention)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scheme":
        """Read what `to_dict` wrote. Unknown keys are errors."""
        values = checked(cls, data, f"scheme {data.get('name', '')!r}")
        rules = values.get("rules", ())
        if not isinstance(rules, (list, tuple)) or not all(isinstance(rule, Mapping) for rule in rules):
            raise ValueError("rules must be a list of tables ([[rules]] in TOML)")
        if values.get("attention") is not None:
            inside = checked(Attention, values["attention"], "attention")
            values["attention"] = Attention(
                **{role: Quantizer(**checked(Quantizer, one, f"{role} quantizer")) for role, one in inside.items()}
            )
        return cls(**{**values, "rules": tuple(rule_from(rule) for rule in rules)})

    def to_json(self) -> str:
        """The scheme as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Scheme":
        """Read JSON text. Raises ValueError when it is not JSON or not a scheme."""
        try:
            return cls.from_dict(json.loads(text))
        except RecursionError as error:
            raise ValueError("not a scheme: nested too deeply") from error

    def to_toml(self) -> str:
        """The scheme as TOML text: one [[rules]] table per rule."""
        lines = [f"{key} = {toml(value)}" for key, value in self.to_dict().items() if key != "rules"]
        for rule in self.rules:
            lines += ["", "[[rules]]"]
            lines += [f"{key} = {toml(value)}" for key, value in plain(rule).items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> "Scheme":
        """Read TOML text. Raises ValueError when it is not TOML or not a scheme."""
        try:
            return cls.from_dict(tomllib.loads(text))
        except RecursionError as error:
            raise ValueError("not a scheme: nested too deeply") from error
