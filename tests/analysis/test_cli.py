"""The command line: answers, speed, one line for a mistake."""

import json
import math
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fpsim
import hwmodels
from analysis import cli, registry
from analysis.cards import format_card
from analysis.commands._text import WIDTH, table
from analysis.extras import EXTRAS, install

PROJECT = Path(__file__).parents[2] / "pyproject.toml"

ESTIMATE = ["estimate", "gemm", "4096", "4096", "4096", "--spec", "fp8", "--device", "h200-sxm"]
INSTANT = [
    ["--help"],
    ["list", "formats"],
    ["list", "devices"],
    ["list", "models"],
    ["show", "e4m3"],
    ["show", "nvfp4"],
    ESTIMATE,
]
HEAVY = ("torch", "diffusers", "transformers", "pandas", "matplotlib", "numba")


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    try:
        code = cli.main(words)
    except SystemExit as left:  # argparse
        code = int(str(left.code))
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    return lines[0]


@pytest.mark.parametrize("words", INSTANT, ids=" ".join)
def test_answers_without_torch_and_at_once(words: list[str]) -> None:
    code = (
        "import sys; from analysis.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times  # processor time: the wall clock also counts what else the machine does


def test_importing_the_package_is_light() -> None:
    code = f"import sys, analysis, fpsim, hwmodels; sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_functions_are_not_shadowed_by_their_modules() -> None:
    code = (
        "import analysis, analysis.trace, analysis.whatif\n"
        "from analysis.trace import trace\n"
        "assert analysis.trace is trace and callable(analysis.whatif) and callable(analysis.quantize)\n"
        "assert callable(analysis.trace), analysis.trace"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_public_name_lists_what_there_is() -> None:
    import analysis

    with pytest.raises(AttributeError, match=r"no attribute 'whatiff'.*whatif"):
        _ = analysis.whatiff


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_list_names_everything_within_80_columns(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "list", kind)
    names = registry.KINDS[kind]()
    assert names
    for name in names:
        assert f"\n{name} " in text
    assert max(map(len, text.splitlines())) <= WIDTH
    rows = json.loads(answer(capsys, "list", kind, "--json"))
    assert [row["name"] for row in rows] == list(names)


def test_lists_hold_the_names_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["name"] for row in json.loads(answer(capsys, "list", "formats", "--json"))} == set(fpsim.FORMATS)
    assert {row["name"] for row in json.loads(answer(capsys, "list", "engines", "--json"))} == set(fpsim.ENGINES)


EIGHT_BITS = [row for row in fpsim.FORMATS.values() if isinstance(row, fpsim.Format) and row.bits <= 8]
ML_DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_shown_values_are_those_of_ml_dtypes(name: str) -> None:
    ours = np.array(format_card(name)["values"])
    theirs = np.arange(256, dtype=np.uint8).view(ML_DTYPES[name]).astype(np.float64)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs) & ~np.isnan(theirs))


@pytest.mark.parametrize("row", EIGHT_BITS, ids=lambda row: row.name)
def test_shown_values_are_those_that_decode_gives(row: fpsim.Format) -> None:
    codes = np.arange(1 << row.bits)
    if row.kind == "int" and row.signed:  # stored as the integers themselves, shown by their two's complement bits
        codes = np.where(codes >= 1 << (row.bits - 1), codes - (1 << row.bits), codes)
    expected = np.asarray(fpsim.decode(codes.astype(row.code_dtype), row.name), dtype=np.float64)
    np.testing.assert_array_equal(np.array(format_card(row.name)["values"]), expected)


@pytest.mark.parametrize(
    "name", ["e4m3", "e5m2", "f32", "int4", "nvfp4", "hopper/wgmma", "rtx-blackwell/mma", "h200-sxm", "fp4-w4a8", "rtn"]
)
def test_show_fits_80_columns_and_has_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "show", name)
    # an address or a source that cannot be broken may stand out; nothing else
    assert max(len(line) for line in text.splitlines() if "://" not in line) <= WIDTH
    card = json.loads(answer(capsys, "show", name, "--json"))
    assert card["name"] == name


