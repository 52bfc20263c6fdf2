"""Other implementations, on every bf16 and float16 value; where they differ from the standard, exactly how.

The table of differences in docs/formats.md has one line per `Difference` below, word for word: what a package does is
run here, not remembered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.types import Domain, Signedness

import fpsim
from fpsim import blocks
from fpsim.formats import p3109
from tests.strategies import assert_same_bits

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
BF16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
F16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
HALVES = {"bf16": BF16[~np.isnan(BF16)], "f16": F16[~np.isnan(F16)]}
OCP = ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1")
FAMILY = [
    (k, p, signed, extended)
    for k in range(3, 9)
    for signed in (True, False)
    for p in range(1, k + (not signed))
    for extended in (True, False)
    if k - p + (not signed) <= 8
]


def of_gfloat(row: gfloat.FormatInfo, x: np.ndarray, saturate: bool) -> np.ndarray:
    with np.errstate(all="ignore"):
        rounded = gfloat.round_ndarray(row, x.astype(np.float64), gfloat.RoundMode.TiesToEven, saturate)
        return gfloat.encode_ndarray(row, rounded)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", OCP)
def test_gfloat_on_every_half(name: str, half: str) -> None:
    row = getattr(gfloat.formats, f"format_info_ocp_{name}")
    x = HALVES[half]
    assert_same_bits(fpsim.encode(x, name), of_gfloat(row, x, True).astype(np.uint8), name)
    if name == "e5m2":
        nonsat = of_gfloat(row, x, False).astype(np.uint8)
        assert_same_bits(fpsim.encode(x, name, conversion="ocp-nonsat"), nonsat, name)


@pytest.mark.parametrize("case", FAMILY, ids=lambda c: p3109(c[0], c[1], signed=c[2], extended=c[3]).name)
def test_gfloat_on_every_half_in_every_small_p3109_format(case: tuple[int, int, bool, bool]) -> None:
    k, p, signed, extended = case
    row = p3109(k, p, signed=signed, extended=extended)
    theirs = gfloat.formats.format_info_p3109(
        k, p, Signedness.Signed if signed else Signedness.Unsigned, Domain.Extended if extended else Domain.Finite
    )
    x = HALVES["bf16"] if signed else HALVES["bf16"][HALVES["bf16"] >= 0]
    for saturate, overflow in ((True, "saturate"), (False, "infinity")):
        got = fpsim.encode(x, row, conversion="p3109", overflow=overflow)
        assert_same_bits(got, of_gfloat(theirs, x, saturate).astype(np.uint8), f"{row.name} {overflow}")


# -- differences --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One disagreement: what goes in, what a package gives, what the default here gives, and who decides.

    named : the conversion that gives the package's codes, "" if none does.
    """

    package: str
    what: str
    fmt: str
    x: tuple[float, ...]
    theirs: Callable[[np.ndarray], np.ndarray]
    got: tuple[int, ...]
    ours: tuple[int, ...]
    decided: str
    named: str = ""

    @property
    def line(self) -> str:
        """The row of the table in docs/formats.md."""
        codes = [" ".join(f"{c:02x}" for c in side) for side in (self.got, self.ours)]
        named = f"`{self.named}`" if self.named else "none"
        return f"| {self.package} | {self.fmt} | {self.what} | {codes[0]} | {codes[1]} | {self.decided} | {named} |"


