"""P3109 families, stochastic rounding, random streams, codebooks, flags, scales and packing."""

import math

import gfloat
import numpy as np
import pytest
from gfloat.formats import format_info_p3109
from gfloat.types import Domain, Signedness

import fpsim
from fpsim import packing, reference
from fpsim.codec import Flags, decode_table, flags, random_words
from fpsim.formats import Format, p3109, scalar_format
from tests.strategies import assert_same_bits, bits

FAMILY = [
    (k, p, s, e)
    for k in range(3, 9)
    for s in (True, False)
    for p in range(1, k + (0 if s else 1))
    for e in (True, False)
    if k - p + (not s) <= 8
]


@pytest.mark.parametrize("case", FAMILY, ids=lambda c: p3109(c[0], c[1], signed=c[2], extended=c[3]).name)
def test_p3109_codes_equal_gfloat(case: tuple[int, int, bool, bool]) -> None:
    k, p, signed, extended = case
    row = p3109(k, p, signed=signed, extended=extended)
    assert fpsim.format(row.name) == row
    info = format_info_p3109(
        k, p, Signedness.Signed if signed else Signedness.Unsigned, Domain.Extended if extended else Domain.Finite
    )
    want = np.array([gfloat.decode_float(info, c).fval for c in range(1 << k)])
    got = decode_table(row).astype(np.float64)
    assert_same_bits(np.nan_to_num(got, nan=1234.5), np.nan_to_num(want, nan=1234.5), row.name)


@pytest.mark.parametrize("name", ["binary8p1se", "binary8p1uf", "binary8p3se", "binary6p3sf", "binary3p2ue"])
def test_p3109_encode_equals_reference(name: str) -> None:
    row = scalar_format(name)
    rng = np.random.default_rng(1)
    x = np.concatenate([decode_table(row), rng.standard_normal(500) * 2.0 ** rng.integers(-20, 20, 500), [0, -0.0]])
    for rounding in ("rne", "rd", "rna", "rodd"):
        for overflow in ("saturate", "propagate", "infinity"):
            got = fpsim.encode(x, name, rounding=rounding, overflow=overflow, conversion="p3109")
            want = [
                reference.encode(reference.decode(int(c), "f64"), name, rounding, overflow, "p3109")
                for c in bits(x.astype(np.float64))
            ]
            assert got.tolist() == want, f"{rounding} {overflow}"


def test_p3109_eight_bit_finite_formats_are_the_fnuz_ones() -> None:
    """A fact of the interim report: K=8 P=4 and P=3, signed and finite, equal E4M3FNUZ and E5M2FNUZ on all codes."""
    for ours, fnuz in (("binary8p4sf", "e4m3fnuz"), ("binary8p3sf", "e5m2fnuz")):
        assert_same_bits(decode_table(scalar_format(ours)), decode_table(scalar_format(fnuz)))
    with pytest.raises(ValueError, match="K=8, P=8, signed=True"):
        fpsim.format("binary8p8se")


@pytest.mark.parametrize("rounding", ["sra", "srb", "src"])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m0", "bf16", "int8"])
def test_stochastic_rounding_equals_reference(name: str, rounding: str) -> None:
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.standard_normal(300), 2.0 ** rng.uniform(-40, 9, 300), [1e-300, 5e-324, 0.0]])
    for count in (1, 3, 8, 32):
        words = rng.integers(0, 1 << count, x.size, dtype=np.uint64)
        words[:60] = (1 << count) - 1
        got = fpsim.encode(x, name, rounding=rounding, random=words, random_bits=count)
        want = [
            reference.encode(reference.decode(int(c), "f64"), name, rounding, random=(int(r), count))
            for c, r in zip(bits(x), words, strict=True)
        ]
        assert got.tolist() == want, f"{count} bits"


@pytest.mark.parametrize("rounding", ["sra", "srb", "src"])
def test_stochastic_rounding_is_fair(rounding: str) -> None:
    """Over all 2**N words exactly round(d * 2**N) of them go up, for every eighth d: the definition, counted."""
    words = np.arange(256)
    for eighth in range(8):
        x = np.full(256, 1 + eighth / 64)  # a step of E4M3 at 1 is 1/8
        up = fpsim.encode(x, "e4m3", rounding=rounding, random=words, random_bits=8) - 0x38
        assert int(up.sum()) == 32 * eighth