def test_show_device_names_source_and_status_of_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(answer(capsys, "show", "h200-sxm", "--json"))
    keys = {row["key"] for row in card["sources"]}
    for row in card["figures"] + card["rates"]:
        assert row["source"] in keys
        assert row["status"] in ("published", "measured", "derived", "assumed")


def test_show_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(answer(capsys, "show", "fp16", "--kind", "formats", "--json"))["name"] == "f16"


def test_estimate_is_what_the_library_says_and_no_faster_than_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(answer(capsys, *ESTIMATE, "--json"))
    expected = hwmodels.estimate(hwmodels.Gemm(m=4096, n=4096, k=4096), "fp8", device="h200-sxm", mode="graph")
    assert found["time_s"] == expected.time_s
    assert found["time_s"] > 0.999 * 2 * 4096**3 / 1978.9e12  # dense E4M3 peak of the H100 whitepaper, 4 digits
    text = answer(capsys, *ESTIMATE)
    assert f"(projected, {expected.model})" in text
    assert expected.bound in text


def test_estimate_takes_sizes_by_name_and_schemes(capsys: pytest.CaptureFixture[str]) -> None:
    by_name = ["estimate", "gemm", "m=4096", "k=4096", "n=4096", "--spec", "fp8-w8a8", "--device", "h200-sxm", "--json"]
    assert json.loads(answer(capsys, *by_name))["time_s"] == json.loads(answer(capsys, *ESTIMATE, "--json"))["time_s"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "e4m3x"], "unknown name 'e4m3x'; did you mean 'e4m3'?"),
        (["show", "e4m3x", "--kind", "formats"], "unknown format 'e4m3x'; did you mean 'e4m3'? (known: "),
        (["show", "e4m3", "--kind", "colours"], "unknown kind 'colours'"),
        (["list", "colours"], "invalid choice: 'colours'"),
        (["lost"], "invalid choice: 'lost'"),
        (["estimate", "gemm", "1", "2", "--device", "h200-sxm"], "gemm takes M N K; missing: k"),
        (["estimate", "gemm", "1", "2", "3", "4", "--device", "h200-sxm"], "gemm takes 3 sizes (m, n, k), got 4"),
        (["estimate", "gemm", "1", "2", "much", "--device", "h200-sxm"], "k='much'"),
        (["estimate", "gemm", "1", "2", "-3", "--device", "h200-sxm"], "-3"),
        (["estimate", "gemm", "1", "2", "0", "--device", "h200-sxm"], "k=0"),
        (["estimate", "gem", "1", "2", "3", "--device", "h200-sxm"], "unknown operation 'gem'; did you mean 'gemm'?"),
        (["estimate", "gemm", "1", "2", "3", "--device", "h20-sxm"], "unknown device 'h20-sxm'; did you mean"),
        (["estimate", "gemm", "1", "2", "3", "--spec", "fp88", "--device", "l4"], "unknown spec 'fp88'; did you mean"),
        (["estimate", "--device", "h200-sxm"], "give an operation with its sizes, or --model"),
        (["estimate", "gemm", "1", "2", "3"], "--device"),
        (["trace", "sdxl", "--batch", "0"], "--batch must be at least 1"),
        (["report", "/nonexistent"], "is not a run directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in mistake(capsys, *words)


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="unknown name"):
        cli.main(["show", "e4m4", "--debug"])