def cast(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.astype(getattr(ml_dtypes, kind)).view(np.uint8)


def torch_cast(dtype: torch.dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: torch.from_numpy(x).to(dtype).view(torch.uint8).numpy()


def unsaturated(name: str) -> Callable[[np.ndarray], np.ndarray]:
    row = getattr(gfloat.formats, f"format_info_ocp_{name}")
    return lambda x: (of_gfloat(row, x, False).astype(np.int64) & 0xFF).astype(np.uint8)


OFP8 = "OCP OFP8 1.0 defines saturating and non-saturating conversions"
MX_TEXT = "OCP MX 1.0: E8M0 has no zero, no sign and no infinity; rounding to it is not defined"
NAN = "OCP OFP8 1.0: any NaN pattern is a NaN"
INF, NANS = float("inf"), float("nan")

DIFFERENCES = (
    Difference(
        package="ml_dtypes",
        fmt="e4m3",
        what="465, 1e9 and Inf overflow to NaN",
        x=(464.0, 465.0, 1e9, -INF),
        theirs=cast("float8_e4m3fn"),
        got=(0x7E, 0x7F, 0x7F, 0xFF),
        ours=(0x7E, 0x7E, 0x7E, 0xFE),
        decided=OFP8,
        named="ml_dtypes",
    ),
    Difference(
        package="ml_dtypes",
        fmt="e5m2",
        what="61440 and above, and Inf, become Inf",
        x=(61439.0, 61440.0, -INF),
        theirs=cast("float8_e5m2"),
        got=(0x7B, 0x7C, 0xFC),
        ours=(0x7B, 0x7B, 0xFB),
        decided=OFP8,
        named="ml_dtypes",
    ),
    Difference(
        package="ml_dtypes",
        fmt="e2m1",
        what="NaN becomes a zero of the opposite sign",
        x=(NANS, -NANS),
        theirs=cast("float4_e2m1fn"),
        got=(0x08, 0x00),
        ours=(0x07, 0x07),
        decided="OCP MX 1.0 leaves it open; PTX cvt.satfinite gives the largest value",
        named="ml_dtypes",
    ),
    Difference(
        package="ml_dtypes",
        fmt="e8m0",
        what="zero and negatives become NaN; 1.5 rounds up to 2",
        x=(0.0, -4.0, 1.5, 3.0),
        theirs=cast("float8_e8m0fnu"),
        got=(0xFF, 0xFF, 0x80, 0x81),
        ours=(0x00, 0x00, 0x80, 0x80),
        decided=MX_TEXT,
        named="ml_dtypes",
    ),
    Difference(
        package="ml_dtypes",
        fmt="e8m0",
        what="1.25 * 2**-127 becomes 2**-126, though 2**-127 is nearer",
        x=(1.25 * 2.0**-127, 1.5 * 2.0**-127),
        theirs=cast("float8_e8m0fnu"),
        got=(0x01, 0x01),
        ours=(0x00, 0x00),
        decided="nearest: the float32 subnormal is misread",
    ),
    Difference(
        package="torch",
        fmt="e5m2",
        what="61440 and above become Inf, NaN has all bits set; E4M3 saturates",
        x=(61440.0, INF, NANS),
        theirs=torch_cast(torch.float8_e5m2),
        got=(0x7C, 0x7C, 0x7F),
        ours=(0x7B, 0x7B, 0x7E),
        decided=f"{OFP8}; {NAN}",
        named="torch",
    ),
    Difference(
        package="torch",
        fmt="e8m0",
        what="the sign is dropped, ties go up",
        x=(-4.0, 3.0),
        theirs=torch_cast(torch.float8_e8m0fnu),
        got=(0x81, 0x81),
        ours=(0x00, 0x80),
        decided=MX_TEXT,
        named="torch",
    ),
    Difference(
        package="gfloat",
        fmt="e4m3",
        what="unsaturated overflow is NaN with the sign bit set, whatever the sign",
        x=(465.0, -465.0),
        theirs=unsaturated("e4m3"),
        got=(0xFF, 0xFF),
        ours=(0x7E, 0xFE),
        decided=f"{OFP8}; {NAN}",
    ),
    Difference(
        package="gfloat",
        fmt="e8m0",
        what="below 2**-127 the code runs on below zero (low byte shown)",
        x=(2.0**-129,),
        theirs=unsaturated("e8m0"),
        got=(0xFE,),
        ours=(0x00,),
        decided=MX_TEXT,
    ),
)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: f"{d.package}-{d.fmt}-{d.what[:20]}")
def test_differences_are_as_documented(difference: Difference) -> None:
    x = np.array(difference.x, np.float32)
    with np.errstate(all="ignore"):
        theirs = difference.theirs(x)
    assert theirs.tolist() == list(difference.got)
    assert fpsim.encode(x, difference.fmt).tolist() == list(difference.ours)
    if difference.named:
        assert fpsim.encode(x, difference.fmt, conversion=difference.named).tolist() == list(difference.got)
    assert difference.line in PAGE.read_text()


def test_the_logarithm_trap() -> None:
    """What the page says of packages that take floor(log2(amax)) in float32: the scale of 15.999999 comes out twice."""
    assert np.floor(np.log2(np.float32(15.999999))) == 4.0
    assert blocks.encode(np.full(32, 15.999999, np.float32), "mxfp4").scales[0] == 127 + 3 - 2


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_torchao_blocks() -> None:
    """MXFP4 by the floor rule has the same bits; NVFP4 differs where x * (1 / step) and x / step round apart."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = (np.random.default_rng(0).integers(-96, 97, (512, 4096)) / 7).astype(np.float32)  # many quotients near ties
    values = torch.from_numpy(x)
    made = MXTensor.to_mx(values, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32).numpy()
    assert_same_bits(made, fpsim.quantize(x, "mxfp4"))
    scale = per_tensor_amax_to_scale(values.abs().max())
    theirs = NVFP4Tensor.to_nvfp4(values, per_tensor_scale=scale).dequantize(torch.float32).numpy()
    differ = theirs != fpsim.quantize(x, "nvfp4")
    assert 0 < differ.mean() < 0.05


def test_the_page_shows_the_row_it_tells_newcomers_to_add() -> None:
    """The example of docs/formats.md, run."""
    text = PAGE.read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)  # our own page
    assert names["made"] is not None
