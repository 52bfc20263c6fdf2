"""Prompts of one's own: text, CSV, TSV and Parquet files become part of the experiment; what is wrong is one line."""

import argparse
import json
from pathlib import Path

import pytest

from analysis.commands import whatif
from analysis.experiment import Experiment, Quality
from analysis.experiment.prompts import PromptFile, Prompts, read, with_other_prompts
from analysis.plan import NOISE_FLOOR, Plan, calibration_captions
from analysis.scenes import held_out
from analysis.whatif import make_plan

TREE = {"name": "mine", "configuration": [{"scheme": "fp8-w8a8"}]}
ROWS = 'prompt,group,noise\na cat,animals,7\n"a dog, asleep",animals,-3\n a house ,things,11\n'


def experiment(folder: Path, **quality: object) -> Experiment:
    return Experiment.from_dict({**TREE, "quality": quality}, folder=folder)


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    (tmp_path / "a.tsv").write_text('prompt\tnoise\na cat\t7\n"a dog, asleep"\t-3\na house\t11\n')
    (tmp_path / "a.txt").write_bytes("\ufeffa cat\r\n\n  a dog, asleep\na house".encode())
    captions, seeds = ("a cat", "a dog, asleep", "a house"), (7, -3, 11)
    assert read(PromptFile(file="a.txt"), tmp_path) == Prompts(captions=captions)
    for name in ("a.csv", "a.tsv"):
        assert read(PromptFile(file=name), tmp_path) == Prompts(captions=captions)
        assert read(PromptFile(file=name, seeds="noise"), tmp_path) == Prompts(captions=captions, seeds=seeds)
    assert read(PromptFile(file="a.csv", column="group"), tmp_path).captions == ("animals", "animals", "things")


