"""A quantized copy of a pipeline.

Only the denoiser (U-Net or transformer) is touched. The copy has its own module tree, in which the layers a scheme
speaks of are replaced, and shares every other parameter with the original, which stays as it was.
"""

import copy
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.methods import Layer, Request, looks_at_inputs
from analysis.methods import method as method_called
from analysis.runner.calibrate import Calibration, calibrate, layers_of
from analysis.runner.load import denoiser_name
from analysis.scheme import Rule, Scheme
from analysis.scheme import scheme as scheme_called

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from fpsim.formats import Format
    from fpsim.nn.quantizer import Quantizer
    from fpsim.spec import MatmulSpec


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer. Zero fractions are exact zeros among the weights, before and after.

    smoothing : "folded into" a module before it, or "at run time"; None: there is none
    """

    path: str
    kind: str
    weight: str
    activation: str | None
    engine: str | None
    weights: int
    zeros_before: float
    zeros_after: float
    smoothing: str | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What became of a denoiser.

    layers : the quantized ones; skipped : path -> why it stayed in full precision; unused_rules : decided no layer
    """

    scheme: Scheme
    method: str
    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str]
    unused_rules: tuple[Rule, ...]

    def __str__(self) -> str:
        weights = sum(layer.weights for layer in self.layers)
        return (
            f"{self.scheme.name} by {self.method}: {len(self.layers)} layers with {weights:,} weights quantized, "
            f"{len(self.skipped)} layers in full precision, {len(self.unused_rules)} unused rules"
        )


def quantize(
    pipe: "DiffusionPipeline",
    scheme: Scheme | str,
    method: str = "rtn",
    calibration: Calibration | Sequence[str] | None = None,
    tables: int | None = None,
    **options: Any,
) -> "DiffusionPipeline":
    """A pipeline whose denoiser runs in `scheme`; the given one is untouched and shares what is not quantized.

    scheme      : a `Scheme` or the name of one ("fp4-w4a8+dynamic")
    method      : how scales and rounding are chosen, a name of `analysis.methods.METHODS`
    calibration : for static activations: a `Calibration`, or captions to calibrate with at default settings
    tables      : layers that depend on the timestep alone become tables of their full-precision outputs at this many
                  steps (`analysis.runner.timesteps`); None: they are layers like all others
    options     : the method's own settings

    The result's report is `report_of(result)`. Rules that decide no layer are warned about (UserWarning, one line).
    Raises ValueError for a scheme that matches no layer at all, unknown names, missing calibration, NaN or Inf in a
    weight (the layer is named) and operands that an engine does not take.
    """
    chosen = scheme_called(scheme) if isinstance(scheme, str) else scheme
    maker = method_called(method)
    name = denoiser_name(pipe)
    if tables is not None:
        from analysis.runner.timesteps import tabled

        pipe = tabled(pipe, tables)
    denoiser = getattr(pipe, name)
    layers, skipped, unused = plan(denoiser, chosen)
    warn_unused(chosen, unused, name)
    ranges = calibration
    if ranges is not None and not isinstance(ranges, Calibration):
        static = any(layer.activation is not None and layer.activation.needs_calibration for layer in layers)
        ranges = calibrate(pipe, ranges) if static or looks_at_inputs(maker, options) else None
    request = Request(pipe=pipe, layers=layers, calibration=ranges, options=options)
    replacements = maker.quantize(request)
    quantized = replaced(denoiser, replacements)
    for clock in request.clocks.values():
        clock.attach(quantized)
    attend(quantized, chosen)
    if replacements:
        from analysis.runner.plugin import remember

        remember(quantized, chosen)
    made = with_denoiser(pipe, name, quantized)
    report = QuantizationReport(
        scheme=chosen,
        method=method,
        layers=tuple(_report(layer, replacements[layer.path], request.folded.get(layer.path)) for layer in layers),
        skipped=skipped,
        unused_rules=unused,
    )
    made._quantization_report = report
    return made


def warn_unused(scheme: Scheme, unused: Sequence[Rule], where: str) -> None:
    """One warning for each rule that decides no layer: a typing error in a pattern is otherwise invisible."""
    for rule in unused:
        warnings.warn(f"scheme {scheme.name}: rule {rule.pattern!r} decides no layer of the {where}", stacklevel=3)


