"""What quantized Linear and Conv2d layers share: codes and scales, the quantizer of the input, two arithmetics.

A layer keeps its weight as codes and scales, which is what a device would store, and beside them the values they stand
for (`weight`, not saved), which is what the "quantize" arithmetic multiplies. The bias stays in full precision and is
shared with the layer it was made from.

A float32 layer becomes one that multiplies in float32. A float16 or bfloat16 layer becomes one that rounds in float32,
as the codes are defined, and multiplies in its own dtype: values on the grid are rounded to it once more, by at most
2^-11 or 2^-8 of themselves, which full precision there does to every activation as well, and the speed is that of the
model's own kernels. Scales stay float32 whatever the model is moved to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from fpsim.formats import BlockFormat, Format
from fpsim.nn import functional, fused, packing, scaling, specs, transforms
from fpsim.nn.clock import Clock
from fpsim.nn.quantizer import Quantizer
from fpsim.nn.scaling import Scales
from fpsim.spec import MatmulSpec

#: What is saved of a layer, beside its bias, transform and branch.
BUFFERS = (
    "weight_codes",
    "weight_step",
    "weight_scale_codes",
    "weight_tensor_scale",
    "weight_zero",
    "input_step",
    "input_zero",
)
#: (lowest, highest)
Range = tuple[float, float]
_WIDE = (torch.bfloat16, torch.float16)


class QuantizedLayer(nn.Module):
    """Base of `QuantizedLinear` and `QuantizedConv2d`; make one with `from_float`.

    weight_quantizer, activation_quantizer : how the operands are quantized; no activation quantizer: weight-only
    spec         : None multiplies values on the grid in float32; a MatmulSpec sends codes through it
    weight_codes : codes in the shape of the weight (wide casts: the values in their own dtype)
    weight_step, weight_scale_codes, weight_tensor_scale, weight_zero : the weight's `Scales`
    input_step, input_zero : those of static activations, a scalar or one per timestep group; None for dynamic ones
    weight       : values of the codes, in the dtype of the layer (float32 with a spec)
    """

    CHANNEL_AXIS: int
    weight_codes: Tensor
    weight_step: Tensor | None
    weight_scale_codes: Tensor | None
    weight_tensor_scale: Tensor | None
    weight_zero: Tensor | None
    input_step: Tensor | None
    input_zero: Tensor | None
    weight: Tensor
    _prepared: fused.Prepared | None = None

    def __init__(
        self,
        source: Any,
        *,
        weight: Quantizer,
        activation: Quantizer | None = None,
        input_range: float | Range | Sequence[Range] | None = None,
        input_scales: Scales | None = None,
        spec: MatmulSpec | None = None,
        values: Tensor | None = None,
        scales: Scales | None = None,
        rounded: Tensor | None = None,
        transform: nn.Module | None = None,
        branch: nn.Module | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        weight.check_weight()
        if activation is not None:
            activation.check_activation()
            if activation.one_sided is not None:
                raise ValueError(f"activations {activation}: calibration decides first which of the two, see `seen`")
        if spec is not None:
            _check_exact(weight, activation)
        self.weight_quantizer = weight
        self.activation_quantizer = activation
        self.spec = spec
        self.transform = transform
        self.branch = branch
        self.clock = clock
        self.bias = source.bias
        self.shape = tuple(source.weight.shape)
        self.geometry(source)
        values = source.weight.detach().float() if values is None else values
        if not torch.isfinite(values).all():
            raise ValueError("the weight has NaN or Inf")
        if scales is None:
            scales = scaling.find(values, weight, 1)
        codes = weight_codes(values if rounded is None else rounded, weight, scales)
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_step", None if scales is None else scales.step, persistent=not weight.is_block)
        self.register_buffer("weight_scale_codes", None if scales is None else scales.codes)
        self.register_buffer("weight_tensor_scale", None if scales is None else scales.tensor)
        self.register_buffer("weight_zero", None if scales is None else scales.zero)
        dtype = source.weight.dtype if spec is None else torch.float32
        self.register_buffer("weight", weight_values(codes, weight, scales).to(dtype), persistent=False)
        kept = _input_scales(activation, input_range, input_scales, clock, values.device)
        self.register_buffer("input_step", None if kept is None else kept.step)
        self.register_buffer("input_zero", None if kept is None else kept.zero)

    @classmethod
    def from_float(cls, source: Any, **options: Any) -> Self:
        """The quantized version of `source`, which is not changed; its bias is shared.

        weight, activation : Quantizer (activation None: weight-only)
        input_range  : for static activations: (lowest, highest) input, one per timestep group if there are several; a
                       number alone is the largest magnitude
        input_scales : the same as finished scales, in place of a range
        spec      : MatmulSpec for exact arithmetic, None for values in float32
        values    : float32 weight to quantize in place of the source's own (a transformed one, a residual)
        scales    : the weight's scales, by default from its largest magnitudes
        rounded   : weight values already on the scaled grid, by default the nearest ones
        transform : applied to the input before it is quantized (`fpsim.nn.transforms`)
        branch    : full-precision side branch on the same input, its output is added
        clock     : tells the timestep group, for activations with a range per group

        Raises ValueError for NaN or Inf in the weight and for options that do not fit together.
        """
        return cls(source, **options)

    @classmethod
    def blank(cls, source: Any, recipe: Mapping[str, Any]) -> Self:
        """A layer like `source` without codes yet: `load` fills it. `recipe` is what `recipe()` of a layer gave."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        activation, spec, bounds = recipe["activation"], recipe["spec"], recipe["clock"]
        made.weight_quantizer = Quantizer(**recipe["weight"])
        made.activation_quantizer = None if activation is None else Quantizer(**activation)
        made.spec = None if spec is None else specs.from_dict(spec)
        made.transform = transforms.from_recipe(recipe["transform"], source.weight.shape[1], cls.CHANNEL_AXIS)
        with torch.device("meta"):
            made.branch = None if recipe["rank"] is None else cls.blank_branch(source, recipe["rank"])
        made.clock = None if bounds is None else Clock(tuple(bounds))
        made.bias = source.bias
        made.shape = tuple(source.weight.shape)
        made.geometry(source)
        for name in BUFFERS:
            empty = torch.empty(0) if name in recipe["buffers"] else None
            made.register_buffer(name, empty, persistent=name != "weight_step" or not made.weight_quantizer.is_block)
        dtype = source.weight.dtype if made.spec is None else torch.float32
        made.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)
        return made

    def recipe(self) -> dict[str, Any]:
        """What `blank` needs to build an equal layer, as plain values. ValueError for a spec that cannot be saved."""
        spec = self.spec
        plain = None if spec is None else specs.to_dict(spec)
        return {
            "weight": asdict(self.weight_quantizer),
            "activation": None if self.activation_quantizer is None else asdict(self.activation_quantizer),
            "spec": plain,
            "transform": transforms.recipe(self.transform),
            "rank": None if self.branch is None else int(self.branch[0].weight.shape[0]),  # type: ignore[index]
            "clock": None if self.clock is None else list(self.clock.bounds),
            "buffers": [name for name in BUFFERS if getattr(self, name) is not None],
        }

    def load(self, name: str, value: Tensor) -> None:
        """Fill one buffer from what `state_dict` wrote; codes come packed."""
        if name == "weight_codes" and not self.weight_quantizer.is_cast:
            row = element_format(self.weight_quantizer)
            value = packing.unpack(value, row.bits, self.shape, row.kind == "int" and row.signed)
        self._buffers[name] = value

    def refresh(self) -> None:
        """Recompute what is not stored: `weight`, and the steps of block formats, from codes and scales."""
        row = self.weight_quantizer.row
        if isinstance(row, BlockFormat) and self.weight_scale_codes is not None:
            self.weight_step = functional.block_step(self.weight_scale_codes, self.weight_tensor_scale, row, 1)
        values = weight_values(self.weight_codes, self.weight_quantizer, self.weight_scales)
        self.weight = values.to(self.weight.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moving a model to another dtype leaves codes and scales what they are."""
        kept = {name: self._buffers[name] for name in BUFFERS}
        exact = self.weight if self.spec is not None else None
        super()._apply(fn, recurse)
        self._prepared = None
        if exact is not None and self.weight.dtype != exact.dtype:
            self.weight = exact.to(self.weight.device)
        for name, before in kept.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def geometry(self, source: Any) -> None:
        """Take over what the layer needs to know of the one it replaces, beside weight and bias."""
        raise NotImplementedError

    @classmethod
    def blank_branch(cls, source: Any, rank: int) -> nn.Module:
        """A low-rank side branch for `source`, its weights not filled in."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        key = f"{prefix}weight_codes"
        codes = destination[key]
        if not self.weight_quantizer.is_cast and codes.numel() == torch.Size(self.shape).numel():
            destination[key] = packing.pack(codes, element_format(self.weight_quantizer).bits)

    @property
    def weight_scales(self) -> Scales | None:
        """The weight's scales, None for a cast."""
        if self.weight_step is None:
            return None
        return Scales(
            step=self.weight_step,
            codes=self.weight_scale_codes,
            tensor=self.weight_tensor_scale,
            zero=self.weight_zero,
        )

    def input_scales(self, x: Tensor) -> Scales | None:
        """Scales of one input: the calibrated ones, or from `x` itself."""
        if self.activation_quantizer is None or self.activation_quantizer.is_cast:
            return None
        if self.input_step is not None:
            at: Any = self.clock.group if self.clock is not None and self.input_step.ndim else ()
            return Scales(step=self.input_step[at], zero=None if self.input_zero is None else self.input_zero[at])
        return scaling.find(x, self.activation_quantizer, self.CHANNEL_AXIS, sample_axis=0)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the dtype of `x`."""
        values = x if self.transform is None else self.transform(x.float())
        if self.spec is not None:
            values = values.float()
            y = self.exact(values, self.spec)
            scales = self.input_scales(values)
            if scales is not None and scales.zero is not None:
                y = y - self.zero_term(values, scales.zero * scales.step)
        else:
            weight: Any = self._buffers["weight"]  # found faster than by name; a GPU waits for this
            bias: Any = self._parameters.get("bias")
            if bias is None:
                bias = self.bias  # none, or no parameter
            if bias is not None and bias.dtype is not weight.dtype:
                bias = bias.to(weight.dtype)
            y = self.multiply(self.rounded_input(values), weight, bias)
        if self.branch is not None:
            y = y + self.branch(values.float())
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def rounded_input(self, values: Tensor) -> Tensor:
        """What the weight is multiplied by: the input on its grid, in the dtype of `weight`."""
        step = self._buffers["input_step"]
        if step is not None and step.ndim == 0:
            prepared = self._prepared
            if prepared is None or prepared.step is not step:
                prepared = self._prepared = self._prepare(step)
            made = prepared(values)
            if made is not None:
                return made
        quantizer, dtype = self.activation_quantizer, self.weight.dtype
        if quantizer is None:
            return values.to(dtype)
        if quantizer.is_cast or self.input_step is not None:
            return scaling.fake_quantize(values, quantizer, self.input_scales(values), self.CHANNEL_AXIS, dtype)
        return scaling.self_scaled(values, quantizer, self.CHANNEL_AXIS, 0, dtype)

    def _prepare(self, step: Tensor) -> fused.Prepared:
        row = None if self.activation_quantizer is None else self.activation_quantizer.row
        if not isinstance(row, Format):
            raise ValueError(f"activations {self.activation_quantizer} have no static scale")
        return fused.Prepared(step, self.input_zero, row, self.weight.dtype)

    def multiply(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 values times float32 weights with this layer's geometry, plus bias."""
        raise NotImplementedError

    def zero_term(self, values: Tensor, shift: Tensor) -> Tensor:
        """What `exact` counted too much because codes stand for x + shift: shift times the sums of the weights.

        Padding is code 0 in the codes' product and has no shift, so at the border only the taps inside count.
        """
        plane = shift.expand_as(values.narrow(self.CHANNEL_AXIS, 0, 1)).contiguous()
        return self.multiply(plane, self.weight.sum(1, keepdim=True), None)

    def exact(self, values: Tensor, spec: MatmulSpec) -> Tensor:
        """The layer with every product and sum on `spec`: quantize, multiply codes, dequantize, add the bias."""
        raise NotImplementedError

    def encode_input(self, values: Tensor) -> tuple[Tensor, Quantizer, Scales | None]:
        """Codes of the input, the quantizer they were made with, their scales."""
        if self.activation_quantizer is None:
            raise ValueError("this layer's activations are not quantized: they have no codes")
        scales = self.input_scales(values)
        return (
            scaling.encode(values, self.activation_quantizer, scales, self.CHANNEL_AXIS),
            self.activation_quantizer,
            scales,
        )

    def exact_weight(self) -> Tensor:
        """The weight's codes as the engine reads them: 16-bit casts as bit patterns."""
        return self.weight_codes.view(torch.int16) if self.weight_codes.dtype in _WIDE else self.weight_codes

    def plus_bias(self, y: Tensor) -> Tensor:
        """`y` plus the bias, along the last axis, in float32."""
        return y if self.bias is None else y + self.bias.float()

    def extra_repr(self) -> str:
        engine = "" if self.spec is None else f", engine={self.spec.engine or 'free'}"
        return f"weight={self.weight_quantizer}, activation={self.activation_quantizer}{engine}"


def element_format(quantizer: Quantizer) -> Format:
    """The format that codes are in: the elements' for a block format."""
    return quantizer.row.element if isinstance(quantizer.row, BlockFormat) else quantizer.row


def weight_codes(values: Tensor, quantizer: Quantizer, scales: Scales | None) -> Tensor:
    """Codes of a weight whose input channels are axis 1. Casts are kept as values in the narrowest torch dtype."""
    if quantizer.is_cast:
        cast = functional.quantize(values, quantizer.row)
        return cast.to({"bf16": torch.bfloat16, "f16": torch.float16}.get(quantizer.row.name, torch.float32))
    return scaling.encode(values, quantizer, scales, 1).clone(memory_format=torch.contiguous_format)


def weight_values(codes: Tensor, quantizer: Quantizer, scales: Scales | None) -> Tensor:
    """The float32 values of `weight_codes`."""
    values = codes.float() if quantizer.is_cast else scaling.decode(codes, quantizer, scales, 1)
    return values.clone(memory_format=torch.contiguous_format)  # kernels round differently for other memory layouts


def _check_exact(weight: Quantizer, activation: Quantizer | None) -> None:
    """Raise ValueError for operands whose codes cannot be multiplied as they are."""
    if activation is None:
        raise ValueError("exact arithmetic multiplies codes by codes: give an activation quantizer too")
    if weight.has_zero:
        raise ValueError(
            f"exact arithmetic takes weights without a zero point, and {weight.format!r} has one: "
            "use a signed format, or the arithmetic 'quantize'"
        )
    if activation.has_zero and activation.block is not None:
        raise ValueError(
            f"exact arithmetic takes one zero point per tensor or token, not per block of {activation.block}: "
            f"use granularity 'tensor' or 'token' with {activation.format!r}"
        )


def _input_scales(
    activation: Quantizer | None,
    given: float | Range | Sequence[Range] | None,
    scales: Scales | None,
    clock: Clock | None,
    device: torch.device,
) -> Scales | None:
    """Scales of static activations, one per timestep group if there are several."""
    if activation is None or not activation.is_static or isinstance(activation.row, BlockFormat):
        return None
    if scales is None:
        pairs = _pairs(given)
        if not pairs or any(not -math.inf < low <= high < math.inf for low, high in pairs):
            raise ValueError(
                f"activations {activation} are static: their range is needed, got {given}; calibrate first"
            )
        ends = torch.tensor(pairs, dtype=torch.float32, device=device).T
        scales = scaling.from_range(ends[0], ends[1], activation.row)
        if len(pairs) == 1:
            scales = Scales(step=scales.step[0], zero=None if scales.zero is None else scales.zero[0])
    count = scales.step.numel()
    if count != activation.steps or (activation.steps > 1 and clock is None):
        raise ValueError(
            f"activations {activation} have {activation.steps} timestep groups: give as many ranges (got {count}) "
            "and a clock"
        )
    return scales


def _pairs(given: float | Range | Sequence[Range] | None) -> list[Range]:
    """The ranges of `from_float`'s argument, one per timestep group."""
    if given is None:
        return []
    if isinstance(given, (int, float)):
        return [(-float(given), float(given))]
    flat = [entry for entry in given if isinstance(entry, (int, float))]
    return [(flat[0], flat[1])] if len(flat) == 2 else [entry for entry in given if isinstance(entry, tuple)]