def test_a_bug_is_one_line_and_exit_code_1() -> None:
    code = (
        "import sys; from analysis import cli; from analysis.commands import list as command\n"
        "command.run = lambda options: {}['missing']\n"
        "sys.exit(cli.main(['list', 'formats']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "fpsim: internal error, KeyError: 'missing' (--debug shows where)\n"


def test_a_bug_in_a_thread_is_one_line_too() -> None:
    code = (
        "import sys, threading; from analysis import cli; from analysis.commands import list as command\n"
        "def run(options):\n"
        "    for name in ('ExecutorManagerThread', 'other'):\n"
        "        thread = threading.Thread(target=lambda: {}[threading.current_thread().name], name=name)\n"
        "        thread.start(); thread.join()\n"
        "command.run = run; sys.exit(cli.main(['list', 'formats']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "fpsim: internal error, KeyError: 'other' (--debug shows where)\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    writer = [sys.executable, "-m", "analysis.cli", "list", "formats", "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(writer, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


def test_trace_lists_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "119 GMAC" in answer(capsys, "trace", "dit-xl-2-256").splitlines()[0]
    rows = answer(capsys, "trace", "dit-xl-2-256", "--csv").splitlines()
    assert rows[0].startswith("path,kind,shape,count,macs")
    total = sum(int(row["macs"]) * int(row["count"]) for row in _csv(rows))
    assert total == pytest.approx(118.67e9, rel=0.01)  # published: 118.6 G (Peebles and Xie, arXiv:2212.09748, table 4)
    assert json.loads(answer(capsys, "trace", "dit-xl-2-256", "--json"))["name"] == "dit-xl-2-256"


def _csv(lines: list[str]) -> list[dict[str, str]]:
    import csv

    return list(csv.DictReader(lines))


def test_table_wraps_its_last_column() -> None:
    text = table([("a", "word " * 40)], ("name", "text"))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("word") == 40


def test_values_that_json_does_not_know_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(answer(capsys, "show", "e5m2", "--json"))
    assert card["values"][0x7C] == "Inf"
    assert card["values"][0xFC] == "-Inf"
    assert card["values"][0x7D] == "NaN"
    assert math.copysign(1, format_card("e5m2")["values"][0x80]) == -1


def test_packages_of_extras_are_asked_for_by_extra() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        named = package.replace("_", "-")
        assert any(
            row.startswith((f"{named}>", f"{named}-", f"{named}[")) or f"[{named}]" in row for row in extras[extra]
        )
        assert install(f"{package}.inside") == f"pip install 'fpsim[{extra}]'"
    rows = [row for name in ("rtl", "distributed", "metrics", "parquet") for row in extras[name]]
    assert {re.split(r"[>\[]", row)[0].replace("-", "_") for row in rows} <= set(EXTRAS)
    assert install("scipy.sparse") == "pip install scipy"


def test_ctrl_c_while_loading_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", interrupted)
    assert cli.main(["list", "formats"]) == 130
    assert capsys.readouterr().err == "fpsim: stopped\n"


LABELS = (
    "fp32, another seed",
    "mxfp4 gptaq transform=hadamard rank=16",
    "fp4-w4a8+dynamic+keep-edges gptq transform=hadamard exact on rtx-blackwell/mma-mxf4nvf4",
)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_tables_with_long_names_fit_the_screen_and_lose_nothing(count: int) -> None:
    cells = [[f"#{row}/{column} s (1.80x) *" for column in range(count)] for row in range(len(LABELS))]
    header = ("projected: sdxl-base", *(f"device-{column}" for column in range(count)))
    text = table([(label, *cell) for label, cell in zip(LABELS, cells, strict=True)], header)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(text.count(cell) == 1 for row in cells for cell in row)  # numbers are never broken
    for part in text.split("\n\n"):
        lines = part.splitlines()[2:]
        begins = [next(n for n, line in enumerate(lines) if f"#{row}/" in line) for row in range(len(LABELS))]
        for label, begin, end in zip(LABELS, begins, [*begins[1:], len(lines)], strict=True):
            told = [lines[begin].partition("#")[0], *lines[begin + 1 : end]]
            assert "".join("".join(told).split()) == "".join(label.split())
            assert all(line.startswith("  ") for line in told[1:])  # not the next row
