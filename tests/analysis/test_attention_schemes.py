"""Schemes that quantize the products of attention: in both pipelines, on disk, and as text."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.runner import load, quantize, sample
from analysis.scheme import Attention, Rule, Scheme, scheme
from fpsim.nn import Quantizer
from fpsim.nn.attention import Products

NAMES = ["fp8-w8a8+dynamic+attention", "int8-w8a8+dynamic+attention", "mxfp8+attention"]


@pytest.fixture(scope="module", params=[unet_pipeline, dit_pipeline])
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return request.param()


def products(pipe: DiffusionPipeline) -> list[Products]:
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    found = [getattr(module, "processor", None) for module in denoiser.modules()]
    return [one for one in found if isinstance(one, Products)]


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_of_a_denoiser_is_quantized_and_saved(
    pipe: DiffusionPipeline, tmp_path: Path, name: str
) -> None:
    made = quantize(pipe, name)
    without = quantize(pipe, name.replace("+attention", ""))
    assert products(made)
    assert not products(without)
    assert not products(pipe), "the given pipeline was changed"
    images = sample(made, ["a red ring"], [1], steps=2)
    assert not torch.equal(images, sample(without, ["a red ring"], [1], steps=2))
    made.save_pretrained(tmp_path)
    assert torch.equal(sample(load(tmp_path), ["a red ring"], [1], steps=2), images)


def test_the_variant_follows_the_activations() -> None:
    made = scheme("fp4-w4a8+attention")
    assert made.attention == Attention(
        operands=Quantizer(format="e4m3", granularity="token", range="dynamic"), probabilities=Quantizer(format="ue4m4")
    )
    assert "attention: products e4m3 per token; softmax ue4m4 per tensor" in made.summary
    for text in (Scheme.from_json(made.to_json()), Scheme.from_toml(made.to_toml())):
        assert text == made
    assert Scheme.from_toml(scheme("fp4-w4a8").to_toml()).attention is None
    assert scheme("w4a16+attention").attention is None  # no activations to follow


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"operands": {"format": "e4m3"}, "probabilities": {"format": "ue4m4"}}, "take scales at run time"),
        (
            {
                "operands": {"format": "e4m3", "range": "dynamic"},
                "probabilities": {"format": "e2m1", "one_sided": "ue2m2"},
            },
            "softmax is never negative",
        ),
        ({"operands": {"format": "e4m3", "range": "dynamic"}}, "attention has no probabilities"),
        ({"operand": {}}, "did you mean 'operands'"),
    ],
)
def test_attention_without_a_meaning_is_refused(attention: dict[str, object], message: str) -> None:
    rule = {"weight": {"format": "e4m3"}}
    with pytest.raises(ValueError, match=message):
        Scheme.from_dict({"name": "mine", "rules": [rule], "attention": attention})


def test_exact_arithmetic_has_no_attention() -> None:
    with pytest.raises(ValueError, match="no exact arithmetic"):
        scheme("fp8-w8a8+attention").exact("hopper/wgmma")
    assert scheme("fp8-w8a8").exact("hopper/wgmma").rules[0] != Rule()
