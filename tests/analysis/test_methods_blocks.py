"""Block scales by squared error, and what is learned beside a side branch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline

from analysis.methods import _learned
from analysis.methods._prepare import Prepared
from analysis.runner import Calibration, calibrate, quantize, restore, save
from analysis.scheme import Scheme, scheme
from fpsim.nn import QuantizedLayer, scaling
from fpsim.nn.quantizer import Quantizer
from hwmodels import Gemm

CAPTIONS = ["a red ring", "two blue squares"]


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    return dit_pipeline()


@pytest.fixture(scope="module")
def calibration(pipe: DiffusionPipeline) -> Calibration:
    return calibrate(pipe, CAPTIONS, steps=3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mxfp4", ("mse", "mse")),
        ("mxfp4-w4a8", ("mse", "mse")),
        ("nvfp4", ("four-over-six", "four-over-six")),
        ("fp8-w8a8", (None, None)),
    ],
)
def test_a_scheme_asks_block_formats_for_the_rule_that_measures(name: str, wanted: tuple[str | None, ...]) -> None:
    made, plain = scheme(f"{name}+least-error"), scheme(name)
    (rule,) = made.rules
    assert rule.weight is not None
    assert rule.activation is not None
    assert (rule.weight.rule, rule.activation.rule) == wanted
    assert Scheme.from_toml(made.to_toml()) == made
    op = Gemm(m=64, n=64, k=64, path="a")
    assert made.precision_for(op) == plain.precision_for(op)  # how a scale is found is no matter of the device's speed


def test_products_of_attention_take_the_same_rule() -> None:
    inside = scheme("nvfp4+least-error+attention").attention
    assert inside is not None
    assert inside.operands.rule == inside.probabilities.rule == "four-over-six"


def test_rules_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rule='amax' chooses no scales of 'mxfp4' \(known: floor, ceil, rceil"):
        Quantizer(format="mxfp4", granularity="block", rule="amax")
    with pytest.raises(ValueError, match=r"rule='mse' chooses no scales of 'e4m3' \(known: none, it is no block"):
        Quantizer(format="e4m3", rule="mse")


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_weights_and_inputs_are_nowhere_worse_and_survive_a_file(
    pipe: DiffusionPipeline, name: str, tmp_path: Path
) -> None:
    made = quantize(pipe, f"{name}+least-error")
    plain = quantize(pipe, name)
    generator = torch.Generator().manual_seed(3)
    gained = 0
    for path, layer in made.transformer.named_modules():
        if not isinstance(layer, QuantizedLayer) or layer.activation_quantizer is None:
            continue
        source, other = pipe.transformer.get_submodule(path), plain.transformer.get_submodule(path)
        x = torch.randn(16, layer.shape[1], generator=generator)
        quantizer = layer.activation_quantizer
        errors = [
            [
                float((layer.weight.double() - source.weight.detach()).square().sum()),
                float((scaling.self_scaled(x, quantizer, -1).double() - x).square().sum())
                if len(layer.shape) == 2
                else 0.0,
            ]
            for layer, quantizer in ((layer, quantizer), (other, replace(quantizer, rule=None)))
        ]
        assert errors[0][0] <= errors[1][0], path
        assert errors[0][1] <= errors[1][1], path
        gained += errors[0] < errors[1]
    assert gained
    save(made, tmp_path / "made")
    back = restore(pipe, tmp_path / "made")
    for path, layer in made.transformer.named_modules():
        if isinstance(layer, QuantizedLayer):
            again = back.transformer.get_submodule(path)
            assert again.activation_quantizer == layer.activation_quantizer
            assert torch.equal(again.weight, layer.weight)


@pytest.mark.parametrize("transform", ["none", "smooth-hadamard"])
def test_learning_sees_the_layers_that_will_be_built(
    pipe: DiffusionPipeline, calibration: Calibration, transform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side branch takes the input before it is quantized: learned behind it, all else would fit another network."""
    seen: dict[str, torch.Tensor] = {}

    def spy(unit, path, prepared: list[Prepared], met, axes, budget) -> list[Prepared]:  # type: ignore[no-untyped-def]
        weights = {_learned._name(one, path): _learned._effective(one, one.rounded) for one in prepared}
        inputs = [_learned._Input(one, path, one.parts[0], 0, False) for one in prepared]
        call, _ = _learned._batch(met, [0])
        with torch.no_grad(), _learned._quantized_inputs(unit, inputs):
            seen[path] = _learned.first(torch.func.functional_call(unit, weights, call.args, dict(call.kwargs)))
        built = {one.layer.path.removeprefix(f"{path}."): one for one in prepared}
        calls[path] = call, built
        return prepared

    calls: dict[str, object] = {}
    monkeypatch.setattr(_learned, "learn", spy)
    made = quantize(
        pipe, "mxfp4+keep-edges", method="low-rank", calibration=calibration, transform=transform, rank=4,
        rounding="learned", samples=8, gram_rows=256, kept_rows=128,
    )  # fmt: skip
    assert seen
    for path, output in seen.items():
        call, built = calls[path]  # type: ignore[misc]
        assert any(one.branch is not None for one in built.values())
        with torch.no_grad():
            wanted = _learned.first(made.transformer.get_submodule(path)(*call.args, **dict(call.kwargs)))
        assert torch.equal(output, wanted), path
