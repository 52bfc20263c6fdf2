"""Which grid a tensor is put on, and who shares a scale: one frozen row per operand.

A quantizer is a format plus two choices. *Granularity* says which elements share a scale factor; *range* says where the
scale comes from: stored beforehand ("static": weights, calibrated activations) or taken from the tensor at hand
("dynamic"). Signed formats are symmetric: the largest magnitude of each group lands on the largest magnitude of the
format. Unsigned formats have a zero point beside the scale, the value of the format that stands for 0: the lowest and
the highest value of a group (0 included) land on the ends of the format, and 0 stays 0 exactly, which padding needs.

- ``tensor``: one scale. For dynamic activations one per sample, that is per entry of the first axis.
- ``channel``: weights only, one scale per output channel. An input channel's scale could not leave the sum.
- ``token``: activations only, one scale per row of the matrix product: a token of a Linear, a pixel of a convolution.
- ``block``: one scale per `group` consecutive input channels, for either operand; in block formats, per their block.

Dynamic per-tensor scales belong to one sample rather than to the batch so that an image does not depend on its
neighbours in the batch; with classifier-free guidance the two halves are two samples. Formats of 16 bits and more are
plain casts and have no scale.

This module imports no torch: schemes are read and priced without it.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from fpsim.formats import BlockFormat, Format, ScaleRule, alike
from fpsim.formats import format as format_row

Granularity = Literal["tensor", "channel", "token", "block"]
Range = Literal["static", "dynamic"]

#: Formats at least this wide hold the tensor's own range: a cast, no scale.
CAST_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand of a matrix product is quantized.

    format      : name of a row of `fpsim.formats.FORMATS`; a block format (mxfp4, nvfp4, ...) brings its block scales
    granularity : who shares a scale, see the table above; block formats accept only "block"
    range       : "static" or "dynamic"; weights are always static
    group       : elements per scale for granularity "block" with a scalar format (float32 scales); None otherwise
    steps       : static activations: number of equal parts of the denoising trajectory with a range of their own
    rule        : block formats: how block scales are chosen, one of `fpsim.blocks.RULES`; None: the format's own way
    one_sided   : activations: unsigned format to use instead where calibration saw (nearly) no negative inputs, as
                  after SiLU, GELU and softmax; half the codes of a signed format lie idle there (arXiv:2505.21591)

    Raises ValueError for an unknown name or a combination without a meaning.
    """

    format: str
    granularity: Granularity = "tensor"
    range: Range = "static"
    group: int | None = None
    steps: int = 1
    one_sided: str | None = None
    rule: ScaleRule | None = None

    def __post_init__(self) -> None:
        found = resolve(self.format)  # raises with the list of known names
        _one_of("granularity", self.granularity, get_args(Granularity))
        _one_of("range", self.range, get_args(Range))
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r} must be a whole number, at least 1")
        if self.steps > 1 and self.range != "static":
            raise ValueError(f"steps={self.steps} belongs to static ranges; dynamic ones follow every input anyway")
        if self.one_sided is not None:
            other = resolve(self.one_sided)
            if isinstance(other, BlockFormat) or other.signed or isinstance(found, BlockFormat) or not found.signed:
                raise ValueError(
                    f"one_sided={self.one_sided!r} must be an unsigned scalar format beside a signed one, "
                    f"such as 'ue2m2' beside 'e2m1'; format is {self.format!r}"
                )
            _check_unsigned(other)
        if self.rule is not None:
            rules = alike(found.rule) if isinstance(found, BlockFormat) else ()
            if self.rule not in rules:
                known = ", ".join(rules) or "none, it is no block format"
                raise ValueError(f"rule={self.rule!r} chooses no scales of {self.format!r} (known: {known})")
        if isinstance(found, BlockFormat):
            if self.granularity != "block":
                raise ValueError(
                    f"format {self.format!r} carries its own block scales: granularity must be 'block', "
                    f"not {self.granularity!r}"
                )
            if self.group is not None:
                raise ValueError(f"format {self.format!r} has blocks of its own; leave group out")
            return
        if found.kind == "codebook":
            raise ValueError(f"format {self.format!r} is a codebook; layers take float, integer and block formats")
        if not found.signed:
            _check_unsigned(found)
        if self.granularity == "block":
            if not isinstance(self.group, int) or self.group < 1:
                raise ValueError(f"granularity 'block' with {self.format!r} needs group >= 1, got {self.group!r}")
            if self.is_cast:
                raise ValueError(f"{self.format!r} is a plain cast and takes no scales: use granularity 'tensor'")
        elif self.group is not None:
            raise ValueError(f"group={self.group} belongs to granularity 'block', not {self.granularity!r}")

    @property
    def row(self) -> Format | BlockFormat:
        """The row of the format, see `resolve`; of a block format, with the rule that is asked for."""
        found = resolve(self.format)
        return found if self.rule is None or not isinstance(found, BlockFormat) else replace(found, rule=self.rule)

    @property
    def is_block(self) -> bool:
        """Whether the format itself defines block scales (MX, NVFP4)."""
        return isinstance(self.row, BlockFormat)

    @property
    def is_cast(self) -> bool:
        """Whether values are cast without any scale (16 bits and more)."""
        return isinstance(self.row, Format) and self.row.kind == "float" and self.row.bits >= CAST_BITS

    @property
    def has_zero(self) -> bool:
        """Whether values are shifted by a zero point: those of unsigned formats."""
        return isinstance(self.row, Format) and not self.row.signed

    @property
    def block(self) -> int | None:
        """Elements per block scale along the channels, None when the granularity is not "block"."""
        return self.row.block if isinstance(self.row, BlockFormat) else self.group

    @property
    def needs_calibration(self) -> bool:
        """Whether an activation quantizer like this one needs a range measured beforehand."""
        return self.is_static or self.one_sided is not None

    @property
    def is_static(self) -> bool:
        """Whether an activation quantizer like this one keeps its scale from one input to the next."""
        return self.range == "static" and not self.is_cast

    def seen(self, low: float, high: float) -> "Quantizer":
        """This quantizer for inputs between `low` and `high`: `one_sided` is decided and gone.

        Inputs count as one-sided when their negative part is at most a quarter of the positive one.
        """
        if self.one_sided is None:
            return self
        return replace(self, format=self.one_sided if -low <= high / 4 else self.format, one_sided=None)

    def check_weight(self) -> None:
        """Raise ValueError unless a weight can be quantized this way."""
        if self.granularity == "token":
            raise ValueError("weights have no tokens: granularity must be 'tensor', 'channel' or 'block'")
        if self.range != "static":
            raise ValueError("weights are known beforehand: range must be 'static'")
        if self.steps != 1:
            raise ValueError(f"steps={self.steps} is for activations; a weight is the same at every timestep")
        if self.one_sided is not None:
            raise ValueError("one_sided is for activations; a weight's own values say which format it needs")

    def check_activation(self) -> None:
        """Raise ValueError unless an activation can be quantized this way."""
        if self.granularity == "channel":
            raise ValueError(
                "a scale per input channel cannot leave the sum over channels: use 'tensor', 'token' or 'block' "
                "for activations"
            )
        if self.range == "static" and self.granularity != "tensor":
            raise ValueError(
                f"static ranges are per tensor; granularity {self.granularity!r} for activations needs range='dynamic'"
            )

    def __str__(self) -> str:
        if self.is_cast:
            return f"{self.format} cast"
        place = {"tensor": "per tensor", "channel": "per output channel", "token": "per token"}.get(
            self.granularity, f"per block of {self.block}"
        )
        other = "" if self.one_sided is None else f", {self.one_sided} where one-sided"
        scales = "" if self.rule is None else f", scales by {self.rule}"
        return f"{self.format} {place}{scales}{other}"


@cache
def resolve(name: str) -> Format | BlockFormat:
    """The row called `name`, `fpsim.formats.format` remembered: quantizers ask for theirs with every tensor.

    Searches choose among splits such as "e3m4-finite", a float whose every code is a number, and "ue4m4-finite", which
    has no sign. With a scale of its own such a format covers any range, so its bias is immaterial. Raises ValueError
    for an unknown name.
    """
    return format_row(name)


def _check_unsigned(row: Format) -> None:
    if not row.zero or row.kind == "codebook":
        raise ValueError(
            f"format {row.name!r} has no zero, so no value could stand for 0; use uint8, ue2m2 and the like"
        )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r} (known: {', '.join(known)})")