def attend(denoiser: "Module", scheme: Scheme) -> None:
    """Give every attention module of `denoiser` the products that `scheme` asks for, if it asks for any.

    Raises ValueError if it does and there is no attention module.
    """
    from fpsim.nn.attention import Products

    if scheme.attention is None:
        return
    found = [module for module in denoiser.modules() if callable(getattr(module, "set_processor", None))]
    if not found:
        raise ValueError(f"scheme {scheme.name!r} quantizes attention, and {type(denoiser).__name__} has none")
    for module in found:
        inner: Any = getattr(module, "processor", None)
        products = Products(inner, scheme.attention.operands, scheme.attention.probabilities)
        module.set_processor(products)  # type: ignore[operator]


def save(pipe: "DiffusionPipeline", folder: Path) -> None:
    """Write the denoiser of a quantized pipeline to `folder`, whole or not at all; `restore` reads it back."""
    with whole(folder) as part:
        getattr(pipe, denoiser_name(pipe)).save_pretrained(part)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes that name (and its predecessor's place) once all is written."""
    part = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    before = folder.with_name(f"{folder.name}.replaced")
    try:
        yield part
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.replace(before)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)


def restore(pipe: "DiffusionPipeline", folder: Path) -> "DiffusionPipeline":
    """`pipe`, in full precision, with the quantized denoiser that `save` wrote to `folder`."""
    import analysis.runner.plugin  # noqa: F401 - registers the backend that the config names

    name = denoiser_name(pipe)
    denoiser = getattr(pipe, name)
    loaded = type(denoiser).from_pretrained(folder, dtype=denoiser.dtype, use_safetensors=True)
    return with_denoiser(pipe, name, loaded.to(denoiser.device))


def with_denoiser(pipe: "DiffusionPipeline", name: str, denoiser: "Module") -> "DiffusionPipeline":
    """A pipeline of the same parts but for the denoiser, with a scheduler of its own."""
    made = copy.copy(pipe)
    if getattr(pipe, "scheduler", None) is not None:
        made.scheduler = copy.deepcopy(pipe.scheduler)
    setattr(made, name, denoiser)
    return made


def report_of(pipe: "DiffusionPipeline") -> QuantizationReport:
    """The report of a pipeline that `quantize` made. ValueError for another one."""
    report = getattr(pipe, "_quantization_report", None)
    if not isinstance(report, QuantizationReport):
        raise ValueError(f"this {type(pipe).__name__} was not made by quantize(): it has no report")
    return report


def plan(denoiser: "Module", scheme: Scheme) -> tuple[tuple[Layer, ...], dict[str, str], tuple[Rule, ...]]:
    """(layers to quantize, path -> why not, unused rules). ValueError if no rule speaks of any layer."""
    from fpsim.nn.tabled import TabledLinear

    found = layers_of(denoiser)
    kinds = {path: _kind(layer) for path, layer in found.items()}
    unused = scheme.unused_rules(kinds)
    if len(unused) == len(scheme.rules):
        patterns = ", ".join(repr(rule.pattern) for rule in scheme.rules)
        some = ", ".join(list(found)[:3])
        raise ValueError(f"scheme {scheme.name!r} matches no layer: patterns {patterns}; layers are named like {some}")
    layers, skipped = [], {}
    for path, module in found.items():
        if isinstance(module, TabledLinear):
            skipped[path] = f"a table of its outputs at {len(module.places)} timesteps"
            continue
        rule = scheme.rule_for(path, kinds[path])
        if rule is None or rule.weight is None:
            skipped[path] = "no rule speaks of it" if rule is None else f"kept by rule {rule.pattern!r}"
            continue
        layers.append(
            Layer(
                path=path,
                kind=kinds[path],
                module=module,
                weight=rule.weight,
                activation=rule.activation,
                spec=_spec(path, rule, scheme),
            )
        )
    return tuple(layers), skipped, unused


def replaced(denoiser: "Module", replacements: "Mapping[str, Module]") -> "Module":
    """A copy of `denoiser` with other modules at some paths; parameters and buffers are shared, not copied."""
    shared = {id(tensor): tensor for tensor in [*denoiser.parameters(), *denoiser.buffers()]}
    made: Module = copy.deepcopy(denoiser, shared)
    for path, module in replacements.items():
        parent, _, name = path.rpartition(".")
        setattr(made.get_submodule(parent), name, module)
    return made


