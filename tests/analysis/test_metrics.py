"""The decoder on scenes whose truth is known, and every metric against a closed form."""

import math
import time

import numpy as np
import pytest
import torch

from analysis import decoder, judge, metrics, scenes


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_clean_renders_are_read_right(objects: int) -> None:
    drawn = scenes.held_out(1024, objects, seed=objects)
    read = decoder.decode(scenes.render(drawn))
    assert decoder.all_correct(read, drawn).float().mean() >= 0.995
    # Offsets are read on a grid of half a pixel, so the truth lies within a quarter pixel of the right one; ties and
    # symmetric fills may pick the neighbour.
    assert read.offset.abs().max() <= scenes.JITTER


def test_novel_pairs_are_read_as_well() -> None:
    drawn = scenes.held_out(512, seed=9, novel=True)
    assert decoder.all_correct(decoder.decode(scenes.render(drawn)), drawn).float().mean() >= 0.995


def test_a_wrong_attribute_is_seen() -> None:
    drawn = scenes.held_out(64, objects=2, seed=5)
    image = scenes.render(drawn)
    for name, count in (("shape", 6), ("colour", 10), ("size", 3), ("fill", 3)):
        changed = getattr(drawn, name).clone()
        changed[:, 0] = (changed[:, 0] + 1) % count
        asked = scenes.Scenes(**{**drawn.__dict__, name: changed})
        assert not decoder.all_correct(decoder.decode(image), asked).any()
        assert decoder.attribute_accuracy(decoder.decode(image), asked)[name] == 0.5
    elsewhere = scenes.Scenes(**{**drawn.__dict__, "background": (drawn.background + 1) % 6})
    assert decoder.attribute_accuracy(decoder.decode(image), elsewhere)["background"] == 0


def test_noise_and_blur_move_the_residual_in_order() -> None:
    drawn = scenes.held_out(128, seed=6)
    image = scenes.render(drawn)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    residuals = [
        float(metrics.evaluate((image + sigma * noise).clamp(0, 1), drawn).residual.median())
        for sigma in (0.0, 0.03, 0.1)
    ]
    assert residuals[0] < residuals[1] < residuals[2]


def test_the_residual_is_the_squared_error_to_a_render() -> None:
    # Zero jitter lies on the decoder's grid of offsets, so the nearest legal scene is the scene itself, bit for bit.
    drawn = scenes.parse(scenes.held_out(64, seed=7).captions())
    read = decoder.decode(scenes.render(drawn))
    assert torch.equal(read.nearest_legal(), scenes.render(drawn))


def test_the_decoder_is_fast_enough() -> None:
    image = scenes.render(scenes.held_out(128, seed=8))
    decoder.decode(image[:32])
    started = time.perf_counter()
    decoder.decode(image)
    assert len(image) / (time.perf_counter() - started) >= 50


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[N, 3, 64, 64\]"):
        decoder.decode(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="2 images for 3 scenes"):
        metrics.evaluate(torch.zeros(2, 3, 64, 64), scenes.held_out(3))
    assert len(decoder.decode(torch.zeros(0, 3, 64, 64)).cells) == 0


def test_psnr_and_ssim() -> None:
    image = scenes.render(scenes.held_out(4, seed=1))
    # A constant error of 1/16 is exact in float32 after the shift into [0.25, 0.75]; PSNR = -20 log10(1/16).
    base = image / 2 + 0.25
    assert metrics.psnr(base + 0.0625, base) == pytest.approx(-20 * math.log10(0.0625), abs=1e-4)
    assert torch.isinf(metrics.psnr(image, image)).all()
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert (metrics.ssim(blurred, image) < metrics.ssim(image, image)).all()


def test_frechet_distance_of_known_gaussians() -> None:
    # Points at +-s e_i have mean zero and covariance s^2 * variance * I, so the distance between two such sets is
    # |shift|^2 + 3 * variance * (s1 - s2)^2.
    def cross(scale: float) -> torch.Tensor:
        return torch.cat([torch.eye(3), -torch.eye(3)]).double() * scale

    variance = 2 / 5  # unbiased: two points at +-1 among six
    expected = 3 * variance * (2.0 - 1.0) ** 2 + 3 * 0.5**2
    assert metrics.frechet_distance(cross(1), cross(2) + 0.5) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="two images"):
        metrics.frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_the_judge_knows_clean_scenes_and_moves_when_they_degrade() -> None:
    drawn = scenes.held_out(256, seed=11)
    image = scenes.render(drawn)
    other = metrics.features(scenes.render(scenes.held_out(256, seed=12)))
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    near = metrics.frechet_distance(metrics.features(image), other)
    far = metrics.frechet_distance(metrics.features(blurred), other)
    assert near < far
    cells, background = judge.load()(image)
    assert (background.argmax(1) == drawn.background).float().mean() > 0.99
    assert (cells[:, :2].argmax(1) == (drawn.cells() > 0)).float().mean() > 0.99


def test_bootstrap_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = metrics.bootstrap(generator.normal(size=80), seed=trial, resamples=500)
        assert interval.low <= interval.estimate <= interval.high
        covered += interval.low <= 0 <= interval.high
    # 95 % nominal; the binomial standard error of 200 trials is 1.5 points and the percentile bootstrap runs about a
    # point low at n = 80.
    assert 0.89 <= covered / 200 <= 0.99
    same = metrics.bootstrap(torch.ones(5))
    assert (same.low, same.estimate, same.high) == (1, 1, 1)
    for bad in ([], [[1.0]]):
        with pytest.raises(ValueError, match="one number per prompt"):
            metrics.bootstrap(bad)
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.bootstrap([1.0], confidence=1.0)


def test_a_ratio_is_bootstrapped_over_pairs() -> None:
    full = torch.tensor([1.0, 1.0, 0.0, 1.0] * 16)
    assert metrics.bootstrap_ratio(full, full) == metrics.Interval(estimate=1.0, low=1.0, high=1.0), (
        "the luck of a prompt cancels"
    )
    half = metrics.bootstrap_ratio(full * 0.5, full)
    assert (half.estimate, half.low, half.high) == (0.5, 0.5, 0.5)
    lost = metrics.bootstrap_ratio(full * (torch.arange(64) % 8 != 0), full)
    assert lost.low < lost.estimate < lost.high
    assert lost.estimate == 40 / 48
    with pytest.raises(ValueError, match="denominator's mean is zero"):
        metrics.bootstrap_ratio(full, full * 0)
    with pytest.raises(ValueError, match="one number per prompt in both"):
        metrics.bootstrap_ratio(full, full[:3])
