"""A Linear whose outputs are kept per timestep: for layers whose input is the same in every call at one timestep.

The time embedding of a denoiser, and what is projected from it alone, takes as many values as the sampler has steps.
Kept as a table they cost nothing at run time and lose nothing, whatever precision the rest of the model is in
(TFMQ-DM, Huang et al., arXiv:2311.16503, quantizes these layers apart for the same reason). Which layers these are:
`analysis.runner.timesteps`.

The weights stay: a timestep that is not in the table, of a sampler with another number of steps, is computed. A table
changes no result, so it is nobody's business whether one is there, and checkpoints hold the weights alone.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fpsim.nn.clock import Now


class TabledLinear(nn.Linear):
    """A Linear like `source`, sharing its parameters; see `from_float`."""

    table: Tensor

    @classmethod
    def from_float(cls, source: nn.Linear, outputs: Mapping[float, Tensor], now: Now) -> Self:
        """`source` with its outputs at some timesteps.

        outputs : timestep -> output of a call, (rows, ..., out_features)
        now     : tells the timestep
        """
        if not outputs:
            raise ValueError("no timesteps: a table needs the outputs of at least one")
        with torch.device("meta"):
            made = cls(source.in_features, source.out_features, bias=source.bias is not None)
        made.weight, made.bias = source.weight, source.bias
        made.train(source.training)
        made.now = now
        made.places = {timestep: place for place, timestep in enumerate(outputs)}
        made.register_buffer("table", torch.stack(list(outputs.values())), persistent=False)
        return made

    now: Now
    places: Mapping[float, int]

    def forward(self, x: Tensor) -> Tensor:
        """The table at the present timestep, its first row for another number of rows; computed if it is not there."""
        place = None if self.now.timestep is None else self.places.get(self.now.timestep)
        if place is None or self.table.dtype != x.dtype:
            return super().forward(x)
        rows = self.table[place]
        return rows.clone() if len(rows) == len(x) else rows[:1].expand(*x.shape[:-1], self.out_features).clone()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, timesteps={len(self.places)}"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """In another dtype the layer's outputs are other numbers: the table is emptied."""
        before = self.table.dtype
        super()._apply(fn, recurse)
        if self.table.dtype != before:
            self.places = {}
        return self
