"""Gradients of rounding against the formula, element by element, and against finite differences of the clipped part."""

import pytest
import torch

from fpsim.nn import functional, gradient
from fpsim.nn.quantizer import resolve


@pytest.mark.parametrize(("name", "zero"), [("int4", None), ("uint4", 3.0), ("e2m1", None), ("ue2m2", 0.5)])
def test_the_gradients_are_those_of_learned_step_sizes(name: str, zero: float | None) -> None:
    row = resolve(name)
    x = torch.linspace(-12, 12, 241).requires_grad_()
    step = torch.tensor(0.7, requires_grad=True)
    shift = None if zero is None else torch.tensor(zero)
    towards = torch.randn(241, generator=torch.Generator().manual_seed(0))
    (gradient.rounded(x, step, shift, row) * towards).sum().backward()
    with torch.no_grad():
        scaled = x / step + (zero or 0.0)
        code = functional.round_(scaled.clone(), row)
        inside = (scaled >= row.min) & (scaled <= row.max)
        assert torch.equal(x.grad, towards * inside)
        slope = torch.where(inside, code - scaled, code - (zero or 0.0))
        # The same 241 products, added in one order here and perhaps another there.
        assert float(step.grad) == pytest.approx(float((towards * slope).sum()), rel=1e-4)


def test_a_step_that_is_too_large_is_learned_to_be_smaller() -> None:
    torch.manual_seed(0)
    x, row = torch.randn(4000), resolve("e2m1")
    log_step = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_step], lr=0.05)
    errors = []
    for _ in range(120):
        error = (gradient.rounded(x, log_step.exp(), None, row) - x).square().mean()
        errors.append(float(error))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    # The best clip for a Gaussian in E2M1 reaches 18.9 dB (tests of the search). The straight-through gradient is
    # biased: it settles where the slope inside the range balances the clipped part, not at the least error.
    assert 10 * torch.log10(x.square().mean() / errors[-1]) > 18.2
    assert errors[0] > 10 * errors[-1]
