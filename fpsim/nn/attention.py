"""The two matrix products of attention in low precision: softmax(Q K^T) V with Q, K, V and the softmax on grids.

Attention modules compute through `torch.nn.functional.scaled_dot_product_attention`, whatever else their processors do
(norms on queries, rotary embeddings, joint streams). `Products` wraps a processor and answers that one call itself:

    S = quantize(Q) quantize(K)^T * scale + mask,   P = softmax(S),   O = quantize(P) quantize(V)

in float32. Scales run along what is summed over: head channels for Q and K, keys for P and V; "token" means a scale per
query of Q and P, per key of K, and per channel of V, and "tensor" one per image and head. Q, K and V are quantized with
scales taken at run time. P lies between 0 and 1, so a static range needs no calibration.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fpsim.formats import BlockFormat
from fpsim.nn import scaling
from fpsim.nn.quantizer import Quantizer


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    operands: Quantizer,
    probabilities: Quantizer,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """(..., queries, channels): attention with quantized products, in the dtype of `query`.

    query, key, value : (..., queries, d), (..., keys, d), (..., keys, channels)
    operands, probabilities : how Q, K, V and how the softmax are quantized
    mask : added to the scores, or False where a key is left out; scale : of the scores, by default 1 / sqrt(d)
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k = rounded(query.float(), operands, -1), rounded(key.float(), operands, -1)
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    p = rounded(scores.softmax(-1), probabilities, -1)
    return (p @ rounded(value.float(), operands, -2)).to(query.dtype)


def rounded(x: Tensor, quantizer: Quantizer, axis: int) -> Tensor:
    """float32 `x` (..., rows, columns) quantized with scales along `axis`; "tensor": one per leading index."""
    if quantizer.is_static:  # only the softmax, whose range is known
        if isinstance(quantizer.row, BlockFormat):
            raise ValueError(f"{quantizer.format!r} takes its scales at run time: use range='dynamic'")
        one = torch.ones((), device=x.device)
        return scaling.fake_quantize(x, quantizer, scaling.from_range(0 * one, one, quantizer.row), axis)
    flat = x.flatten(0, -3)
    return scaling.self_scaled(flat, quantizer, axis, sample_axis=0).view(x.shape)


class Products:
    """An attention processor like `inner` whose products are quantized.

    A call raises ValueError when `inner` computes attention in another way.
    """

    def __init__(self, inner: Any, operands: Quantizer, probabilities: Quantizer) -> None:
        self.inner, self.operands, self.probabilities = inner, operands, probabilities
        # Attention modules pass on the keywords that they find in the signature of this attribute; calls do not use it.
        vars(self)["__call__"] = inner.__call__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Instead(self.operands, self.probabilities) as mode:
            made = self.inner(*args, **kwargs)
        if not mode.used:
            raise ValueError(
                f"{type(self.inner).__name__} does not compute attention through scaled_dot_product_attention; "
                "use diffusers' default processors"
            )
        return made


class _Instead(TorchFunctionMode):
    """Inside, scaled_dot_product_attention is `attention`."""

    def __init__(self, operands: Quantizer, probabilities: Quantizer) -> None:
        super().__init__()
        self.operands, self.probabilities = operands, probabilities
        self.used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.used = True
        return _call(self.operands, self.probabilities, *args, **kwargs)


def _call(
    operands: Quantizer,
    probabilities: Quantizer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's signature. ValueError for what denoisers do not use."""
    if dropout_p or is_causal or enable_gqa:
        raise ValueError("quantized attention takes no dropout, no causal mask and no grouped queries")
    return attention(query, key, value, operands, probabilities, attn_mask, scale)
