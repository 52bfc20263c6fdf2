"""Weights that fit a register: projections, the guarantee through the emulator, both methods, and training."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import unet_pipeline

import analysis
import fpsim
from analysis.accumulators import a2q_training
from analysis.accumulators.partial_sums import adversary, by_weight, matrix, reach
from analysis.accumulators.registers import Register
from analysis.methods import Request, oaq
from analysis.methods._bound import Ball, balls, fitted, projected
from analysis.models.embedded.optimise import Run
from analysis.runner import calibrate
from analysis.runner.quantize import plan
from analysis.runner.statistics import as_matrix, statistics
from analysis.scheme import scheme
from fpsim.nn.layer import QuantizedLayer

CAPTIONS = ["a red ball", "two green boxes"]
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7)}


def draws(rows: int, k: int, spread: float = 40.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, k, generator=generator, dtype=torch.float64) * spread).clamp(-128, 127)


def test_the_projection_is_the_nearest_point() -> None:
    ball, weights = Ball(positive=127, negative=128, size=32767), draws(6, 40)
    weights[5] = 0.01  # inside
    found = projected(weights, ball)
    assert torch.equal(found[5], weights[5])
    cost = ball.cost(found)
    # sums of 40 products below 2**15, each rounded at 2**-53 of itself
    assert (cost[:5] - ball.size).abs().max() < 40 * 2**15 * 2**-52
    assert (found * weights >= 0).all()
    assert (found.abs() <= weights.abs()).all()
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):  # no other point of the ball is nearer
        other = weights * torch.rand(6, 40, generator=generator)
        other = other * (ball.size / ball.cost(other)).clamp(max=1)[:, None]
        blend = found + (other - found) * 0.01
        for point in (other, blend):
            assert ((point - weights).square().sum(1) >= (found - weights).square().sum(1) - 1e-9).all()


@pytest.mark.parametrize("rounding", ["toward-zero", "nearest"])
@pytest.mark.parametrize("sign_aware", [False, True])
@pytest.mark.parametrize("inputs", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("bits", [12, 16])
def test_fitted_weights_never_overflow(inputs: str, bits: int, sign_aware: bool, rounding: str) -> None:
    low, high = RANGES[inputs]
    register, k = Register(bits=bits), 300
    weights = fitted(draws(8, k), low, high, register, sign_aware=sign_aware, rounding=rounding)  # type: ignore[arg-type]
    whole = weights.numpy()
    assert (whole == np.rint(whole)).all()
    assert by_weight(whole, low, high) <= bits
    for ball in balls(low, high, bits, sign_aware):
        assert (ball.cost(weights) <= ball.size).all()
    rng = np.random.default_rng(1)
    worst = adversary(whole, low, high)
    a = np.concatenate([rng.integers(low, high + 1, (20, k)), worst, np.where(rng.random((6, k)) < 0.5, low, high)])
    for order in (np.arange(k), rng.permutation(k), np.argsort(-whole[0] * worst[0])):
        x = np.ascontiguousarray(a[:, order]).astype(np.uint8 if inputs == "uint8" else np.int8)
        y = np.ascontiguousarray(whole[:, order].T).astype(np.int8)
        results = [
            fpsim.matmul(x, y, fpsim.MatmulSpec(inputs, "int8", fpsim.IntegerAccumulator(bits=width, overflow=rule)))
            for width, rule in ((48, "wrap"), (bits, "wrap"), (bits, "saturate"), (bits, "error"))
        ]
        for result in results[1:]:  # "error" would also have raised for a partial sum that wraps back
            assert (result == results[0]).all()
    if by_weight(whole, low, high) == bits:  # a layer at the bound
        narrow = fpsim.MatmulSpec(inputs, "int8", fpsim.IntegerAccumulator(bits=bits - 1, overflow="wrap"))
        x = worst.astype(np.uint8 if inputs == "uint8" else np.int8)
        y = np.ascontiguousarray(whole.T).astype(np.int8)
        assert (fpsim.matmul(x, y, narrow) != worst @ whole.T).any()


@pytest.mark.parametrize("bits", [12, 16, 20])
def test_the_bound_is_used_up(bits: int) -> None:
    """Weights that are too large by far end at the bound, not below: one bit less overflows."""
    whole = fitted(draws(8, 300), -128, 127, Register(bits=bits), sign_aware=False, rounding="nearest").numpy()
    assert by_weight(whole, -128, 127) == bits


def test_signs_leave_twice_the_room_for_inputs_without_one() -> None:
    weights = draws(4, 400)
    one, two = (
        fitted(weights, 0, 255, Register(bits=16), sign_aware=aware, rounding="nearest").abs().sum(1)
        for aware in (False, True)
    )
    assert (one <= 32767 // 255).all()
    assert (two > 1.9 * 32767 / 255).all()
    assert (two <= (32767 + 32768) / 255).all()


def test_truncation_loses_what_nearest_keeps() -> None:
    weights = draws(4, 100, spread=0.6)
    close = fitted(weights, -128, 127, Register(bits=20), sign_aware=False, rounding="nearest")
    assert torch.equal(close, weights.round())  # nothing to give up
    short = fitted(weights, -128, 127, Register(bits=20), sign_aware=False)
    assert torch.equal(short, weights.trunc())
    with pytest.raises(ValueError, match="unknown rounding"):
        fitted(weights, -128, 127, Register(bits=20), sign_aware=False, rounding="up")  # type: ignore[arg-type]


def test_tiles_bound_each_tile_and_the_whole() -> None:
    register = Register(bits=14, tile=32, outer=16)
    whole = fitted(draws(5, 150), -128, 127, register, sign_aware=True, rounding="nearest").numpy()
    assert by_weight(whole, -128, 127) <= 16
    for start in range(0, 150, 32):
        assert by_weight(whole[:, start : start + 32], -128, 127) <= 14
    a = np.concatenate([adversary(whole, -128, 127), np.random.default_rng(0).choice([-128, 127], (30, 150))])
    a, b = a.astype(np.int8), np.ascontiguousarray(whole.T).astype(np.int8)
    held = fpsim.matmul(a, b, fpsim.MatmulSpec("int8", "int8", register.accumulator("error")))
    assert (held == a.astype(np.int64) @ whole.T.astype(np.int64)).all()
    lows, highs = reach(whole, -128, 127)
    assert max(*highs, *(-lows)) > 2**13  # more than the inner register would hold


@pytest.fixture(scope="module")
def made():
    pipe = unet_pipeline()
    return pipe, calibrate(pipe, CAPTIONS, steps=2)


def layers(pipe) -> dict[str, QuantizedLayer]:
    return {path: one for path, one in pipe.unet.named_modules() if isinstance(one, QuantizedLayer)}


@pytest.mark.parametrize(
    ("name", "options", "bits"),
    [
        ("int8-w8a8", {"bits": 16}, 16),
        ("int8-w8a8", {"bits": 14, "rounding": "nearest"}, 14),
        ("int8-w8a8+asymmetric", {"bits": 16, "sign_aware": True, "rounding": "nearest"}, 16),
        ("int4-w4a8", {"bits": 13}, 13),
        ("int8-w8a8+per-tensor+dynamic", {"bits": 12, "tile": 16, "outer": 20, "rounding": "nearest"}, 20),
    ],
)
def test_every_layer_of_a_model_fits(made, name: str, options: dict[str, object], bits: int) -> None:
    pipe, calibration = made
    found = layers(analysis.quantize(pipe, name, "a2q", calibration, **options))
    plain = layers(analysis.quantize(pipe, name, "rtn", calibration))
    assert found.keys() == plain.keys()
    for path, layer in found.items():
        low, high = (0, 255) if layer.activation_quantizer.has_zero else (-128, 127)
        whole = matrix(layer).numpy()
        assert by_weight(whole, low, high) <= bits, path
        if "tile" in options:
            parts = [whole[:, i : i + 16] for i in range(0, whole.shape[1], 16)]
            assert max(by_weight(part, low, high) for part in parts) <= 12, path
    # not empty, and on the weights' side: what is left correlates with round to nearest
    kept = sum(float((found[p].weight * plain[p].weight).sum()) for p in found)
    assert kept > 0


def test_searched_steps_lose_less(made) -> None:
    pipe, calibration = made
    one, two = (
        layers(analysis.quantize(pipe, "int8-w8a8", "a2q", calibration, bits=14, search=search))
        for search in (False, True)
    )
    originals = dict(pipe.unet.named_modules())
    for path in one:
        wanted = originals[path].weight.detach()
        lost = [float((found[path].weight - wanted).square().sum()) for found in (one, two)]
        assert lost[1] <= lost[0] * (1 + 1e-5), path  # float32 steps: the same choice may differ in the last bits


@pytest.mark.parametrize("method", ["a2q", "oaq"])
def test_what_makes_no_sense_is_refused(made, method: str) -> None:
    pipe, calibration = made
    for name, options, words in (
        ("int8-w8a8", {}, "bits=16"),
        ("int8-w8a8", {"bits": 16, "colour": 3}, "unknown option 'colour'"),
        ("int8-w8a8", {"bits": 16, "tile": 3}, "go together"),
        ("int8-w8a8", {"bits": 99}, "2 to 63"),
        ("fp8-w8a8", {"bits": 16}, "integer activations"),
        ("w8a16", {"bits": 16}, "integer activations"),
        ("int8-w8a8+g32", {"bits": 16}, "per tensor or channel"),
    ):
        with pytest.raises(ValueError, match=words):
            analysis.quantize(pipe, name, method, calibration, **options)


def test_the_width_may_come_from_the_engine(made) -> None:
    pipe, calibration = made
    exact = scheme("int8-w8a8").exact("turing/mma")
    found = layers(analysis.quantize(pipe, exact, "a2q", calibration))
    assert all(by_weight(matrix(one).numpy(), -128, 127) <= 32 for one in found.values())


@pytest.mark.parametrize("options", [{}, {"enlarge": "activation"}, {"enlarge": "both"}, {"tile": 16, "outer": 17}])
def test_overflow_aware_steps_are_the_finest_that_fit(made, options: dict[str, object]) -> None:
    pipe, calibration = made
    settings = oaq.Options(bits=14, rows=64, **options)  # type: ignore[arg-type]
    register = Register(bits=14, tile=settings.tile, outer=settings.outer)
    wanted, _, _ = plan(pipe.unet, scheme("int8-w8a8"))
    request = Request(pipe=pipe, layers=wanted, calibration=calibration)
    coarser = 0
    for layer, seen in statistics(pipe, wanted[::7], calibration, 64, 64):
        found, alpha = oaq.enlarged(request, layer, register, settings, seen.rows)
        assert oaq._fits(found, register, 0.0, seen.rows)
        index = round(np.log2(alpha) * oaq.PER_OCTAVE)
        if index:
            coarser += 1
            assert not oaq._fits(oaq._built(request, layer, settings, index - 1), register, 0.0, seen.rows)
    assert coarser
    with pytest.raises(ValueError, match="give it more"):
        oaq.enlarged(request, layer, Register(bits=2), oaq.Options(bits=2, enlarge="both"), seen.rows * 1e6)


def test_overflow_aware_needs_calibration_and_sane_options(made) -> None:
    pipe, _ = made
    with pytest.raises(ValueError, match="calibration"):
        analysis.quantize(pipe, "int8-w8a8", "oaq", None, bits=16)
    with pytest.raises(ValueError, match="unknown enlarge"):
        oaq.Options(enlarge="neither")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        oaq.Options(tolerance=1.5)


def run_of(out, steps: int, stop: float = float("inf")) -> Run:
    config = {"steps": steps, "batch": 2, "learning_rate": 0.03, "weight_decay": 0.0, "warmup": 1, "ema": 0.9}
    return Run(
        stage="a2q", out=out, device=torch.device("cpu"), seed=0, config=config, object_weights=[],
        seconds=float("inf"), stop_after=stop, compile=False,
    )  # fmt: skip


def test_training_starts_where_the_projection_ends(made) -> None:
    pipe, calibration = made
    register = Register(bits=13, tile=24, outer=18)
    whole = scheme("int8-w8a8")
    part = replace(whole, rules=(replace(whole.rules[0], pattern="re:conv_in|down_blocks.1.attentions.*"),))
    begun = a2q_training.network(pipe, part, register, calibration, "nearest").export()
    settings = {"bits": 13, "tile": 24, "outer": 18, "search": True, "rounding": "nearest"}
    for path, layer in layers(analysis.quantize(pipe, part, "a2q", calibration, **settings)).items():
        projection = as_matrix(begun[f"{path}/codes"]).numpy()
        # latent weights are float32 quotients: one on the edge between two integers may fall to the other side
        assert (projection == matrix(layer).numpy()).mean() > 0.999, path
        # a step is kept as its log2 / 0.05, below 256 and thus within 2**-17: 0.05 * ln 2 * 2**-17 of itself, and exp2
        torch.testing.assert_close(begun[f"{path}/step"], layer.weight_step, rtol=1e-6, atol=0)


def test_the_error_is_that_of_guided_pairs(made) -> None:
    pipe, calibration = made
    data = a2q_training.lessons(pipe, calibration, 8, seed=0)
    assert data.pairs.shape == (len(data.answers) // 2, 2)

    class Wrong(torch.nn.Module):
        """Off by 1 without the condition, by 2 with it, where the true denoiser is right."""

        def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
            answer = pipe.unet(*args, **kwargs)[0]
            off = torch.ones(len(answer)).index_fill(0, torch.arange(len(answer) // 2, len(answer)), 2.0)
            return (answer + off[:, None, None, None],)

    which = torch.arange(2)
    power = data.answers[data.pairs[which].T.flatten()].square().mean()
    guided = 1 + calibration.guidance * (2 - 1)
    wanted = ((1 + 4) / 2 + guided**2) / 2 / power
    with torch.no_grad():
        torch.testing.assert_close(data.error(Wrong(), which), wanted, rtol=1e-4, atol=0)  # float32 differences


@pytest.mark.parametrize("rounding", ["nearest", "toward-zero"])
def test_training_keeps_the_bound_learns_and_resumes(made, tmp_path, rounding: Any) -> None:
    pipe, calibration = made
    register = Register(bits=13, tile=24, outer=18)
    whole = scheme("int8-w8a8")
    part = replace(whole, rules=(replace(whole.rules[0], pattern="re:conv_in|down_blocks.1.attentions.*"),))
    results = []
    for name, stops in (("one", [5.0]), ("two", [2.0, 5.0])):
        out = tmp_path / name
        out.mkdir()
        for stop in stops:
            found = a2q_training.train(pipe, part, register, calibration, run_of(out, 5, stop), 8, rounding)
        results.append(found)
    log = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["after"] > log[0]["before"]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
    file = tmp_path / "weights.safetensors"
    save_file(results[0], file)
    settings = {"bits": 13, "tile": 24, "outer": 18, "trained": str(file)}
    trained = layers(analysis.quantize(pipe, part, "a2q", calibration, **settings))
    for path, layer in trained.items():
        held = matrix(layer).numpy()
        assert (held == as_matrix(results[0][f"{path}/codes"]).numpy()).all()
        assert max(by_weight(held[:, i : i + 24], -128, 127) for i in range(0, held.shape[1], 24)) <= 13
    for options, words in (
        ({**settings, "bits": 10}, "do not fit int10"),
        ({**settings, "trained": "nowhere"}, "no trained weights"),
    ):
        with pytest.raises(ValueError, match=words):
            analysis.quantize(pipe, part, "a2q", calibration, **options)
