"""Operations: what they count, against brute force, and what they refuse."""

import itertools
from dataclasses import replace

import pytest

from hwmodels import Attention, Conv2d, ConvNd, Elementwise, Gemm, Move, Norm, Precision, Quantize, Reduction, Softmax
from hwmodels.ops import OPS, op_from_dict

EXAMPLES = [
    Gemm(m=3, n=4, k=5, bias=True, path="block.0", count=2),
    Gemm(m=3, n=4, k=5, batch=7, parameter=False),
    Conv2d(in_channels=4, out_channels=6, height=9, width=7, kernel=3, stride=2, groups=2),
    Conv2d(in_channels=4, out_channels=6, height=9, width=7, kernel=1, kernel_width=3, padding=0, padding_width=1),
    ConvNd(in_channels=2, out_channels=3, size=(4, 5, 6), kernel=(3, 3, 3), output=(2, 3, 4)),
    Attention(batch=2, heads=4, queries=5, keys=7, head_dim=8, causal=False, mask=True),
    Attention(heads=4, kv_heads=2, queries=3, keys=7, head_dim=8, value_dim=6, causal=True),
    Norm(rows=4, columns=8, affine=16),
    Softmax(rows=4, columns=8),
    Elementwise(elements=32, function="add", reads=64),
    Reduction(elements=32, outputs=4, function="amax"),
    Move(writes=32, reads=32, function="cat"),
    Quantize(elements=64, format="e4m3", group=32),
]


@pytest.mark.parametrize("op", EXAMPLES, ids=lambda op: type(op).__name__)
def test_dictionary_round_trip_gives_the_same_operation(op):
    assert op_from_dict(op.to_dict()) == op


def test_every_kind_of_operation_has_an_example():
    assert {type(op).__name__ for op in EXAMPLES} == set(OPS)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    list(itertools.product((5, 8), (1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2))),
)
def test_conv2d_counts_what_a_sliding_window_visits(size, kernel, stride, padding, dilation):
    reach = dilation * (kernel - 1)
    starts = [s for s in range(-padding, size + padding - reach) if (s + padding) % stride == 0]
    assert starts
    op = Conv2d(
        batch=2,
        in_channels=3,
        out_channels=5,
        height=size,
        width=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    assert op.outputs == (len(starts), len(starts))
    assert op.macs == 2 * len(starts) ** 2 * 3 * kernel**2 * 5


def test_default_padding_keeps_the_size_of_an_odd_kernel():
    op = Conv2d(in_channels=1, out_channels=1, height=17, width=30, kernel=5)
    assert op.outputs == (17, 30)


@pytest.mark.parametrize(("queries", "keys"), list(itertools.product((1, 2, 5), (1, 3, 5))))
def test_causal_attention_counts_the_visible_pairs(queries, keys):
    visible = sum(1 for q in range(queries) for k in range(keys) if k - keys <= q - queries)
    op = Attention(batch=3, heads=2, queries=queries, keys=keys, head_dim=4, value_dim=6, causal=True)
    assert op.pairs == visible
    assert op.macs == 3 * 2 * visible * (4 + 6)


def test_gemm_bytes_are_the_operands_in_their_formats():
    op = Gemm(m=16, n=32, k=64, bias=True)
    mixed = Precision(weight="int4", activation="e4m3", output="bf16", weight_group=32)
    assert op.bytes(mixed) == 32 * 64 * (4 + 16 / 32) / 8 + 16 * 64 + 16 * 32 * 2 + 32 * 2
    blocks = Precision(weight="nvfp4", activation="mxfp8")
    assert op.bytes(blocks) == 32 * 64 * 4.5 / 8 + 16 * 64 * 8.25 / 8 + 16 * 32 * 2 + 32 * 2


def test_types_of_its_own_win_over_the_precision():
    norm = Norm(rows=2, columns=8, dtype="f32", out_dtype="bf16")
    assert norm.bytes(Precision()) == 16 * 4 + 16 * 2
    assert replace(norm, dtype="", out_dtype="").bytes(Precision(output="f32")) == 16 * 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gemm(m=0, n=1, k=1), r"Gemm: m=0; allowed: an integer from 1 to 2\*\*53"),
        (lambda: Gemm(m=-4, n=1, k=1), "m=-4"),
        (lambda: Gemm(m=2**60, n=1, k=1), r"2\*\*53"),
        (lambda: Gemm(m=1.5, n=1, k=1), "m=1.5"),
        (lambda: Gemm(m=True, n=1, k=1), "m=True"),
        (lambda: Gemm(m=1, n=1, k=1, count=0), "count=0"),
        (lambda: Conv2d(in_channels=3, out_channels=4, height=8, width=8, kernel=3, groups=2), "groups=2 must divide"),
        (lambda: Conv2d(in_channels=3, out_channels=4, height=2, width=2, kernel=5, padding=0), "does not fit"),
        (lambda: Conv2d(in_channels=3, out_channels=4, height=2, width=2, kernel=1, layout="nhwc"), "channels_last"),
        (
            lambda: ConvNd(in_channels=1, out_channels=1, size=(2, 2), kernel=(1,), output=(2, 2)),
            "one integer per axis",
        ),
        (lambda: Attention(heads=6, kv_heads=4, queries=1, keys=1, head_dim=8), "kv_heads=4 must divide heads=6"),
        (lambda: op_from_dict({"op": "Gem", "m": 1}), "unknown operation 'Gem'; did you mean 'Gemm'"),
        (lambda: op_from_dict({"op": "Gemm", "m": 1}), "n, k missing"),
        (lambda: op_from_dict({"op": "Gemm", "m": 1, "n": 1, "k": 1, "kk": 1}), "field of Gemm 'kk'"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
