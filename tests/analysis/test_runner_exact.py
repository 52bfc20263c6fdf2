"""Exact arithmetic under every method: which operands an engine gets, and one line where it has none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

import fpsim
from analysis.methods import METHODS
from analysis.runner import Calibration, calibrate, load, quantize, report_of, sample
from analysis.runner.quantize import engine_for
from analysis.scheme import Rule, Scheme, scheme
from fpsim.nn import QuantizedLayer, QuantizedLinear, Quantizer
from fpsim.nn.exact import holds, recode
from fpsim.nn.quantizer import resolve

CAPTIONS, SEEDS = ["a red ring"], [1]
QUICK = {"samples": 2, "steps": 1}


@pytest.fixture(scope="module")
def dit() -> DiffusionPipeline:
    return dit_pipeline()


@pytest.fixture(scope="module")
def calibration(dit: DiffusionPipeline) -> Calibration:
    return calibrate(dit, CAPTIONS, steps=10)


def within(name: str, pattern: str) -> Scheme:
    """A preset for some layers: what methods do is the same for each, and takes its time."""
    made = scheme(name)
    return replace(made, rules=tuple(replace(rule, pattern=pattern) for rule in made.rules))


def operands(pipe: DiffusionPipeline) -> set[tuple[str, str]]:
    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, QuantizedLayer)]
    return {(layer.spec.a.name, layer.spec.b.name) for layer in layers if layer.spec is not None}


# -- which operands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "a", "b", "wanted"),
    [
        ("hopper/wgmma", "e4m3", "e2m1", ("e4m3", "e4m3")),
        ("hopper/wgmma", "e5m2", "e1m2-finite", ("e5m2", "e4m3")),
        ("hopper/wgmma", "e2m3", "e3m2", ("e4m3", "e4m3")),
        ("hopper/wgmma", "uint8", "int4", ("uint8", "int8")),
        ("rtx-blackwell/mma", "e2m1", "e2m3", ("e2m1", "e2m3")),
        ("generic/fp32", "e3m4-finite", "e2m1", ("bf16", "e2m1")),
        ("generic/fp32", "e1m6-finite", "e1m6-finite", ("bf16", "bf16")),
        ("generic/fp32", "ue4m4", "e4m3", ("bf16", "e4m3")),
        ("x86/vpdpbusd", "uint4", "int4", ("uint8", "int8")),
        ("ampere/mma", "int4", "int4", ("int4", "int4")),
    ],
)
def test_the_narrowest_operands_that_hold_both(engine: str, a: str, b: str, wanted: tuple[str, str]) -> None:
    spec = engine_for(engine, Quantizer(format=a), Quantizer(format=b))
    assert (spec.a.name, spec.b.name) == wanted
    assert spec.engine == engine


@pytest.mark.parametrize(
    ("engine", "a", "b", "able"),
    [
        ("hopper/wgmma", "e3m4", "e4m3", "these do: generic/fp32"),
        ("hopper/wgmma", "ue4m4", "e4m3", "these do: generic/fp32"),
        ("hopper/wgmma", "e4m3-finite", "e4m3", "these do: generic/fp32"),
        ("ampere/mma", "e4m3", "e4m3", "these do: ada/mma, hopper/mma"),
        ("hopper/wgmma", "int8", "e4m3", "none here does"),
    ],
)
def test_operands_that_an_engine_lacks(engine: str, a: str, b: str, able: str) -> None:
    with pytest.raises(ValueError, match=f"engine '{engine}' does not take a='{a}', b='{b}'.*{able}") as caught:
        engine_for(engine, Quantizer(format=a), Quantizer(format=b))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["e2m1", "e4m3", "e3m4-finite", "ue4m4", "e1m6-finite", "ue2m2", "e5m2"])
@pytest.mark.parametrize("wide", ["bf16", "f16", "f32"])
def test_widened_codes_have_the_same_values(name: str, wide: str) -> None:
    narrow, row = resolve(name), resolve(wide)
    codes = torch.arange(1 << narrow.bits).to(torch.uint8)
    values = fpsim.decode(codes.numpy(), narrow)
    finite = np.isfinite(values)
    if not holds(row, narrow):
        assert (fpsim.quantize(values[finite], row) != values[finite]).any()
        return
    made = recode(codes, narrow, row).numpy()
    back = made if wide == "f32" else fpsim.decode(made.view(np.uint16), row)
    assert np.array_equal(back[finite].view(np.uint32), values[finite].astype(np.float32).view(np.uint32))


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"), [("e4m3", "e1m2-finite"), ("e2m5-finite", "e3m0-finite"), ("ue4m4", "e2m1"), ("e3m4", "e2m3")]
)
def test_a_layer_on_widened_operands_is_the_product_of_its_values(a: str, b: str) -> None:
    """A fused multiply-add of float32 does not see in which operand format a value came: the reference gets float32."""
    torch.manual_seed(0)
    source, x = torch.nn.Linear(37, 5, bias=False), torch.randn(3, 37)
    weight = Quantizer(format=b, granularity="channel")
    activation = Quantizer(format=a, granularity="token", range="dynamic")
    spec = engine_for("generic/fp32", activation, weight)
    layer = QuantizedLinear.from_float(source, weight=weight, activation=activation, spec=spec)
    codes, _, scales = layer.encode_input(x)
    assert scales is not None
    left = fpsim.decode(codes.numpy(), resolve(a)).astype(np.float32)
    right = fpsim.decode(layer.weight_codes.numpy(), resolve(b)).astype(np.float32)
    product = fpsim.matmul(left, right.T.copy(), fpsim.engine("generic/fp32", "f32"), backend="reference")
    steps = scales.step.numpy() * layer.weight_step.numpy().T
    exact = layer.exact(x, spec).numpy()
    assert np.array_equal(exact.view(np.uint32), (product * steps).view(np.uint32))
    # Sums of 37 products in another order: 37 * 2^-24 of the sum of magnitudes; a zero point's part is as large again.
    plain = QuantizedLinear.from_float(source, weight=weight, activation=activation)
    bound = 4 * 37 * 2.0**-24 * (x.abs() @ source.weight.abs().T).max()
    assert (layer(x) - plain(x)).abs().max() <= bound


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_an_engine_that_holds_its_formats(
    dit: DiffusionPipeline, calibration: Calibration, name: str
) -> None:
    whole = name in ("a2q", "oaq", "q-diffusion")  # the first two are about integer registers
    made = within("int8-w8a8" if whole else "fp4-w4a4+asymmetric", "transformer_blocks.0.attn1.*")
    options = QUICK if name in ("adaround", "fp-ptq", "q-diffusion", "gptaq") else {}
    exact = quantize(dit, made.exact("hopper/wgmma"), method=name, calibration=calibration, **options)
    assert operands(exact) == {("int8", "int8") if whole else ("e4m3", "e4m3")}
    assert {row.engine for row in report_of(exact).layers} == {"hopper/wgmma"}
    assert sample(exact, CAPTIONS, SEEDS, steps=1).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", ["fp-search", "fp-ptq"])
def test_searched_splits_run_where_an_engine_has_them(
    dit: DiffusionPipeline, calibration: Calibration, tmp_path: Path, name: str
) -> None:
    made = within("fp8-w8a8+asymmetric", "*.ff.net.*")
    options = QUICK if name == "fp-ptq" else {}
    with pytest.raises(ValueError, match=r"layer transformer_blocks\.0\.ff\..*: engine 'hopper/wgmma' does not take"):
        quantize(dit, made.exact("hopper/wgmma"), method=name, calibration=calibration, **options)
    exact = quantize(dit, made.exact("generic/fp32"), method=name, calibration=calibration, **options)
    assert operands(exact) == {("bf16", "bf16")}
    assert {row.weight for row in report_of(exact).layers} != {"e4m3 per output channel"}
    images = sample(exact, CAPTIONS, SEEDS, steps=1)
    exact.save_pretrained(tmp_path)
    assert torch.equal(sample(load(tmp_path), CAPTIONS, SEEDS, steps=1), images)


@pytest.mark.parametrize(
    ("formats", "options", "runs"),
    [
        ("fp8-w8a8", {"method": "fp-search", "split": False}, True),  # a searched clip is just another scale
        ("fp8-w8a8+timesteps", {}, True),
        ("fp8-w8a8+dynamic", {"method": "hadamard"}, True),
        ("fp8-w8a8", {"rank": 2}, True),
        ("fp8-w8a8+g32", {}, True),
        ("fp8-w8a8+asymmetric", {}, False),
    ],
)
def test_options_in_exact_arithmetic(
    dit: DiffusionPipeline, calibration: Calibration, formats: str, options: dict[str, Any], runs: bool
) -> None:
    made = within(formats, "transformer_blocks.0.ff.*").exact("hopper/wgmma")
    if not runs:
        with pytest.raises(ValueError, match=r"layer [\w.]+: engine 'hopper/wgmma' does not take a='ue4m4', b='e4m3'"):
            quantize(dit, made, calibration=calibration, **options)
        return
    exact = quantize(dit, made, calibration=calibration, **options)
    assert operands(exact) == {("e4m3", "e4m3")}
    assert sample(exact, CAPTIONS, SEEDS, steps=1).isfinite().all()


def test_both_halves_of_a_split_concatenation_run_on_the_engine() -> None:
    pipe = unet_pipeline()
    ranges = calibrate(pipe, CAPTIONS, steps=1)
    made = quantize(pipe, scheme("int8-w8a8").exact("generic/int32"), calibration=ranges, concat=True)
    cut = [module for module in made.unet.modules() if hasattr(module, "halves")]
    assert cut
    assert {part.spec.engine for module in cut for part in module.halves} == {"generic/int32"}
    assert sample(made, CAPTIONS, SEEDS, steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        (Quantizer(format="uint4", granularity="channel"), Quantizer(format="int8"), "weights without a zero point"),
        (
            Quantizer(format="int8", granularity="channel"),
            Quantizer(format="uint8", granularity="block", group=16, range="dynamic"),
            "one zero point per tensor or token, not per block of 16",
        ),
    ],
)
def test_zero_points_that_do_not_leave_the_sum_name_the_layer(
    dit: DiffusionPipeline, calibration: Calibration, weight: Quantizer, activation: Quantizer, message: str
) -> None:
    rule = Rule(weight=weight, activation=activation, spec="generic/int32")
    with pytest.raises(ValueError, match=rf"layer pos_embed\.proj: .*{message}"):
        quantize(dit, Scheme(name="mine", rules=(rule,), arithmetic="exact"), calibration=calibration)
