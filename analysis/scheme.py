"""Quantization schemes: ordered rules from layer paths to arithmetic.

A `Scheme` is the one frozen object that the runner turns into quantized layers and the cost models turn into seconds.
It is a list of rules; for each layer the first rule whose pattern and layer kind match decides, later ones are not
looked at, and a layer that no rule matches stays in full precision. Patterns are matched against the path inside the
denoiser, such as ``down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``:

- a shell pattern (`fnmatch`, case-sensitive): ``*`` matches everything, dots included; ``*.attn2.*``, ``conv_in``;
- a regular expression after ``re:``, which must match the whole path: ``re:(conv_in|conv_out)``.

A rule with neither weight nor activation keeps its layers in full precision; put such rules first. A rule that decides
no layer is reported (`unused_rules`), because a typing error in a pattern is otherwise invisible.

Presets are rows of `SCHEMES`; `scheme("fp8-w8a8+keep-edges")` applies a variant of `VARIANTS` to a
preset. No torch here.
"""

import fnmatch
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from fpsim._names import unknown
from fpsim.formats import FORMATS, BlockFormat, Format, ScaleRule, alike
from fpsim.formats import format as format_row
from fpsim.nn.quantizer import Granularity, Quantizer

if TYPE_CHECKING:
    from hwmodels import Precision

Arithmetic = Literal["quantize", "exact"]

