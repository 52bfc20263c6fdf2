"""Padding tokens are out of sight of calibration, and no bit of an image knows."""

from typing import Any

import pytest
import tiny_pipelines
import torch

from analysis.runner import calibrate
from analysis.runner.padding import filled, unpadded
from analysis.runner.quantize import plan
from analysis.runner.sample import call
from analysis.runner.samples import collect
from analysis.runner.statistics import statistics
from analysis.scheme import scheme

CAPTIONS = ["a red ring", "b"]
READERS = ("caption_projection.linear_1", "transformer_blocks.1.attn2.to_k", "transformer_blocks.1.attn2.to_v")


def test_own_tokens_take_the_places_of_padding_in_turn() -> None:
    states = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert filled(states, mask).flatten(1).tolist() == [[0, 1, 0, 1], [5, 5, 5, 5], [8, 9, 10, 11]]
    later = torch.tensor([[0, 1, 0, 1]])
    assert filled(states[:1], later).flatten().tolist() == [1, 1, 1, 3]


@pytest.fixture(scope="module")
def dit() -> Any:
    return tiny_pipelines.dit_pipeline()


def test_no_bit_of_the_output_changes(dit: Any) -> None:
    plain = call(dit, CAPTIONS, [1, 2], 2, 3.0, output="latent")
    seen: list[torch.Tensor] = []
    with unpadded(dit.transformer):
        handle = dit.transformer.register_forward_hook(
            lambda _, args, kwargs, output: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        hidden = call(dit, CAPTIONS, [1, 2], 2, 3.0, output="latent")
        handle.remove()
    assert torch.equal(plain, hidden)
    assert len(seen) == 2
    # "b" has three tokens, the empty captions have two: so many different ones are left
    assert [len(image.unique(dim=0)) for image in seen[0]] == [2, 2, len("aredring") + 2, 3]


def test_statistics_samples_and_ranges_are_those_of_words(dit: Any) -> None:
    """Padding of another value, as loud as can be, is not noticed."""
    encode = dit.encode_prompt

    def loud(*args: Any, **kwargs: Any) -> Any:
        states, mask, *negative = encode(*args, **kwargs)
        return (torch.where(mask[..., None] != 0, states, states + 1e4), mask, *negative)

    def looked_at() -> tuple[Any, Any, Any]:
        ranges = calibrate(dit, CAPTIONS, steps=2)
        layers = [layer for layer in plan(dit.transformer, scheme("fp8-w8a8"))[0] if layer.path in READERS]
        found = {layer.path: seen.rows for layer, seen in statistics(dit, layers, ranges)}
        return ranges, found, collect(dit, ranges, 8)

    quiet = looked_at()
    dit.encode_prompt = loud
    try:
        ranges, rows, samples = looked_at()
    finally:
        del dit.encode_prompt
    assert ranges == quiet[0]
    assert all(torch.equal(rows[path], quiet[1][path]) for path in READERS)
    for one, other in zip(samples, quiet[2], strict=True):
        assert torch.equal(one.kwargs["encoder_hidden_states"], other.kwargs["encoder_hidden_states"])


def test_a_denoiser_without_a_mask_is_called_as_it_is() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    given: list[Any] = []
    with unpadded(pipe.unet):
        handle = pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs), with_kwargs=True)
        states = torch.randn(1, 24, 32)
        with torch.no_grad():
            pipe.unet(torch.randn(1, 4, 8, 8), 3, encoder_hidden_states=states)
            odd = torch.ones(1, 1, 24)  # a bias, not one number for each token
            pipe.unet(torch.randn(1, 4, 8, 8), 3, encoder_hidden_states=states, encoder_attention_mask=odd)
        handle.remove()
    assert [one["encoder_hidden_states"] is states for one in given] == [True, True]
    assert not pipe.unet._forward_pre_hooks
