"""SCALE-Sim 3.0.0's own reports, to the last digit, and its input files with everything that can be wrong in them."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hwmodels.npu import scalesim
from hwmodels.npu.scalesim.closed import _mean
from hwmodels.npu.scalesim.drain import WriteBuffer
from hwmodels.npu.scalesim.schedule import Schedule, skewed
from hwmodels.npu.scalesim.topology import gemm_layer
from hwmodels.npu.scalesim.turnover import _epochs, _previous, _replayed
from hwmodels.npu.scalesim.window import fetches

GOLDEN = Path(__file__).parents[1] / "golden" / "scalesim"


def _cases():
    for path in sorted(GOLDEN.glob("*.csv")):
        rows = list(csv.reader(path.open()))
        for row in rows[2:]:
            yield pytest.param(path, rows[1], row, id=f"{path.stem}-{row[0]}")


def _config(path):
    own = path.with_name(f"cfg_{path.stem}.cfg")
    if own.exists():
        return scalesim.load_config(own)
    width = int(path.stem.rpartition("_")[2])
    base = scalesim.load_config(GOLDEN / "cfg_gemm256_32x32_os_USER.cfg")
    return dataclasses.replace(base, ifmap_bandwidth=width, filter_bandwidth=width)


def _layer(name, dims):
    sizes = [int(part) for part in dims.split("x")]
    if len(sizes) == 3:
        return gemm_layer(name, *sizes)
    names = ("height", "width", "kernel_height", "kernel_width", "channels", "filters", "stride")
    return scalesim.Layer(name=name, **dict(zip(names, sizes, strict=True)))


@pytest.mark.parametrize(("path", "columns", "row"), list(_cases()))
def test_every_measured_report_to_the_last_digit(path, columns, row):
    reports = scalesim.layer_rows(scalesim.replay(_layer(row[0], row[1]), _config(path)))
    values = [
        *reports["COMPUTE_REPORT.csv"],
        *reports["DETAILED_ACCESS_REPORT.csv"],
        *reports["BANDWIDTH_REPORT.csv"],
    ]
    assert len(values) == len(columns) - 3
    ours = dict(zip(columns[2:-1], map(str, values), strict=True))
    assert ours == dict(zip(columns[2:-1], row[2:-1], strict=True))


def test_closed_forms_are_the_replay_without_stalls():
    config = scalesim.load_config(GOLDEN / "cfg_vits_32x32_is_CALC.cfg")
    layers = [gemm_layer("a", 196, 192, 384), gemm_layer("b", 7, 3, 65), gemm_layer("again", 196, 192, 384)]
    closed = scalesim.closed_forms(layers, config)
    for i, layer in enumerate(layers):
        full = scalesim.replay(layer, config)
        assert closed.cycles[i] == full.total_cycles
        assert (closed.ifmap_sram[i], closed.filter_sram[i], closed.ofmap_sram[i]) == tuple(t.count for t in full.sram)
        assert (closed.overall[i], closed.mapping[i], closed.compute[i]) == (full.overall, full.mapping, full.compute)


def test_means_are_summed_in_order():
    rows, columns = np.array([4, 4, 3]), np.array([5, 2])
    values = [a * b * 7 / 180 for b in columns.tolist() for a in rows.tolist()]
    assert _mean(rows, columns, 7, 180) == sum(values) / 6


def _naive_epochs(stream, size):
    """Read buffer as a set that is emptied when it holds `size` words."""
    held, reads, last = set(), 0, None
    for position, word in enumerate(stream):
        if word not in held:
            held.add(word)
            reads += 1
            if len(held) == size:
                held, last = set(), position
    return reads, last


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 20, 21, 100])
def test_epochs_of_products_and_of_streams_that_repeat(size):
    blocks = [(7, 3), (2, 5), (13, 1), (5, 4)]
    stream = []
    for number, (distinct, times) in enumerate(blocks):
        stream += [(number, word) for word in range(distinct)] * times
    assert _epochs(blocks, size) == _naive_epochs(stream, size)
    words = np.random.default_rng(size).integers(0, 30, 80)
    assert _replayed(_previous(words), 3, size) == _naive_epochs(words.tolist() * 3, size)


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_streams_say_where_each_element_is(dataflow):
    config = scalesim.Config(rows=4, columns=3, ifmap_kb=1, filter_kb=1, ofmap_kb=1, dataflow=dataflow)
    schedule = Schedule(gemm_layer("x", 5, 7, 6), config)
    for operand in ("ifmap", "filter", "ofmap"):
        stream = schedule.stream(operand)
        lines = [stream.line_of(position) for position in range(stream.total)]
        assert lines == sorted(lines)
        assert lines[-1] < schedule.lines
        for line in range(schedule.lines):
            assert stream.before(line) == sum(1 for found in lines if found < line)
    assert schedule.lines == len(schedule.rows) * len(schedule.columns) * schedule.period


def _naive_fetches(schedule, operand, kb):
    """(line, moves) from sets of words, asked one word at a time."""
    per_set = -(-kb * 1024 // 100)
    order = schedule.fetched(operand).tolist()
    sets = [set(order[i : i + per_set]) for i in range(0, len(order), per_set)]
    if len(order) % per_set == 0:
        sets.append(set())
    held = min(-(-kb * 512 // per_set), len(sets))
    step, start, out = min(held, len(sets) - held), 0, []
    if not step:
        return []
    stream = schedule.stream(operand)
    for fold in range(len(stream.until)):
        column, row = divmod(fold, len(schedule.rows))
        for line, asked in enumerate(_asked(schedule, operand, column, row)):
            moves = 0
            for word in asked:
                while not any(word in sets[(start + i) % len(sets)] for i in range(held)):
                    start, moves = (start + step) % len(sets), moves + 1
            if moves:
                out.append((fold * schedule.period + int(stream.first[fold]) + line, moves))
    return out


def _asked(schedule, operand, column, row):
    """Words of each line of a fold, from the layer's own matrices: pixel by pixel, filter by filter."""
    layer, config, flow = schedule.layer, schedule.config, schedule.config.dataflow
    sr, sc, t = schedule.sizes
    down = range(row * config.rows, min((row + 1) * config.rows, sr))
    across = range(column * config.columns, min((column + 1) * config.columns, sc))
    ifmap = operand == "ifmap"

    def word(pixel, window, number):  # indices into the m, k and n axes
        if not ifmap:
            return window * layer.n + number
        y, x = (part * layer.stride for part in divmod(pixel, layer.outputs[1]))
        rest, channel = divmod(window, layer.channels)
        dy, dx = divmod(rest, layer.kernel_width)
        inside = y + dy < layer.height and x + dx < layer.width
        return ((y + dy) * layer.width + x + dx) * layer.channels + channel if inside else -1

    if operand == schedule.stationary:  # the last row goes in first
        at = {"ws": lambda a, b: (None, a, b), "is": lambda a, b: (b, a, None)}[flow]
        lines = [[word(*at(a, b)) for b in across] for a in reversed(down)]
    else:
        lanes = down if schedule.by_row(operand) else across
        at = {
            ("os", True): lambda s, lane: (lane, s, None),
            ("os", False): lambda s, lane: (None, s, lane),
            ("ws", True): lambda s, lane: (s, lane, None),
            ("is", False): lambda s, lane: (None, lane, s),
        }[flow, ifmap]
        lines = [[] for _ in range(t + len(lanes) - 1)]
        for i, lane in enumerate(lanes):
            for s in range(t):
                lines[s + i].append(word(*at(s, lane)))
    return [[one for one in line if one >= 0] for line in lines]


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize(
    "layer",
    [
        gemm_layer("product", 60, 50, 44),
        gemm_layer("row", 1, 90, 40),
        scalesim.Layer(name="conv", height=13, width=14, kernel_height=3, kernel_width=4, channels=12, filters=30),
        scalesim.Layer(
            name="over", height=14, width=13, kernel_height=3, kernel_width=2, channels=9, filters=17, stride=2
        ),
    ],
    ids=lambda layer: layer.name,
)
def test_moves_of_the_window_against_sets_of_words(dataflow, layer):
    config = scalesim.Config(rows=7, columns=5, ifmap_kb=1, filter_kb=1, ofmap_kb=1, dataflow=dataflow, mode="USER")
    schedule = Schedule(layer, config)
    moved = 0
    for operand in ("ifmap", "filter"):
        found = fetches(schedule, operand, 1, 10)
        assert list(zip(found.line, found.moves, strict=True)) == _naive_fetches(schedule, operand, 1)
        moved += sum(found.moves)
    assert moved


