"""The data set: grammar, tokens, geometry, and the two held-out sets."""

import math

import pytest
import torch

from analysis import scenes


def lab(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """CIE 1976 L*a*b* of an sRGB colour under D65 (IEC 61966-2-1 and CIE 15)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(m * v for m, v in zip(row, linear, strict=True)) for row in matrix]
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def test_colours_are_told_apart_by_eye() -> None:
    palette = [lab(c) for c in scenes.COLOURS.values()]
    grounds = [lab(end) for ends in scenes.BACKGROUNDS.values() for end in ends]
    between = [math.dist(a, b) for i, a in enumerate(palette) for b in palette[:i] + grounds]
    assert min(between) >= 25


def test_captions_parse_back_and_tokens_equal_the_tokenizer() -> None:
    from analysis.models.embedded import build

    drawn = scenes.held_out(512, seed=3)
    captions = drawn.captions()
    again = scenes.parse(captions)
    assert torch.equal(again.cells(), drawn.cells())
    assert torch.equal(again.background, drawn.background)
    assert again.captions() == captions
    encoded = build.tokenizer()(captions, padding="max_length", max_length=scenes.MAX_TOKENS, return_tensors="pt")
    assert torch.equal(encoded.input_ids, drawn.tokens())


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("a red cat on a mat", "not a caption"),
        ("a small red plain ring at top left on a dusky background", "not a caption"),
        (" and ".join(["a small red plain ring at top left"] * 5) + " on a dusk background", "not a caption"),
        (
            "a small red plain ring at top left and a large blue plain star at top left on a dusk background",
            "share a cell",
        ),
    ],
)
def test_a_caption_outside_the_grammar_is_named(caption: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scenes.parse([caption])


def test_training_and_held_out_sets_are_disjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    training = scenes.training_scenes(20_000, generator, (0.25, 0.25, 0.25, 0.25))
    assert not scenes.is_held_out(training).any()
    assert not scenes.has_novel_pair(training).any()
    for objects in range(1, 5):
        test = scenes.held_out(64, objects, seed=1)
        assert scenes.is_held_out(test).all()
        assert not scenes.has_novel_pair(test).any()
        assert (test.count == objects).all()
    assert scenes.has_novel_pair(scenes.held_out(64, seed=1, novel=True)).all()


def test_the_split_ignores_the_order_of_the_objects() -> None:
    drawn = scenes.held_out(256, objects=4, seed=2)
    flipped = scenes.Scenes(
        count=drawn.count,
        background=drawn.background,
        **{k: getattr(drawn, k).flip(1) for k in ("cell", "shape", "colour", "size", "fill", "jitter")},
    )
    assert torch.equal(flipped.cells(), drawn.cells())
    assert scenes.is_held_out(flipped).all()
    # Pixels are blended in slot order, so only rounding may differ, and it does not: objects never overlap.
    assert torch.equal(scenes.render(flipped), scenes.render(drawn))


def test_only_tips_of_large_stars_and_triangles_touch_the_lines_between_cells() -> None:
    drawn = scenes.held_out(1024, objects=4, seed=4)
    image, empty = scenes.render(drawn), scenes.backgrounds()[drawn.background]
    line = torch.zeros(scenes.SIZE_PX, scenes.SIZE_PX, dtype=torch.bool)
    line[list(scenes.BORDER_LINES)], line[:, list(scenes.BORDER_LINES)] = True, True
    touched = ((image != empty).any(1) & line).sum((1, 2))
    pointed = (drawn.shape == scenes.SHAPES.index("star")) | (drawn.shape == scenes.SHAPES.index("triangle"))
    tips = (pointed & (drawn.size == 2) & drawn.present).sum(1)
    assert (touched <= 4 * tips).all()  # a triangle has two corners that can, each two pixels wide
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_bad_number_of_objects() -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        scenes.held_out(4, objects=5)
