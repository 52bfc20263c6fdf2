"""A Linear layer in low precision."""

import torch
from torch import Tensor

from fpsim.nn import exact
from fpsim.nn.layer import QuantizedLayer
from fpsim.spec import MatmulSpec


class QuantizedLinear(QuantizedLayer):
    """y = x W^T + b with x (..., in_features), W (out_features, in_features); see `QuantizedLayer`."""

    CHANNEL_AXIS = -1

    def geometry(self, source: torch.nn.Linear) -> None:
        self.in_features = source.in_features
        self.out_features = source.out_features

    @classmethod
    def blank_branch(cls, source: torch.nn.Linear, rank: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(source.in_features, rank, bias=False),
            torch.nn.Linear(rank, source.out_features, bias=False),
        )

    def multiply(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(values, weight, bias)

    def exact(self, values: Tensor, spec: MatmulSpec) -> Tensor:
        codes, quantizer, scales = self.encode_input(values)
        rows = exact.operand(codes, quantizer, scales, -1, lambda x: x.reshape(-1, 1, x.shape[-1]))
        columns = exact.operand(
            self.exact_weight(), self.weight_quantizer, self.weight_scales, 1, lambda x: x.unsqueeze(1)
        )
        y = exact.product(rows, columns, spec)
        return self.plus_bias(y).reshape(*values.shape[:-1], self.out_features)
