"""Smoothing folded into what comes before a layer: not a bit of full precision changes, no multiplication is left."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_pipelines
import torch

from analysis.methods import Layer, Request
from analysis.methods._transform import find
from analysis.models.embedded.outliers import add_outliers
from analysis.runner import Calibration, calibrate, quantize, report_of, restore, sample, save
from analysis.runner.folding import Fold, apply, fold, foldable, one_call
from analysis.runner.load import denoiser_name
from analysis.runner.quantize import plan, replaced
from analysis.runner.statistics import PER_COLUMN, Statistics, statistics
from analysis.scheme import scheme
from fpsim.nn.transforms import Smooth

CAPTIONS = ["a b"]


def calibrated(pipe: Any) -> Calibration:
    return calibrate(pipe, CAPTIONS, steps=2)


def output(model: torch.nn.Module, given: Any) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(*given[0], **given[1])[0]
    return made


def test_norms_values_and_gates_of_a_unet() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    found = {one.source: one.targets for one in foldable(pipe.unet, one_call(pipe, calibrated(pipe)))}
    at = "up_blocks.0.attentions.1"
    block = f"{at}.transformer_blocks.0"
    assert {source: targets for source, targets in found.items() if source.startswith(f"{at}.")} == {
        f"{at}.norm": (f"{at}.proj_in",),
        f"{block}.norm1": tuple(f"{block}.attn1.to_{one}" for one in "qkv"),
        f"{block}.norm2": (f"{block}.attn2.to_q",),
        f"{block}.norm3": (f"{block}.ff.net.0.proj",),
        f"{block}.attn1.to_v": (f"{block}.attn1.to_out.0",),
        f"{block}.attn2.to_v": (f"{block}.attn2.to_out.0",),
        f"{block}.ff.net.0.proj": (f"{block}.ff.net.2",),
    }
    assert not any("resnets" in source for source in found)  # SiLU lies between norm and convolution


def test_in_pixart_only_values_of_attention() -> None:
    pipe = tiny_pipelines.dit_pipeline()
    found = foldable(pipe.transformer, one_call(pipe, calibrated(pipe)))
    wanted = {f"transformer_blocks.{i}.attn{j}.to_v" for i in (0, 1) for j in (1, 2)}
    assert {one.source for one in found} == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_same_places(dtype: torch.dtype) -> None:
    pipe = tiny_pipelines.unet_pipeline()
    seen = calibrated(pipe)
    wanted = foldable(pipe.unet, one_call(pipe, seen))
    half = pipe.to(dtype)
    assert foldable(half.unet, one_call(half, seen)) == wanted
    assert half.unet.dtype == dtype


class Leaky(torch.nn.Module):
    """Two norms before a layer each; the output of the second is used beside the layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.first = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
        self.norm2, self.second = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.first(self.norm1(x))
        normal = self.norm2(x)
        return (self.second(normal) + normal,)


def test_a_norm_that_others_read_too_is_left_alone() -> None:
    torch.manual_seed(0)
    found = foldable(Leaky(), ((torch.randn(3, 6),), {}))
    assert found == (Fold(source="norm1", targets=("first",), channels=6),)


@pytest.mark.parametrize("make", [tiny_pipelines.unet_pipeline, tiny_pipelines.dit_pipeline])
def test_in_full_precision_no_bit_changes(make: Any) -> None:
    pipe = make()
    name = denoiser_name(pipe)
    denoiser = getattr(pipe, name)
    before = {path: value.clone() for path, value in denoiser.state_dict().items()}
    seen = calibrated(pipe)
    layers, _, _ = plan(denoiser, scheme("int4-w4a4"))
    request, changed = fold(Request(pipe=pipe, layers=layers, calibration=seen))
    folded, given = getattr(request.pipe, name), one_call(pipe, seen)
    assert torch.equal(output(folded, given), output(denoiser, given))
    assert all(torch.equal(before[path], value) for path, value in denoiser.state_dict().items())
    weights = {path: folded.get_submodule(path).weight for path in request.folded}
    moved = [path for path, weight in weights.items() if not torch.equal(weight, before[f"{path}.weight"])]
    assert moved  # some factor is not 1
    assert {layer.path for layer in request.layers if layer.smoothed} >= set(request.folded)
    assert set(changed) == set(request.folded.values()) - {layer.path for layer in layers}
    assert request.calibration is not None
    assert request.calibration.ranges != seen.ranges
    again = calibrate(request.pipe, seen.captions, seen.seeds, seen.steps, seen.guidance)
    assert request.calibration == again  # not calibrated again, and yet the same to the bit