def _kind(layer: "Module") -> str:
    import torch

    return "Linear" if isinstance(layer, torch.nn.Linear) else "Conv2d"


def _spec(path: str, rule: Rule, scheme: Scheme) -> "MatmulSpec | None":
    if scheme.arithmetic != "exact" or rule.spec is None or rule.weight is None or rule.activation is None:
        return None
    try:
        return engine_for(rule.spec, rule.activation, rule.weight)
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None


def engine_for(name: str, activation: "Quantizer", weight: "Quantizer") -> "MatmulSpec":
    """The engine `name` for two quantized operands, or an accumulator in words (`hwmodels.rtl.accumulator`).

    Their element formats as they are (with the block scales in the engine if it has them, else outside), or widened
    without loss to the narrowest operands that the engine has: E2M1 weights to E4M3, and E1M2 and E3M0 that a search
    found too, 4-bit integers to 8. Raises ValueError naming what the engine takes, and engines that take these two.
    """
    from fpsim._names import unknown
    from fpsim.engines import ENGINES, engine
    from fpsim.formats import BlockFormat
    from fpsim.nn.layer import element_format
    from fpsim.spec import MatmulSpec
    from hwmodels.rtl import accumulator

    a, b = element_format(activation), element_format(weight)
    scales: list[tuple[str | None, int | None]] = [(None, None)]
    if isinstance(activation.row, BlockFormat) and activation.row == weight.row:
        scales.insert(0, (activation.row.scale.name, activation.row.block))
    if name not in ENGINES:
        if "/" not in name:  # no engine's name: an accumulator in words, around the operands as they are
            return MatmulSpec(a, b, accumulator(name), engine=name)
        raise unknown("engine", name, ENGINES)
    found = [(pair, scale) for scale in scales for pair in _operands(name, a, b, scale)]
    if found:
        (left, right), (own, block) = found[0]
        return engine(name, left, right, scale=own, block=block)
    others = [other for other in ENGINES if any(_operands(other, a, b, scale) for scale in scales)]
    able = f"these do: {', '.join(others)}" if others else "none here does: leave exact arithmetic out"
    raise ValueError(
        f"engine {name!r} does not take a={a.name!r}, b={b.name!r}, nor has it operands of its kind that hold both "
        f"(`fpsim show {name}` lists them); {able}, or choose formats that it takes ('+asymmetric' and searches over "
        "splits bring others in)"
    )


def _operands(name: str, a: "Format", b: "Format", scale: tuple[str | None, int | None]) -> list[tuple[str, str]]:
    """Operand pairs of an engine that hold `a` and `b`, themselves first, then narrow ones first.

    Operands of more than 8 bits only where narrower ones share their accumulator: on a tensor core, widening FP8 to
    16 bits is another instruction with another sum, which nobody asked for.
    """
    from fpsim.engines import ENGINES
    from fpsim.formats import scalar_format
    from fpsim.nn.exact import holds

    found: list[tuple[bool, int, int, tuple[str, str]]] = []
    for row in ENGINES[name].rows:
        if (row.scale, row.block) != scale or row.k is not None:
            continue
        narrow = any(scalar_format(one).bits <= 8 for one in row.a)
        for names in row.pairs():
            left, right = (scalar_format(one) for one in names)
            same = (left, right) == (a, b)
            if holds(left, a) and holds(right, b) and (same or narrow or max(left.bits, right.bits) <= 8):
                found.append((not same, left.bits + right.bits, len(found), names))
    return [names for *_, names in sorted(found)]


def _report(layer: Layer, module: Any, folded: str | None) -> LayerReport:
    from fpsim.nn.transforms import Smooth

    values: Tensor = layer.module.get_parameter("weight")
    one = getattr(module, "halves", [module])[0]  # which may have got another split than the scheme asked for
    multiplied = any(isinstance(part, Smooth) for part in module.modules())
    return LayerReport(
        path=layer.path,
        kind=layer.kind,
        weight=str(getattr(one, "weight_quantizer", layer.weight)),
        activation=None if layer.activation is None else str(getattr(one, "activation_quantizer", layer.activation)),
        engine=None if layer.spec is None else layer.spec.engine,
        weights=values.numel(),
        zeros_before=float((values == 0).float().mean()),
        zeros_after=float((module.weight == 0).float().mean()),
        smoothing="at run time" if multiplied else None if folded is None else f"folded into {folded}",
    )
