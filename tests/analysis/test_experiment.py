"""Experiment files: strict in, the same tree out, one key per content."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.experiment import SHIPPED, Cost, Experiment, Quality
from analysis.whatif import check, make_plan

TEXT = """
name = "mine"
[quality]
prompts = 8
guidance = 2
[[configuration]]
scheme = ["fp8-w8a8", "mine"]
[[configuration]]
scheme = "fp8-w8a8"
engine = "hopper/wgmma"
prompts = 2
[cost]
devices = ["h200-sxm"]
models = ["sd15"]
[[schemes.mine.rules]]
pattern = "re:(conv_in|conv_out)"
[[schemes.mine.rules]]
weight = { format = "e2m1", granularity = "channel" }
activation = { format = "e4m3" }
"""


def parse(text: str) -> Experiment:
    return Experiment.from_dict(tomllib.loads(text))


def test_a_file_becomes_a_tree() -> None:
    found = parse(TEXT)
    assert found.quality == Quality(prompts=8, guidance=2.0)
    assert [row.label for row in found.configuration] == ["fp8-w8a8", "mine", "fp8-w8a8 exact on hopper/wgmma"]
    assert found.cost == Cost(devices=("h200-sxm",), models=("sd15",))
    assert found.schemes["mine"].rules[1].weight.format == "e2m1"  # type: ignore[union-attr]
    assert found.scheme_of(found.configuration[1]) is found.schemes["mine"]
    assert found.scheme_of(found.configuration[2]).arithmetic == "exact"
    assert [found.prompts_of(row) for row in found.configuration] == [8, 8, 2]


def test_the_tree_written_and_read_is_the_same() -> None:
    found = parse(TEXT)
    assert Experiment.from_dict(found.to_dict()) == found


def test_lists_in_a_configuration_multiply() -> None:
    found = parse('name = "a"\n[[configuration]]\nscheme = ["fp8-w8a8", "int8-w8a8"]\nprompts = 4')
    assert [(row.scheme, row.prompts) for row in found.configuration] == [("fp8-w8a8", 4), ("int8-w8a8", 4)]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_experiments_load_by_name(path: Path) -> None:
    found = Experiment.load(path.stem)
    assert found.name == path.stem
    for configuration in found.configuration:
        assert found.scheme_of(configuration).rules


EXAMPLES = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_their_rules_decide_layers(path: Path) -> None:
    found = Experiment.load(path)
    assert found.name == path.stem
    unused = check(make_plan(found))
    assert not set(unused) & set(found.schemes)


def test_the_default_experiment_is_what_the_page_promises() -> None:
    found = Experiment.load("default")
    assert found.quality.prompts >= 64
    assert found.quality.steps == 20
    assert set(found.quality.objects) == {1, 2, 3, 4}
    labels = {row.label for row in found.configuration}
    assert labels >= {"fp32", "fp8-w8a8", "int8-w8a8", "fp4-w4a8", "int4-w4a8", "fp8-w8a8 exact on hopper/wgmma"}
    assert labels & {"mxfp4", "nvfp4"}
    exact = next(row for row in found.configuration if row.engine)
    assert found.prompts_of(exact) >= 8
    assert len(found.cost.devices) == 3
    assert found.cost.models == ("shapes-sd", "sdxl-base")


def test_the_key_knows_everything_but_the_description() -> None:
    found = parse(TEXT)
    keys = {
        found.key(),
        replace(found, quality=replace(found.quality, seed=1)).key(),
        replace(found, quality=replace(found.quality, guidance=2.5)).key(),
        replace(found, cost=replace(found.cost, mode="eager")).key(),
        replace(found, configuration=found.configuration[:1], schemes={}).key(),
        found.key({"checkpoint": "x"}),
        found.key({"checkpoint": "y"}),
    }
    assert len(keys) == 7
    assert replace(found, description="words").key() == found.key()
    assert parse(TEXT).key() == found.key()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("prompts = 8", "promts = 8"), "quality: unknown key 'promts'; did you mean 'prompts'? (known: batch"),
        (("prompts = 8", 'prompts = "8"'), "quality: prompts: prompts are a number, or in a file (.txt, "),
        (("prompts = 8", "prompts = true"), "quality: prompts must be an integer, not True"),
        (("prompts = 8", "prompts = 0"), "quality: prompts must be at least 1, not 0"),
        (("prompts = 8", "objects = [5]"), "objects must be some of 1, 2, 3, 4, not [5]"),
        (("prompts = 8", "objects = 3"), "quality: objects must be a list, not 3"),
        (("prompts = 8", "confidence = 95"), "confidence must be between 0.5 and 1, not 95"),
        (("guidance = 2", 'guidance = "2"'), "quality: guidance must be a number, not '2'"),
        (('name = "mine"', 'name = "a/b"'), "name must be letters, digits"),
        (('name = "mine"', 'nam = "mine"'), "unknown key 'nam'; did you mean 'name'?"),
        (('name = "mine"', ""), "key 'name' is missing"),
        (('engine = "hopper/wgmma"', 'engin = "hopper/wgmma"'), "configuration[2]: unknown key 'engin'; did you mean"),
        (('scheme = "fp8-w8a8"\nengine', 'engine'), "configuration[2]: key 'scheme' is missing"),
        (('"mine"]', '"fp8-w8a8"]'), "configuration 'fp8-w8a8' is there twice"),
        (('models = ["sd15"]', 'mode = "fast"'), "mode must be one of eager, graph, compiled, not 'fast'"),
        (('pattern = "re:(conv_in|conv_out)"', 'pattern = "re:(conv_in"'), "schemes.mine: pattern"),
        (('pattern = "re:(conv_in|conv_out)"', 'patern = "x"'), "'patern'"),
        (('format = "e2m1"', 'format = "e2m9"'), "unknown format 'e2m9'"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)  # fmt: skip
def test_mistakes_say_where_and_what_is_allowed(change: tuple[str, str], says: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared below
        parse(TEXT.replace(*change, 1))
    assert says in str(raised.value)


def test_no_configuration_says_what_to_add() -> None:
    with pytest.raises(ValueError, match=r"no \[\[configuration\]\]; add one"):
        parse('name = "a"')


def test_unknown_names_are_found_when_the_scheme_is_asked_for() -> None:
    found = parse('name = "a"\n[[configuration]]\nscheme = "fp9"')
    with pytest.raises(ValueError, match=r"unknown scheme 'fp9'.*did you mean"):
        found.scheme_of(found.configuration[0])
    found = parse('name = "a"\n[[configuration]]\nscheme = "fp8-w8a8"\nengine = "hopper/wgma"')
    with pytest.raises(ValueError, match="unknown engine 'hopper/wgma'; did you mean 'hopper/wgmma'"):
        found.scheme_of(found.configuration[0])


def test_files_that_are_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown experiment 'defalt'; did you mean 'default'"):
        Experiment.load("defalt")
    with pytest.raises(ValueError, match="no experiment file"):
        Experiment.load(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("a = = 1")
    with pytest.raises(ValueError, match="is not TOML"):
        Experiment.load(tmp_path / "x.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not TOML"):
        Experiment.load(tmp_path / "b.toml")
    with pytest.raises(ValueError, match="is a directory"):
        Experiment.load(tmp_path)


def test_a_file_without_a_name_takes_the_files(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[[configuration]]\nscheme = "fp8-w8a8"')
    assert Experiment.load(tmp_path / "study.toml").name == "study"


SWEEP = (
    TEXT
    + """
