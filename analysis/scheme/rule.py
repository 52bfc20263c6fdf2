"""What a scheme is made of: a rule for some layers, and what it says of attention."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fpsim._names import unknown
from fpsim.nn.quantizer import Quantizer

#: Layer kinds that rules speak of, and the operation of a workload that each one becomes.
KINDS: Mapping[str, str] = {"Gemm": "Linear", "Conv2d": "Conv2d"}
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