def test_skewed_blocks_shift_each_column_by_one_line():
    assert skewed(np.array([[1, 2], [3, 4], [5, 6]])).tolist() == [[1, -1], [3, 2], [5, 4], [-1, 6]]
    assert skewed(np.array([[1], [2]])).tolist() == [[1], [2]]


def test_the_write_buffer_never_loses_a_word_it_counts():
    config = scalesim.Config(rows=8, columns=8, ifmap_kb=1, filter_kb=1, ofmap_kb=1, dataflow="ws")
    stream = Schedule(gemm_layer("x", 200, 40, 30), config).stream("ofmap")
    buffer = WriteBuffer(stream, 1, 8)
    line, cycle = 0, 0
    while (line := buffer.next_line(0, line, 10**9)) is not None:
        cycle += buffer.run_line(line, line)
        line += 1
    buffer.finish(10**6)
    assert cycle == 0  # drains keep up with eight columns
    assert stream.total <= buffer.writes < stream.total + 8 * stream.total // 512


def test_reports_are_written_as_it_writes_them(tmp_path):
    config = scalesim.load_config(GOLDEN / "cfg_gemm256_32x32_os_CALC.cfg")
    out = scalesim.write_reports(config, [gemm_layer("t", 256, 128, 256)] * 2, tmp_path)
    assert out == tmp_path / "gemm256_32x32_os_CALC"
    lines = (out / "COMPUTE_REPORT.csv").read_text().splitlines()
    assert lines[0] == (
        "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, "
        "Compute Util %,"
    )
    assert lines[1] == "0, 14473, 10175, 0, 80.51105651105651, 100.0, 80.50314465408805,"
    assert lines[2] == "1" + lines[1][1:]
    assert {p.name for p in out.iterdir()} == {
        "COMPUTE_REPORT.csv",
        "BANDWIDTH_REPORT.csv",
        "DETAILED_ACCESS_REPORT.csv",
    }