[[sweep]]
pipeline = ["shapes-sd", "shapes-dit"]
[[sweep]]
steps = [1, 4]
only = ["fp8-w8a8"]
"""
)


def test_a_sweep_is_one_run_for_every_combination() -> None:
    cells = parse(SWEEP).cells()
    assert [cell.name for cell in cells] == ["mine-shapes-sd", "mine-shapes-dit", "mine-1-steps", "mine-4-steps"]
    assert [cell.quality.pipeline for cell in cells] == ["shapes-sd", "shapes-dit", "shapes-sd", "shapes-sd"]
    assert [cell.quality.steps for cell in cells] == [20, 20, 1, 4]
    assert [len(cell.configuration) for cell in cells] == [3, 3, 1, 1]
    assert not cells[2].schemes, "a scheme that no configuration uses would be refused"
    assert all(not cell.sweep and cell.cells() == (cell,) for cell in cells)
    assert parse(TEXT).cells() == (parse(TEXT),)
    assert Experiment.from_dict(parse(SWEEP).to_dict()) == parse(SWEEP)


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ('only = ["fp8-w8a8"]', "lists values of at least one of pipeline, steps, guidance, seed"),
        ('steps = [4]\nonly = ["fp8"]', "unknown configuration 'fp8'; did you mean 'fp8-w8a8'"),
        ("steps = 4", "steps must be a list, not 4"),
        ("prompts = [4]", "unknown key 'prompts'"),
    ],
)
def test_mistakes_in_a_sweep_are_named(sweep: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(f"{TEXT}\n[[sweep]]\n{sweep}")


def test_parts_of_a_sweep_that_collide_are_refused() -> None:
    twice = '\n[[sweep]]\nsteps = [4]\n[[sweep]]\nsteps = [4]\nonly = ["fp8-w8a8"]'
    with pytest.raises(ValueError, match="both make 'mine-4-steps'"):
        parse(TEXT + twice).cells()


def test_options_of_a_method_are_part_of_the_label() -> None:
    found = parse('name = "a"\n[[configuration]]\nscheme = "mxfp4"\nmethod = "gptq"\n'
                  'options = { transform = "hadamard", concat = false, rank = 0 }')  # fmt: skip
    (row,) = found.configuration
    assert row.label == "mxfp4 gptq transform=hadamard concat=false rank=0"
    assert Experiment.from_dict(found.to_dict()) == found
    with pytest.raises(ValueError, match=r"options.rank must be .* not a table or a list"):
        parse('name = "a"\n[[configuration]]\nscheme = "mxfp4"\noptions = { rank = [1] }')