def test_parquet_files_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow: pip install 'fpsim[parquet]'")
    from pyarrow import parquet

    columns = {"caption": ["a cat", "a dog"], "noise": [7, 11], "empty": [None, "x"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    asked = PromptFile(file="a.parquet", column="caption", seeds="noise")
    assert read(asked, tmp_path) == Prompts(captions=("a cat", "a dog"), seeds=(7, 11))
    with pytest.raises(ValueError, match=r"unknown column 'prompt'.*\(known: caption, empty, noise\)"):
        read(PromptFile(file="a.parquet"), tmp_path)
    with pytest.raises(ValueError, match="row 1 has no text in column 'empty'"):
        read(PromptFile(file="a.parquet", column="empty"), tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is how one begins")
    with pytest.raises(ValueError, match=r"b\.parquet: "):
        read(PromptFile(file="b.parquet"), tmp_path)


def test_without_pyarrow_a_parquet_file_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="needs pyarrow") as raised:
        read(PromptFile(file="a.parquet"), tmp_path)
    assert raised.value.name == "pyarrow"  # from which the command line says what to install


@pytest.mark.parametrize(
    ("name", "content", "asked", "says"),
    [
        ("a.csv", ROWS, {"column": "promt"}, "unknown column 'promt'; did you mean 'prompt'? (known: group, noise"),
        ("a.csv", ROWS, {"seeds": "group"}, "row 1 has no whole number in column 'group' but 'animals'"),
        ("a.csv", ROWS, {"first": 4}, "first is 4, but a.csv has 3 prompts"),
        ("a.csv", ROWS, {"first": 0}, "first must be at least 1, not 0"),
        ("a.csv", ROWS, {"frist": 2}, "unknown key 'frist'; did you mean 'first'?"),
        ("a.csv", "prompt,b\nx,1\n,2\n", {}, "row 2 has no text in column 'prompt'"),
        ("a.csv", "prompt,b\nx,1\ny\n", {"seeds": "b"}, "row 2 has no whole number in column 'b' but None"),
        ("a.csv", 'prompt\n"never closed\n', {}, "unexpected end of data"),
        ("a.csv", "", {}, "there are none in it"),
        ("a.csv", "prompt\n", {}, "there are none in it"),
        ("a.txt", " \n\n", {}, "a.txt: there are none in it"),
        ("a.txt", "x", {"column": "prompt"}, "a text file has no columns"),
        ("a.txt", b"caf\xe9", {}, "not UTF-8 (byte 0xe9 at place 3)"),
        ("a.csv", b"prompt\nx\xff", {}, "not UTF-8 (byte 0xff at place 8)"),
        ("a.xlsx", b"PK", {}, "in a file (.txt, .csv, .tsv, .parquet), not 'a.xlsx'"),
        ("b.txt", "x", {}, "a.txt: no such file"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: str | bytes, asked: dict[str, object], says: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    given = "a.txt" if name == "b.txt" else name
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared below
        experiment(tmp_path, prompts={"file": given, **asked})
    assert says in str(raised.value)
    assert str(raised.value).startswith("experiment: quality: prompts: ")
    assert len(str(raised.value).splitlines()) == 1


def test_what_a_file_holds_becomes_part_of_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    found = experiment(tmp_path, prompts={"file": "a.csv", "first": 2, "seeds": "noise"}, calibration=3, batch=1)
    quality = found.quality
    assert (quality.prompts, quality.captions, quality.seeds) == (2, ("a cat", "a dog, asleep"), (7, -3))
    # calibration: what follows the measured prompts, then those again
    assert calibration_captions(found) == ["a house", "a cat", "a dog, asleep"]
    assert Experiment.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    (tmp_path / "a.csv").write_text(ROWS.replace("asleep", "awake"))
    other = experiment(tmp_path, prompts={"file": "a.csv", "first": 2, "seeds": "noise"}, calibration=3, batch=1)
    assert other.key() != found.key()
    (tmp_path / "few.txt").write_text("a tree\na lake\n")
    assert calibration_captions(experiment(tmp_path, prompts="a.csv", calibration="few.txt")) == ["a tree", "a lake"]
    assert experiment(tmp_path, captions=["a cat"]).quality.prompts == 1


def test_a_plan_has_the_files_prompts_and_seeds_and_no_truth(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS)
    plan = make_plan(experiment(tmp_path, prompts={"file": "a.csv", "seeds": "noise"}, batch=1))
    floor = next(row for row in plan.rows if row.label == NOISE_FLOOR)
    assert plan.captions == ["a cat", "a dog, asleep", "a house"]
    assert plan.seeds(plan.rows[0]) == [7, -3, 11]
    assert not set(plan.seeds(floor)) & {7, -3, 11}
    assert plan.scenes is None
    # A picture is made again only if its own prompt changed.
    (tmp_path / "a.csv").write_text(ROWS.replace("asleep", "awake"))
    other = make_plan(experiment(tmp_path, prompts={"file": "a.csv", "seeds": "noise"}, batch=1))
    reference = [[batch.identity for batch in one.batches if batch.row == 0] for one in (plan, other)]
    assert [a == b for a, b in zip(*reference, strict=True)] == [True, False, True]


def test_sentences_of_the_scene_grammar_keep_their_truth() -> None:
    scenes = held_out(3, 2)
    found = Experiment.from_dict({**TREE, "quality": {"captions": scenes.captions()}})
    read_back = Plan(found, {"device": "cpu"}).scenes
    assert read_back is not None
    assert read_back.cells().equal(scenes.cells())


def test_the_command_line_may_give_other_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\na dog\na house\n")
    own = with_other_prompts(Quality(seed=4, calibration=2), str(tmp_path / "a.txt"))
    assert own.captions == ("a cat", "a dog", "a house")
    assert own.calibration_captions == ("a cat", "a dog")
    assert own.seed == 4
    assert with_other_prompts(own, 2).captions == ("a cat", "a dog")
    assert with_other_prompts(Quality(), 2) == Quality(prompts=2)
    with pytest.raises(ValueError, match="4 prompts, but the experiment has 3 of its own"):
        with_other_prompts(own, 4)
    parser = argparse.ArgumentParser()
    whatif.arguments(parser)
    experiment = Experiment.from_dict(TREE)
    changed = whatif.overridden(experiment, parser.parse_args(["x.toml", "--prompts", str(tmp_path / "a.txt")]))
    assert changed.quality.captions == own.captions
    assert whatif.overridden(experiment, parser.parse_args(["x.toml", "--prompts", "5"])).quality.prompts == 5
