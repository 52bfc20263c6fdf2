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

from analysis.scheme.core import Arithmetic as Arithmetic
from analysis.scheme.core import Scheme as Scheme
from analysis.scheme.presets import SCHEMES as SCHEMES
from analysis.scheme.presets import scheme as scheme
from analysis.scheme.rule import KINDS as KINDS
from analysis.scheme.rule import LAYER_KINDS as LAYER_KINDS
from analysis.scheme.rule import Attention as Attention
from analysis.scheme.rule import Rule as Rule
from analysis.scheme.variants import EDGES as EDGES
from analysis.scheme.variants import VARIANTS as VARIANTS