#: Layer kinds that rules speak of, and the operation of a workload that each one becomes.
KINDS: Mapping[str, str] = {"Gemm": "Linear", "Conv2d": "Conv2d"}
_COST_WORDS: Mapping[str, Literal["tensor", "token", "group"]] = {
    "tensor": "tensor",
    "token": "token",
    "block": "group",
}
LAYER_KINDS: tuple[str, ...] = tuple(KINDS.values())


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the layers matching `pattern` run in.

    pattern    : shell pattern on the layer path, or a regular expression after "re:" (see the module's text)
    weight     : how the weight is quantized; None leaves it alone
    activation : how the layer's input is quantized; None leaves it alone (weight-only quantization)
    spec       : name of a matrix engine (`fpsim.engines.ENGINES`), used when the scheme's arithmetic is "exact"
    kinds      : layer kinds the rule speaks of

    Raises ValueError for a bad pattern, kind, engine name or quantizer.
    """

    pattern: str = "*"
    weight: Quantizer | None = None
    activation: Quantizer | None = None
    spec: str | None = None
    kinds: tuple[str, ...] = LAYER_KINDS

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("a rule needs a pattern; '*' matches every layer")
        if self.pattern.startswith("re:"):
            try:
                re.compile(self.pattern[3:])
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from None
        if not self.kinds:
            raise ValueError(f"rule {self.pattern!r} speaks of no layer kind (known: {', '.join(LAYER_KINDS)})")
        for kind in self.kinds:
            if kind not in LAYER_KINDS:
                raise ValueError(unknown("layer kind", kind, LAYER_KINDS))
        if self.weight is not None:
            self.weight.check_weight()
        if self.activation is not None:
            self.activation.check_activation()
        if self.weight is None and self.activation is not None:
            raise ValueError(f"rule {self.pattern!r} quantizes activations but not the weight: add a weight quantizer")

    @property
    def quantizes(self) -> bool:
        """Whether the rule changes its layers at all."""
        return self.weight is not None

    def matches(self, path: str, kind: str | None = None) -> bool:
        """Whether the rule speaks of the layer at `path`; `kind` None means any kind."""
        if kind is not None and kind not in self.kinds:
            return False
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], path) is not None
        return fnmatch.fnmatchcase(path, self.pattern)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How the two products of attention are quantized, everywhere in the denoiser (see `fpsim.nn.attention`).

    operands      : queries, keys and values, with scales at run time
    probabilities : the softmax, an unsigned format; a static range is 0 to 1

    Raises ValueError for other ranges.
    """

    operands: Quantizer
    probabilities: Quantizer

    def __post_init__(self) -> None:
        self.operands.check_activation()
        self.probabilities.check_activation()
        if self.operands.needs_calibration or self.operands.is_cast:
            raise ValueError(
                f"queries, keys and values take scales at run time: operands {self.operands} need range='dynamic', "
                "a format below 16 bits and no one_sided"
            )
        if self.probabilities.one_sided is not None or self.probabilities.steps != 1:
            raise ValueError(f"the softmax is never negative: {self.probabilities} needs no one_sided and no steps")


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
        return "; ".join([*(_describe(rule) for rule in self.rules), *words])

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings, defaults left out; `from_dict` reads it back."""
        data: dict[str, Any] = {"name": self.name, "arithmetic": self.arithmetic, "rest": self.rest}
        data["rules"] = [_plain(rule) for rule in self.rules]
        if self.attention is not None:
            data["attention"] = _plain(self.attention)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scheme":
        """Read what `to_dict` wrote. Unknown keys are errors."""
        values = _checked(cls, data, f"scheme {data.get('name', '')!r}")
        rules = values.get("rules", ())
        if not isinstance(rules, (list, tuple)) or not all(isinstance(rule, Mapping) for rule in rules):
            raise ValueError("rules must be a list of tables ([[rules]] in TOML)")
        if values.get("attention") is not None:
            inside = _checked(Attention, values["attention"], "attention")
            values["attention"] = Attention(
                **{role: Quantizer(**_checked(Quantizer, one, f"{role} quantizer")) for role, one in inside.items()}
            )
        return cls(**{**values, "rules": tuple(_rule(rule) for rule in rules)})

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
        lines = [f"{key} = {_toml(value)}" for key, value in self.to_dict().items() if key != "rules"]
        for rule in self.rules:
            lines += ["", "[[rules]]"]
            lines += [f"{key} = {_toml(value)}" for key, value in _plain(rule).items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> "Scheme":
        """Read TOML text. Raises ValueError when it is not TOML or not a scheme."""
        try:
            return cls.from_dict(tomllib.loads(text))
        except RecursionError as error:
            raise ValueError("not a scheme: nested too deeply") from error


def scheme(name: str) -> Scheme:
    """The preset called `name`, with variants after plus signs: "fp4-w4a8", "int8-w8a8+dynamic+keep-edges".

    Raises ValueError for an unknown name, with the nearest known one.
    """
    base, *variants = name.split("+")
    if base not in SCHEMES:
        raise ValueError(unknown("scheme", base, tuple(SCHEMES)))
    made = SCHEMES[base]
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(unknown("scheme variant", variant, tuple(VARIANTS)))
        made = replace(VARIANTS[variant](made), name=f"{made.name}+{variant}")
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Presets. Every one speaks of all Linear and Conv2d layers of the denoiser, first and last included.
#   scalar formats : weights per output channel; activations per tensor with static, calibrated ranges
#   block formats  : weights and activations in blocks along the input channels, scales taken at run time
#   16 bits        : casts, no scales

_PRESETS: tuple[tuple[str, str, str | None], ...] = (
    ("bf16", "bf16", "bf16"),
    ("fp16", "f16", "f16"),
    ("fp8-w8a8", "e4m3", "e4m3"),
    ("fp8-e5m2-w8a8", "e5m2", "e5m2"),
    ("fp8-e3m4-w8a8", "e3m4", "e3m4"),
    ("int8-w8a8", "int8", "int8"),
    ("fp6-w6a6", "e2m3", "e2m3"),
    ("fp6-e3m2-w6a6", "e3m2", "e3m2"),
    ("fp4-w4a8", "e2m1", "e4m3"),
    ("int4-w4a8", "int4", "int8"),
    ("fp4-w4a4", "e2m1", "e2m1"),
    ("int4-w4a4", "int4", "int4"),
    ("mxfp8", "mxfp8", "mxfp8"),
    ("mxfp6", "mxfp6", "mxfp6"),
    ("mxfp4", "mxfp4", "mxfp4"),
    ("nvfp4", "nvfp4", "nvfp4"),
    ("mxfp4-w4a8", "mxfp4", "mxfp8"),
    ("w8a16", "int8", None),
    ("w4a16", "int4", None),
    ("fp8-w8a16", "e4m3", None),
    ("fp4-w4a16", "e2m1", None),
)

#: What to keep in high precision where a recipe spares the ends and the conditioning of the denoiser: first and last
#: layers, time and class embeddings and the modulation computed from them, caption projections. One expression, so that
#: it counts as used on any architecture. The set is that of ModelOpt 0.47's diffusers example without conv_shortcut.
EDGES = (
    r"re:(conv_in|conv_out|proj_out|pos_embed\.proj|x_embedder|context_embedder|norm_out\..*"
    r"|time_embedding\..*|.*time_emb_proj|add_embedding\..*|time_text_embed\..*|adaln_single\..*"
    r"|caption_projection\..*|.*\.(norm1|norm1_context|norm)\.linear)"
)


def _operand(name: str, granularity: Granularity) -> Quantizer:
    """A scalar format at `granularity`, a block format in its blocks, a wide format as a cast."""
    if isinstance(format_row(name), BlockFormat):
        return Quantizer(format=name, granularity="block")
    made = Quantizer(format=name)
    return made if made.is_cast else replace(made, granularity=granularity)


def _activation(name: str) -> Quantizer:
    made = _operand(name, "tensor")
    return replace(made, range="dynamic") if made.is_block else made


def _preset(name: str, weight: str, activation: str | None) -> Scheme:
    rule = Rule(
        weight=_operand(weight, "channel"),
        activation=None if activation is None else _activation(activation),
    )
    return Scheme(name=name, rules=(rule,))


#: name -> preset. "fp32" keeps every layer as it is; its one rule says so.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "fp32": Scheme(name="fp32", rules=(Rule(),), rest="f32"),
        **{name: _preset(name, weight, activation) for name, weight, activation in _PRESETS},
    }
)


def _each_rule(change: Callable[[Rule], Rule]) -> Callable[[Scheme], Scheme]:
    return lambda made: replace(made, rules=tuple(change(rule) if rule.quantizes else rule for rule in made.rules))


def _dynamic(rule: Rule) -> Rule:
    activation = rule.activation
    if activation is None or activation.is_cast or activation.is_block:
        return rule
    return replace(rule, activation=replace(activation, granularity="token", range="dynamic"))


def _timesteps(rule: Rule) -> Rule:
    activation = rule.activation
    if activation is None or not activation.is_static:
        return rule
    return replace(rule, activation=replace(activation, steps=10))


def _asymmetric(rule: Rule) -> Rule:
    activation = rule.activation
    if activation is None or not isinstance(activation.row, Format) or activation.is_cast or not activation.row.signed:
        return rule
    other = _unsigned(activation.row)
    if activation.row.kind == "int":
        return replace(rule, activation=replace(activation, format=other))
    return replace(rule, activation=replace(activation, one_sided=other))


def _least_error(rule: Rule) -> Rule:
    found = {
        role: one for role in ("weight", "activation") if (one := getattr(rule, role)) is not None and one.is_block
    }
    return replace(rule, **{role: replace(one, rule=_NEAREST_RULES.get(one.row.rule)) for role, one in found.items()})


_BY_ERROR: tuple[ScaleRule, ...] = ("mse", "four-over-six")
#: rule of block scales -> the one of its kind that measures the squared error
_NEAREST_RULES: dict[ScaleRule, ScaleRule] = {rule: best for best in _BY_ERROR for rule in alike(best)}


def _unsigned(row: Format) -> str:
    """The unsigned format of as many bits: uint8 for int8, ue2m2 for e2m1, itself if it is one."""
    if not row.signed:
        return row.name
    if row.kind == "int":
        return f"uint{row.bits}"
    name = f"ue{row.exponent_bits}m{row.mantissa_bits + 1}"
    return name if name in FORMATS else f"{name}-finite"


def _per_tensor(rule: Rule) -> Rule:
    if rule.weight is None or rule.weight.granularity != "channel":
        return rule
    return replace(rule, weight=replace(rule.weight, granularity="tensor"))


def _grouped(group: int) -> Callable[[Rule], Rule]:
    def change(rule: Rule) -> Rule:
        if rule.weight is None or rule.weight.granularity not in ("tensor", "channel") or rule.weight.is_cast:
            return rule
        return replace(rule, weight=replace(rule.weight, granularity="block", group=group))

    return change


def _with_attention(made: Scheme) -> Scheme:
    """Products in the format of the first rule's activations, at run time; the softmax in its unsigned counterpart."""
    rule = next((rule for rule in made.rules if rule.activation is not None and not rule.activation.is_cast), None)
    if rule is None or rule.activation is None:
        return made
    row = rule.activation.row
    if isinstance(row, BlockFormat):
        operands = probabilities = replace(rule.activation, range="dynamic")
    else:
        operands = Quantizer(format=row.name, granularity="token", range="dynamic")
        probabilities = Quantizer(format=_unsigned(row))
    return replace(made, attention=Attention(operands=operands, probabilities=probabilities))


def _keep_edges(made: Scheme) -> Scheme:
    return replace(made, rules=(Rule(pattern=EDGES), *made.rules))


#: name -> what it does to a scheme.
#:   dynamic    : activations per token, scale taken at run time, instead of per tensor and calibrated
#:   timesteps  : static activation ranges for each tenth of the denoising trajectory instead of one for all of it
#:   asymmetric : integer activations with a zero point; float ones too, in an unsigned format, where calibration sees
#:                one-sided inputs (after SiLU, GELU, softmax)
#:   per-tensor : one scale per weight tensor instead of one per output channel
#:   g32, g64   : float32 weight scales per 32 or 64 input channels
#:   least-error: block scales that leave the smaller squared error, of two or three (`fpsim.blocks.RULES`: mse,
#:                four-over-six), for weights and, at run time, activations
#:   attention  : both products of attention too, in the format of the activations, the softmax without a sign
#:   keep-edges : first and last layers, time embedding and modulation stay in full precision (EDGES)
VARIANTS: Mapping[str, Callable[[Scheme], Scheme]] = MappingProxyType(
    {
        "dynamic": _each_rule(_dynamic),
        "timesteps": _each_rule(_timesteps),
        "asymmetric": _each_rule(_asymmetric),
        "per-tensor": _each_rule(_per_tensor),
        "g32": _each_rule(_grouped(32)),
        "g64": _each_rule(_grouped(64)),
        "least-error": _each_rule(_least_error),
        "keep-edges": _keep_edges,
        "attention": _with_attention,
    }
)


def _describe(rule: Rule) -> str:
    where = "all layers" if rule.pattern == "*" else f"layers {rule.pattern!r}"
    if rule.weight is None:
        return f"{where} in full precision"
    if rule.activation is None:
        return f"{where}: weights {rule.weight}, activations in full precision"
    parts = f" in {rule.activation.steps} parts of the trajectory" if rule.activation.steps > 1 else ""
    how = "" if rule.activation.is_cast else f", {rule.activation.range}{parts}"
    return f"{where}: weights {rule.weight}; activations {rule.activation}{how}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def _plain(row: Rule | Quantizer | Attention) -> dict[str, Any]:
    """A row as a dict without the fields that hold their default; the first field is always written."""
    data: dict[str, Any] = {}
    for index, field in enumerate(fields(row)):
        value = getattr(row, field.name)
        if index and value == field.default:
            continue
        if isinstance(value, tuple):
            value = list(value)
        data[field.name] = _plain(value) if isinstance(value, Quantizer) else value
    return data


def _toml(value: Any) -> str:
    """One TOML value. JSON strings, numbers and arrays are TOML too; tables are written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _checked(row: type, data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a table, got {data!r}")
    known = tuple(field.name for field in fields(row))
    for key in data:
        if key not in known:
            raise unknown(f"key of {what}", key, known)
    for field in fields(row):
        if field.default is MISSING and field.name not in data:
            raise ValueError(f"{what} has no {field.name}")
        if field.name in data and field.name in _TYPES:
            value, (kind, words) = data[field.name], _TYPES[field.name]
            if type(value) is not kind and not (value is None and field.default is None):
                raise ValueError(f"{field.name} of {what} must be {words}, not {value!r}")
    return dict(data)


#: what the fields of the rows above are in a file
_TYPES: Mapping[str, tuple[type, str]] = MappingProxyType(
    dict.fromkeys(("name", "arithmetic", "rest", "pattern", "spec"), (str, "a text"))
    | dict.fromkeys(("format", "granularity", "range", "one_sided", "rule"), (str, "a text"))
    | dict.fromkeys(("group", "steps"), (int, "a whole number"))
)


def _rule(data: Mapping[str, Any]) -> Rule:
    values = _checked(Rule, data, "a rule")
    for role in ("weight", "activation"):
        if values.get(role) is not None:
            values[role] = Quantizer(**_checked(Quantizer, values[role], f"{role} quantizer"))
    if "kinds" in values:
        kinds = values["kinds"]
        if not isinstance(kinds, (list, tuple)):
            raise ValueError(f"kinds of a rule must be a list of {', '.join(LAYER_KINDS)}, not {kinds!r}")
        values["kinds"] = tuple(kinds)
    return Rule(**values)
