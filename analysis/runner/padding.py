"""Padding tokens out of sight of calibration.

Text encoders fill captions up to a fixed length, and pipelines such as PixArt's tell the denoiser which tokens those
are: `encoder_attention_mask`. Attention gives them no weight at all, so whatever they are, the image is the same; but
the layers in between (the caption's projection, keys, values) work on them as on any other, and whoever looks at those
layers' inputs sees mostly padding: with an empty caption for the other half of guidance, two thirds and more. A range
searched for the least error over such inputs is one for padding, and may clip words.

So while calibration looks, each padding token is a copy of one of the same caption's own tokens, in turn. Not a bit of
the denoiser's output changes, no layer needs to be known for one that reads captions, and each caption weighs the same
as before. Denoisers that are given no mask (Stable Diffusion attends to its padding) are left alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

STATES, MASK = "encoder_hidden_states", "encoder_attention_mask"


@contextmanager
def unpadded(denoiser: "Module") -> Iterator[None]:
    """Inside, every call of `denoiser` that names its padding by `MASK` is made with copies of other tokens there."""

    def replace(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states, mask = kwargs.get(STATES), kwargs.get(MASK)
        if states is None or mask is None or mask.ndim != 2 or mask.shape != states.shape[:2]:
            return args, dict(kwargs)
        return args, {**kwargs, STATES: filled(states, mask)}

    handle = denoiser.register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def filled(states: "Tensor", mask: "Tensor") -> "Tensor":
    """(images, tokens, channels) with tokens where `mask` (images, tokens) is 0 replaced by those where it is not.

    A caption without any token of its own is kept as it is.
    """
    import torch

    own = mask != 0
    count = own.sum(1, keepdim=True)
    place = torch.arange(own.shape[1], device=own.device).expand_as(own)
    own_first = (~own).int().argsort(dim=1, stable=True)
    chosen = torch.where(own | (count == 0), place, own_first.gather(1, place % count.clamp(min=1)))
    return states.gather(1, chosen.unsqueeze(-1).expand_as(states))