def test_apply_divides_rows_and_multiplies_columns() -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 8), "b": torch.nn.Linear(4, 2)})
    before: Any = replaced(model, {})
    apply(model, Fold(source="a", targets=("b",), channels=4), torch.tensor([1.0, 2.0, 4.0, 0.5]))
    factor = torch.tensor([1.0, 2.0, 4.0, 0.5, 1, 1, 1, 1])
    assert torch.equal(model["a"].weight * factor[:, None], before["a"].weight)
    assert torch.equal(model["a"].bias * factor, before["a"].bias)
    assert torch.equal(model["b"].weight / factor[:4], before["b"].weight)


def test_what_is_folded_has_no_multiplication_left_and_the_report_says_so(tmp_path: Any) -> None:
    pipe = tiny_pipelines.unet_pipeline()
    add_outliers(pipe.unet)
    made = quantize(pipe, "int8-w8a8", "smoothquant", calibration=calibrated(pipe))
    folded = 0
    for layer in report_of(made).layers:
        multiplies = any(isinstance(part, Smooth) for part in made.unet.get_submodule(layer.path).modules())
        assert multiplies == (layer.smoothing == "at run time")
        folded += (layer.smoothing or "").startswith("folded into ")
    assert folded >= 5 * 7  # of nine layers in each of seven transformer blocks, less keys and values of the text
    save(made, tmp_path / "unet")
    loaded = restore(pipe, tmp_path / "unet")
    assert torch.equal(sample(loaded, CAPTIONS, [1], steps=2), sample(made, CAPTIONS, [1], steps=2))


def test_folded_smoothing_pays_where_there_are_outliers() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    add_outliers(pipe.unet)
    seen = calibrated(pipe)
    given = one_call(pipe, seen)
    wanted = output(pipe.unet, given)
    error = {
        method: float(
            (output(quantize(pipe, "int4-w4a4", method, calibration=seen).unet, given) - wanted).square().mean()
        )
        for method in ("rtn", "smoothquant")
    }
    assert error["smoothquant"] < error["rtn"]


@pytest.mark.parametrize("formats", ["int8-w8a8", "int8-w8a8+per-tensor", "fp4-w4a8+dynamic", "nvfp4"])
def test_no_layer_is_worse_off_with_smoothing_than_without_on_the_inputs_it_was_judged_on(formats: str) -> None:
    pipe = tiny_pipelines.dit_pipeline()
    seen = calibrated(pipe)
    layers = plan(pipe.transformer, scheme(formats))[0]
    inputs = {layer.path: one.rows for layer, one in statistics(pipe, layers, seen, per_column=PER_COLUMN)}
    plain, smooth = (quantize(pipe, formats, method, calibration=seen) for method in ("rtn", "smoothquant"))
    report = report_of(smooth).layers
    folded = {layer.smoothing for layer in report}
    judged = 0
    for layer in report:
        source = pipe.transformer.get_submodule(layer.path)
        if layer.kind != "Linear" or f"folded into {layer.path}" in folded or "folded" in (layer.smoothing or ""):
            continue  # inputs or outputs of others are not these
        rows = inputs[layer.path][:: max(1, len(inputs[layer.path]) // 256)][:256]
        if "+dynamic" in formats or formats == "nvfp4":
            rows = rows[None]  # one sample
        with torch.no_grad():
            wanted = source(rows)
            without, with_it = (
                float((made.transformer.get_submodule(layer.path)(rows) - wanted).square().mean())
                for made in (plain, smooth)
            )
        # Judged without the bias, which takes part in no rounding but the last, of 2^-24: far less than this.
        assert with_it <= without * (1 + 1e-3), layer.path
        if layer.smoothing is None:
            assert with_it == without
        judged += with_it < without
    assert judged > 5


def test_where_nothing_is_to_be_gained_there_is_no_transform() -> None:
    """Inputs and weights on their grids already: without smoothing not a bit is lost."""
    torch.manual_seed(0)
    module = torch.nn.Linear(16, 8, bias=False)
    module.weight.data = torch.randint(-127, 128, (8, 16)).float()
    module.weight.data[:, 0] = 127
    rows = torch.randint(-127, 128, (300, 16)) * torch.tensor([1.0] * 15 + [0.0])
    rows[0, 0] = 127
    eight = scheme("int8-w8a8").rules[0]
    assert eight.weight is not None
    layer = Layer(path="one", kind="Linear", module=module, weight=eight.weight, activation=eight.activation)
    seen = Statistics(gram=rows.T @ rows, rows=rows, channel_low=rows.amin(0), channel_high=rows.amax(0))
    assert find(layer, module.weight.data, "smooth", 8, seen) is None
    scaled = replace(seen, rows=rows * torch.logspace(0, 2, 16), channel_high=127 * torch.logspace(0, 2, 16))
    assert find(layer, module.weight.data, "smooth", 8, scaled) is not None


def test_without_calibration_there_is_nothing_to_go_by() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    with pytest.raises(ValueError, match="pass calibration="):
        quantize(pipe, "int8-w8a8+dynamic", "smoothquant")
