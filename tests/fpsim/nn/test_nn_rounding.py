import pytest
import torch

from fpsim.nn import functional, rounding
from fpsim.nn.quantizer import resolve


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 150, generator=generator)
    inputs = torch.randn(600, 150, generator=generator) @ torch.randn(150, 150, generator=generator)
    return weight, inputs.T @ inputs / 600


FORMATS = ["e2m1", "int4", "int3", "e4m3", "e3m0-finite"]


@pytest.mark.parametrize("name", FORMATS)
def test_gptq_stays_on_the_grid_and_loses_less_at_the_output(name: str) -> None:
    row = resolve(name)
    weight, gram = problem()
    step = (weight.abs().amax(1, keepdim=True) / row.max).expand_as(weight)
    made = rounding.gptq(weight, step, row, gram)
    assert torch.equal(rounding.nearest(made, step, row), made), "not a fixed point of the quantizer"
    plain = rounding.nearest(weight, step, row)
    ratio = rounding.output_error(made - weight, gram).sum() / rounding.output_error(plain - weight, gram).sum()
    assert ratio < 0.7


def test_gptq_with_uncorrelated_inputs_is_nearest_rounding() -> None:
    row = resolve("e2m1")
    weight, _ = problem()
    step = torch.full_like(weight, 0.4)
    assert torch.equal(rounding.gptq(weight, step, row, torch.eye(150)), rounding.nearest(weight, step, row))


def test_gptq_where_inputs_are_missing() -> None:
    row = resolve("int4")
    weight, gram = problem()
    gram[:, 40:60] = 0
    gram[40:60] = 0
    step = torch.full_like(weight, 0.3)
    made = rounding.gptq(weight, step, row, gram)
    assert torch.equal(made[:, 40:60], rounding.nearest(weight, step, row)[:, 40:60])
    none = rounding.gptq(weight, step, row, torch.zeros(150, 150))
    assert torch.equal(none, rounding.nearest(weight, step, row))


def test_gptq_of_a_single_column_error_is_carried_as_the_formula_says() -> None:
    """Two columns by hand: the second absorbs -e * H_01 / H_11 of the first, in descending order of the diagonal."""
    row = resolve("int8")
    weight, step = torch.tensor([[10.4, 3.0]]), torch.ones(1, 2)
    gram = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    made = rounding.gptq(weight, step, row, gram, damping=0.0)
    assert made.tolist() == [[10.0, 3.0]]  # 3 + 0.4 * 1 / 1 = 3.4, rounds to 3
    made = rounding.gptq(torch.tensor([[10.4, 3.2]]), step, row, gram, damping=0.0)
    assert made.tolist() == [[10.0, 4.0]]  # 3.6


def test_output_error_is_the_squared_error_of_the_outputs() -> None:
    torch.manual_seed(0)
    inputs, change = torch.randn(50, 7), torch.randn(3, 7)
    wanted = (inputs @ change.T).square().sum(0)
    # 50 + 49 additions of 2^-24 each are 6e-6; the rest of rtol is for cancellation in the quadratic form.
    assert torch.allclose(rounding.output_error(change, inputs.T @ inputs), wanted, rtol=1e-4)


def test_arguments_are_not_written_to() -> None:
    weight, gram = problem()
    step = torch.full_like(weight, 0.3)
    copies = [x.clone() for x in (weight, step, gram)]
    rounding.gptq(weight, step, resolve("e2m1"), gram)
    assert all(torch.equal(x, y) for x, y in zip((weight, step, gram), copies, strict=True))
    functional.quantize(weight, "e2m1")
    assert torch.equal(weight, copies[0])