CFG = (GOLDEN / "cfg_gemm256_32x32_os_USER.cfg").read_text()


def test_missing_sections_take_named_defaults():
    short = CFG.partition("[layout]")[0] + "[run_presets]\nInterfaceBandwidth: USER\n"
    config = scalesim.parse_config(short)
    assert config.ifmap_bandwidth == 10
    assert "[layout] IfmapSRAMBankBandwidth = 10" in config.assumed
    assert "[run_presets] UseRamulatorTrace = False" in config.assumed
    assert scalesim.parse_config(CFG).assumed == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ArrayHeight:    32", "", r"my.cfg: \[architecture_presets\] ArrayHeight is missing; it has no default"),
        ("ArrayHeight:    32", "ArrayHeight: 0", "ArrayHeight is 0; allowed: an integer of at least 1"),
        ("ArrayWidth:     32", "ArrayWidth: wide", "ArrayWidth is 'wide'; allowed: an integer"),
        ("IfmapSramSzkB:   64", "IfmapSramSzkB:   -1", "IfmapSramSzkB is -1"),
        ("Dataflow : os", "Dataflow : rs", r"Dataflow is 'rs'; allowed: os, ws, is"),
        ("InterfaceBandwidth: USER", "InterfaceBandwidth: MINE", "'MINE'; allowed: CALC, USER"),
        ("InterfaceBandwidth: USER", "", r"\[run_presets\] InterfaceBandwidth is missing"),
        ("Bandwidth : 10", "Bandwidth : fast", "Bandwidth is 'fast'; allowed: integers"),
        ("Bandwidth : 10", "Bandwidth : 0", "bandwidth is 0; allowed: an integer of at least 1"),
        ("SparsitySupport : false", "SparsitySupport : true", "SparsitySupport is on; sparse filters"),
        ("IfmapCustomLayout: False", "IfmapCustomLayout: True", "IfmapCustomLayout is on"),
        ("UseRamulatorTrace: False", "UseRamulatorTrace: True", "UseRamulatorTrace is on"),
        ("IfmapSRAMBankNum: 1", "IfmapSRAMBankNum: 3", "IfmapSRAMBankNum is 3; allowed: a divisor of .* = 10"),
        ("[general]", "general", "my.cfg: not a SCALE-Sim configuration"),
        (
            "[layout]",
            "",
            r"my.cfg: \[architecture_presets\] IfmapCustomLayout is not read there; move it to \[layout\]",
        ),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(old, new, message):
    assert old in CFG
    with pytest.raises(ValueError, match=message) as caught:
        scalesim.parse_config(CFG.replace(old, new), "my.cfg")
    assert "\n" not in str(caught.value)


def test_topologies_in_both_forms():
    (gemm,) = scalesim.parse_topology("Layer, M, N, K,\ng, 256, 128, 64,\n", "gemm")
    assert (gemm.m, gemm.n, gemm.k) == (256, 128, 64)
    (conv,) = scalesim.parse_topology("h,\nc, 8, 9, 3, 2, 4, 5, 2,\n")
    assert conv.outputs == (4, 5)  # one more than floor((8 - 3) / 2) + 1 and floor((9 - 2) / 2) + 1
    assert conv.overhangs
    deep = scalesim.parse_topology("h,\nc DP1, 8, 8, 3, 3, 4, 1, 1, 1:1,\n")
    assert [layer.channels for layer in deep] == [1] * 4


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("h,\n", "conv", "has no layers"),
        ("h,\na, 1, 2,\n", "gemm", "line 2: 3 columns; allowed for 'gemm': 4"),
        ("h,\na, 1, 2, x,\n", "gemm", "line 2: K is 'x'; allowed: an integer"),
        ("h,\na, 0, 2, 3,\n", "gemm", "line 2: layer 'a': height is 0"),
        ("h,\na, 2, 2, 3, 3, 1, 1, 1,\n", "conv", r"the filter \(3\) is larger than its input \(2\)"),
        ("h,\na, 8, 8, 3, 3, 1, 1, 1, 2:4,\n", "conv", "sparsity '2:4' is not reproduced"),
        ("h,\na, 8\n", "mnk", "unknown topology form 'mnk'"),
    ],
)
def test_a_bad_topology_is_one_line_that_names_the_line(text, form, message):
    with pytest.raises(ValueError, match=message):
        scalesim.parse_topology(text, form)


def test_a_buffer_that_turns_over_within_a_cycle_is_refused():
    config = scalesim.Config(rows=8, columns=600, ifmap_kb=1, filter_kb=1, ofmap_kb=1, dataflow="os")
    with pytest.raises(ValueError, match="the filter memory of 1 kB turns over within a cycle"):
        scalesim.replay(gemm_layer("wide", 8, 600, 9), config)
