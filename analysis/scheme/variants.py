"""What the words after a preset's plus signs do to it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from analysis.scheme.core import Scheme
from analysis.scheme.rule import Attention, Rule
from fpsim.formats import FORMATS, BlockFormat, Format, ScaleRule, alike
from fpsim.nn.quantizer import Quantizer

#: What to keep in high precision where a recipe spares the ends and the conditioning of the denoiser: first and last
#: layers, time and class embeddings and the modulation computed from them, caption projections. One expression, so that
#: it counts as used on any architecture. The set is that of ModelOpt 0.47's diffusers example without conv_shortcut.
EDGES = (
    r"re:(conv_in|conv_out|proj_out|pos_embed\.proj|x_embedder|context_embedder|norm_out\..*"
    r"|time_embedding\..*|.*time_emb_proj|add_embedding\..*|time_text_embed\..*|adaln_single\..*"
    r"|caption_projection\..*|.*\.(norm1|norm1_context|norm)\.linear)"
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