def test_philox_known_answers() -> None:
    """Random123's kat_vectors for philox4x32-10 with counter and key zero; torch and cuRAND use the same generator."""
    assert [hex(w) for w in random_words(0, 4)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert_same_bits(random_words(7, 1000, 8), random_words(7, 1000) >> np.uint32(24))
    x = np.random.default_rng(0).standard_normal(99)
    by_seed = fpsim.encode(x, "e4m3", rounding="src", random=7, random_bits=8)
    assert_same_bits(by_seed, fpsim.encode(x, "e4m3", rounding="src", random=random_words(7, 99, 8), random_bits=8))


def test_random_bits_are_checked() -> None:
    with pytest.raises(ValueError, match="'sra' needs random="):
        fpsim.encode([1.0], "e4m3", rounding="sra")
    with pytest.raises(ValueError, match="'rne' takes no random bits"):
        fpsim.encode([1.0], "e4m3", random=3)
    with pytest.raises(ValueError, match=r"outside 0 .. 2\*\*4 - 1"):
        fpsim.encode([1.0], "e4m3", rounding="sra", random=np.array([16]), random_bits=4)
    with pytest.raises(ValueError, match="random_bits is 40; allowed: 1 to 32"):
        fpsim.encode([1.0], "e4m3", rounding="sra", random=1, random_bits=40)


def test_codebook_is_nearest_with_ties_to_even() -> None:
    rng = np.random.default_rng(2)
    values = np.array(scalar_format("nf4").values)
    x = np.concatenate([values, rng.uniform(-1.5, 1.5, 400), [np.nan, np.inf, -np.inf, 9.0, -9.0]])
    want = [reference.encode(reference.decode(int(c), "f64"), "nf4") for c in bits(x)]
    assert fpsim.encode(x, "nf4").tolist() == want
    book = Format(name="thirds", kind="codebook", values=(-1.0, 0.0, 0.5, 2.0))
    assert fpsim.encode([-0.5, 0.25, 1.25, 1.24], book).tolist() == [0, 2, 2, 2]
    assert fpsim.decode(np.array([3, 0], np.uint8), book).tolist() == [2.0, -1.0]


def test_flags_count_what_changed() -> None:
    x = np.array([1.0, 1.01, 464.0, 464.1, 1e9, -1e9, 2.0**-9, 2.0**-10, 0.0, np.nan, np.inf])
    assert flags(x, "e4m3") == Flags(values=11, inexact=6, underflow=1, overflow=3, nan=1)
    assert flags(np.array([1.0, 127.4, 127.5, 300.0, -128.5, -129.0]), "int8") == Flags(
        values=6, inexact=5, underflow=0, overflow=4, nan=0
    )
    rng = np.random.default_rng(3)
    y = rng.standard_normal(1000) * 200
    counted = flags(y, "e2m1", rounding="rz")
    assert counted.overflow == int((np.abs(y) >= 8).sum())  # toward zero, only 8 and more leaves the binade of 6
    assert counted.inexact == int((fpsim.quantize(y, "e2m1", rounding="rz") != y).sum())


def test_scale_is_a_real_valued_bias() -> None:
    x = np.random.default_rng(4).standard_normal(200).astype(np.float32)
    scale = np.float32(2.0**0.37)
    got = fpsim.quantize(x, "e4m3", scale=scale)
    assert_same_bits(got, fpsim.quantize(x / scale, "e4m3") * scale)
    assert_same_bits(fpsim.quantize(x, "e4m3", scale=4.0), fpsim.quantize(x / 4, "e4m3") * np.float32(4))
    with pytest.raises(ValueError, match="chooses its own scales"):
        fpsim.quantize(x, "mxfp4", scale=2.0)


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "int4", "uint4", "int6", "e4m3", "uint1", "int12"])
def test_packing_is_dense_and_reversible(name: str) -> None:
    row = scalar_format(name)
    for count in (0, 1, 7, 8, 33):
        rng = np.random.default_rng(count)
        low, high = (int(row.min), int(row.max)) if row.kind == "int" else (0, (1 << row.bits) - 1)
        codes = rng.integers(low, high + 1, (3, count)).astype(row.code_dtype)
        packed = packing.pack(codes, name)
        assert packed.shape == (3, math.ceil(count * row.bits / 8))
        assert_same_bits(packing.unpack(packed, name, count), codes)


@pytest.mark.parametrize(
    "name", ["e3m4-finite", "ue2m2-finite", "e1m2-finite", "e3m0-finite", "e2m3-bias-7", "ue4m4-bias3"]
)
def test_free_formats_equal_the_reference(name: str) -> None:
    """Any split of the bits and any integer bias, by name: every code decodes, every boundary encodes."""
    row = scalar_format(name)
    assert row.name == name
    codes = np.arange(1 << row.bits, dtype=row.code_dtype)
    values = fpsim.decode(codes, name)
    assert [reference.decode(int(c), name).value for c in codes] == values.tolist()
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, values * np.float32(1.001), [1e30, -1e30, 1e-30]])
    for rounding in ("rne", "rz", "ru"):
        want = [
            reference.encode(reference.decode(int(c), "f64"), name, rounding) for c in bits(points.astype(np.float64))
        ]
        assert fpsim.encode(points, name, rounding=rounding).tolist() == want
    biased = scalar_format("e3m4-bias5")
    assert_same_bits(decode_table(biased), decode_table(scalar_format("e3m4-finite")) * np.float32(2.0 ** (3 - 5)))


def test_packing_order_and_errors() -> None:
    assert packing.pack(np.array([0x1, 0xF], np.uint8), "e2m1").tolist() == [0xF1]
    assert packing.pack(np.array([0x3F, 0, 0x3F, 0], np.uint8), "e2m3").tolist() == [0x3F, 0xF0, 0x03]
    with pytest.raises(ValueError, match="rows of 2 bytes hold 4 codes of 'e2m1', not 5"):
        packing.unpack(np.zeros(2, np.uint8), "e2m1", 5)
    with pytest.raises(ValueError, match="not a code of 'e2m1'"):
        packing.pack(np.array([16], np.uint8), "e2m1")
    with pytest.raises(ValueError, match="rows of uint8, got int64"):
        packing.unpack(np.zeros(2, np.int64), "e2m1", 2)
