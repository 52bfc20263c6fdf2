"""SDXL's U-Net and the joint transformers of SD3 and FLUX: attention products, edges, zeros, and back from disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import denoiser_inputs, dit_pipeline, flux_pipeline, sd3_pipeline, sdxl_pipeline, unet_pipeline

from analysis.runner import quantize, report_of
from analysis.runner.load import denoiser_name
from analysis.scheme import scheme
from fpsim.nn import QuantizedLayer
from fpsim.nn.attention import Products, attention

MAKERS: dict[str, Callable[[], Any]] = {"sdxl": sdxl_pipeline, "sd3": sd3_pipeline, "flux": flux_pipeline}
#: self- and cross-attention of SDXL's two levels; one joint attention per block of SD3 and FLUX
ATTENTIONS = {"sdxl": 16, "sd3": 2, "flux": 2}


@pytest.fixture(scope="module", params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return MAKERS[name]()


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, denoiser_name(pipe))


def output(pipe: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(pipe)(**denoiser_inputs(name), return_dict=False)[0]


@pytest.mark.parametrize("formats", ["fp8-w8a8+dynamic", "int8-w8a8+dynamic", "nvfp4"])
def test_every_product_of_attention_is_quantized(
    pipe: Any, name: str, formats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if torch's own attention, wherever it is called, were the quantized one."""
    made = quantize(pipe, f"{formats}+attention")
    inside = scheme(f"{formats}+attention").attention
    assert inside is not None
    assert (
        sum(isinstance(getattr(m, "processor", None), Products) for m in denoiser(made).modules()) == ATTENTIONS[name]
    )
    calls = []

    def instead(query: Any, key: Any, value: Any, attn_mask: Any = None, **others: Any) -> torch.Tensor:
        assert not any(others.values())
        calls.append(query.shape)
        return attention(query, key, value, inside.operands, inside.probabilities, attn_mask)

    plain = quantize(pipe, formats)
    without = output(plain, name)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", instead)
        wanted = output(plain, name)
    assert len(calls) == ATTENTIONS[name]
    assert torch.equal(output(made, name), wanted)
    assert not torch.equal(wanted, without)


@pytest.mark.parametrize("formats", ["fp8-w8a8+dynamic+attention+keep-edges", "nvfp4+attention", "int4-w4a8+dynamic"])
def test_a_denoiser_comes_back_from_disk(pipe: Any, name: str, tmp_path: Path, formats: str) -> None:
    made = quantize(pipe, formats)
    made.save_pretrained(tmp_path)
    component = denoiser_name(pipe)
    again = type(denoiser(pipe)).from_pretrained(tmp_path, subfolder=component, dtype=torch.float32)
    with torch.no_grad():
        back = again(**denoiser_inputs(name), return_dict=False)[0]
    assert torch.equal(back, output(made, name))


EDGES = {
    "sdxl": {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"}
    | {"mid_block.resnets.0.time_emb_proj"},
    "sd3": {"pos_embed.proj", "context_embedder", "time_text_embed.timestep_embedder.linear_1", "proj_out"}
    | {"norm_out.linear", "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear"},
    "flux": {"x_embedder", "context_embedder", "time_text_embed.text_embedder.linear_2", "proj_out", "norm_out.linear"}
    | {"transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.norm.linear"},
}  # fmt: skip
#: in the middle, with names that begin or end like an edge's
INNER = {
    "sdxl": {"down_blocks.1.attentions.0.proj_in", "up_blocks.0.attentions.0.proj_out", "mid_block.resnets.0.conv1"},
    "sd3": {"transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.0.proj"},
    "flux": {"single_transformer_blocks.0.proj_out", "single_transformer_blocks.0.proj_mlp"},
}


def test_edges_and_conditioning_are_kept_by_rule(pipe: Any, name: str) -> None:
    report = report_of(quantize(pipe, "nvfp4+keep-edges"))
    made = {row.path for row in report.layers}
    assert set(report.skipped) >= EDGES[name]
    assert made >= INNER[name]
    assert not made & set(report.skipped)
    assert report.unused_rules == ()
    assert {why.partition(" ")[0] for why in report.skipped.values()} == {"kept"}


@pytest.mark.parametrize("formats", ["fp4-w4a8+dynamic", "int4-w4a8+dynamic"])
def test_zeros_are_counted_before_and_after(formats: str) -> None:
    """Zeros of floats appear where a weight is below half the smallest step, of integers below half a step."""
    half = {"fp4-w4a8+dynamic": 0.25 / 6, "int4-w4a8+dynamic": 0.5 / 7}[formats]
    for pipe in (unet_pipeline(), dit_pipeline()):
        source = denoiser(pipe)
        first = next(module for module in source.modules() if isinstance(module, torch.nn.Linear))
        with torch.no_grad():
            first.weight[0, :3] = 0.0
        rows = report_of(quantize(pipe, formats)).layers
        assert len(rows) == sum(isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) for m in source.modules())
        for row in rows:
            weight = source.get_submodule(row.path).weight.detach().flatten(1).numpy()
            top = np.abs(weight).max(1, keepdims=True)
            assert row.zeros_before == pytest.approx((weight == 0).mean(), abs=1e-7)
            below, at = np.abs(weight) < half * top * (1 - 1e-6), np.abs(weight) <= half * top * (1 + 1e-6)
            assert below.mean() - 1e-7 <= row.zeros_after <= at.mean() + 1e-7, row.path
        assert max(row.zeros_before for row in rows) > 0
        assert any(row.zeros_after > row.zeros_before for row in rows)


def test_float_formats_keep_fewer_weights_from_zero_than_their_step_suggests() -> None:
    """The report's numbers for one layer, by hand: E2M1 rounds to zero below 1/24 of the largest, INT4 below 1/14."""
    pipe = dit_pipeline()
    rows = {name: report_of(quantize(pipe, name)).layers[3] for name in ("fp4-w4a16", "w4a16")}
    assert rows["fp4-w4a16"].path == rows["w4a16"].path
    assert 0 < rows["fp4-w4a16"].zeros_after < rows["w4a16"].zeros_after


def test_layers_of_all_architectures_are_found(pipe: Any, name: str) -> None:
    made = denoiser(quantize(pipe, "mxfp4"))
    plain = [p for p, m in made.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert plain == []
    assert sum(isinstance(m, QuantizedLayer) for m in made.modules()) > 25
