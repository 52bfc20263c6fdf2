"""Attention stage by stage: both products by the reference, the softmax by scalar float32 operations."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

import fpsim
from fpsim import reference
from fpsim._attention import exponential
from fpsim.accumulators import SequentialFma
from fpsim.spec import MatmulSpec
from tests.strategies import assert_same_bits, bits

WGMMA = fpsim.engine("hopper/wgmma", "e4m3")


def exact_exp(x: float) -> np.float32:
    """exp rounded once to float32: 40 digits, then the codec's truth."""
    with localcontext() as context:
        context.prec = 40
        value = Fraction(Decimal(x).exp())
    scaled = value * 2**200  # a binary fraction close enough: below 2**-150 of exp(-104) at least
    number = reference.Number("finite", False, int(scaled * 2**100), 0, 300)
    return np.array(reference.encode(number, "f32"), np.uint32).view(np.float32)[()]


def test_exponential_is_correctly_rounded_here() -> None:
    rng = np.random.default_rng(20)
    x = np.concatenate(
        [-rng.exponential(8, 3000), -rng.uniform(0, 1e-3, 500), [0, -87.5, -103.9, -104.5, -1e30, -np.inf]]
    )
    x = x.astype(np.float32)
    want = np.array([exact_exp(float(v)) if np.isfinite(v) and v > -200 else np.float32(0) for v in x])
    assert_same_bits(exponential(x), want)
    assert np.isnan(exponential(np.array([np.nan], np.float32)))[0]


def by_hand(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, spec: MatmulSpec, pv: MatmulSpec, scale: np.float32, after: bool
) -> tuple[list[list[int]], list[list[float]]]:
    """Codes of P and the outputs of one head, one value at a time."""
    codes, outputs = [], []
    for query in q.tolist():
        scores = [np.array(reference.dot(query, key, 0, spec), np.uint32).view(np.float32)[()] for key in k.tolist()]
        x = [score * scale for score in scores]
        e = [exact_exp(float(value - max(x))) for value in x]
        total = e[0]
        for value in e[1:]:
            total = total + value
        p = e if after else [value / total for value in e]
        row = [int(fpsim.encode(value * np.float32(256), pv.a)) for value in p]
        made = [np.array(reference.dot(row, column, 0, pv), np.uint32).view(np.float32)[()] for column in v.T.tolist()]
        codes.append(row)
        outputs.append([float((y / total if after else y) * np.float32(1 / 256)) for y in made])
    return codes, outputs


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_every_stage_equals_the_definition(normalize: str) -> None:
    rng = np.random.default_rng(21)
    q, k, v = (fpsim.encode(rng.standard_normal(s), "e4m3") for s in ((2, 3, 40), (2, 7, 40), (2, 7, 5)))
    made = fpsim.attention(q, k, v, WGMMA, p_scale=256.0, normalize=normalize)
    assert_same_bits(made.scores, fpsim.matmul(q, np.swapaxes(k, 1, 2), WGMMA))
    assert_same_bits(made.values, fpsim.matmul(made.codes, v, WGMMA))
    for head in range(2):
        scale = np.float32(1 / np.sqrt(40))
        codes, outputs = by_hand(q[head], k[head], v[head], WGMMA, WGMMA, scale, normalize == "after")
        assert made.codes[head].tolist() == codes
        assert made.output[head].tolist() == outputs


def test_close_to_torch_in_wide_arithmetic() -> None:
    """float32 everywhere against torch in float64, within the sum of all roundings u = 2**-24.

    A score of 16 products is off by (16 + 1) u of sum |q||k| * scale, a ratio e / l by twice that and by 64 u of the
    sum's additions and 3 u of subtraction, exponential and division; an output of 64 products by 64 u more.
    """
    rng = np.random.default_rng(22)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 10, 16), (2, 1, 64, 16), (1, 4, 64, 8)))
    spec = MatmulSpec("f32", "f32", SequentialFma("f32"))
    mask = np.where(np.arange(64) < 50, 0, -np.inf).astype(np.float32)
    made = fpsim.attention(q, k, v, spec, mask=mask)
    tensors = [torch.from_numpy(np.broadcast_to(x, (2, 4, *x.shape[2:])).astype(np.float64)) for x in (q, k, v)]
    tensor_mask = torch.from_numpy(np.tile(mask.astype(np.float64), (10, 1)))
    want = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=tensor_mask)
    assert made.output.shape == (2, 4, 10, 8)
    size = (np.abs(q) @ np.swapaxes(np.abs(k), -1, -2)).max() / 4
    bound = (2 * 17 * size + 64 + 3 + 64) * 2.0**-24 * np.abs(v).max()
    assert np.abs(made.output - want.numpy()).max() < bound < 1e-3
    assert (made.probabilities[..., 50:] == 0).all()


def test_mixed_engines_and_integers() -> None:
    """int8 scores dequantized by the scale, P kept in bf16 for a second product on another engine."""
    rng = np.random.default_rng(23)
    q, k = rng.integers(-127, 128, (6, 32)).astype(np.int8), rng.integers(-127, 128, (9, 32)).astype(np.int8)
    v = fpsim.encode(rng.standard_normal((9, 4)), "bf16")
    spec, pv = fpsim.engine("generic/int32", "int8"), fpsim.engine("hopper/wgmma", "bf16")
    made = fpsim.attention(q, k, v, spec, pv, scale=np.full((6, 1), 2e-5, np.float32), output_scale=0.5)
    assert made.scores.dtype == np.int32
    assert (made.scores == q.astype(int) @ k.astype(int).T).all()
    assert_same_bits(made.codes, fpsim.encode(made.probabilities, "bf16"))
    assert_same_bits(made.output, fpsim.matmul(made.codes, v, pv) * np.float32(0.5))
    assert (np.abs(made.probabilities.sum(axis=-1) - 1) < 9 * 2.0**-24).all()


def test_nothing_is_written_into_and_tensors_are_taken() -> None:
    rng = np.random.default_rng(24)
    q, k, v = (torch.from_numpy(rng.standard_normal(s)).to(torch.float8_e4m3fn) for s in ((3, 16), (5, 16), (5, 8)))
    made = fpsim.attention(q, k, v, WGMMA)
    codes = [x.view(torch.uint8).numpy() for x in (q, k, v)]
    for array in codes:
        array.flags.writeable = False
    assert_same_bits(made.output, fpsim.attention(*codes, WGMMA).output)
    assert bits(made.output).any()


def test_errors_say_what_is_possible() -> None:
    q = np.zeros((3, 16), np.uint8)
    with pytest.raises(ValueError, match=r"q, k and v are \(3, 16\), \(3, 16\) and \(2, 16\); allowed"):
        fpsim.attention(q, q, q[:2], WGMMA)
    with pytest.raises(ValueError, match="as many keys as values, at least one"):
        fpsim.attention(q, q[:0], q[:0], WGMMA)
    with pytest.raises(ValueError, match="pv is hopper/scaled_mm; attention takes engines without block scales"):
        fpsim.attention(q, q, q, WGMMA, fpsim.engine("hopper/scaled_mm", "e4m3"))
    with pytest.raises(ValueError, match="unknown normalization 'never'"):
        fpsim.attention(q, q, q, WGMMA, normalize="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask does not broadcast to \(3, 3\)"):
        fpsim.attention(q, q, q, WGMMA, mask=np.zeros((2, 3, 3), np.float32))
