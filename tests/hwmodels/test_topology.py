"""SCALE-Sim topologies: out and in again, with the same work; malformed lines are named."""

import pytest

from hwmodels import Attention, Conv2d, Elementwise, Gemm, Workload
from hwmodels.topology import from_scalesim, load_scalesim, to_csv, to_scalesim

WORK = Workload(
    name="toy",
    ops=(
        Conv2d(path="conv", batch=2, in_channels=4, out_channels=6, height=9, width=7, kernel=3, stride=2, groups=2),
        Gemm(path="linear", m=5, n=6, k=7, count=3),
        Attention(path="attn", batch=2, heads=3, queries=4, keys=5, head_dim=6, value_dim=8),
        Elementwise(path="act", elements=10),
    ),
)


@pytest.mark.parametrize(("form", "convolutions"), [("conv", 2 * 2), ("gemm", 2)])
def test_the_matrix_work_survives_a_round_trip(form, convolutions):
    back = from_scalesim(to_scalesim(WORK, form), form=form)
    assert back.macs == WORK.macs
    assert len(back) == convolutions + 3 + 2 * 3 * 2
    assert back.ops[0].path == "conv"


def test_padding_becomes_part_of_the_input():
    back = from_scalesim(to_scalesim(WORK, "conv"))
    first = back.ops[0]
    assert (first.height, first.width, first.padding) == (11, 9, 0)
    assert first.outputs == WORK.ops[0].outputs


def test_files_as_scalesim_ships_them_are_read(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(
        "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"
        "Conv1, 224, 224, 7, 7, 3, 64, 2,\n\n"
        "FC, 1, 1, 1, 1, 512, 1000, 1, 1:1,\n"
    )
    work = load_scalesim(path)
    assert work.name == "net"
    assert work.ops[0].outputs == (109, 109)  # ceil((224 - 7 + 2) / 2): no padding there
    assert work.ops[1].macs == 512 * 1000
    assert from_scalesim("Layer, M, N, K,\nq, 3, 4, 5,\n").ops == (Gemm(path="q", m=3, n=4, k=5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Layer, M, N, K\nq, 3, 4", r"line 2: 3 columns; allowed: 4 \(gemm\) or 8 \(conv\)"),
        ("Layer, M, N, K\nq, 3, 4, x", "line 2: K is 'x'; allowed: an integer"),
        ("Layer, M, N, K\nq, 3, 0, 4", "line 2: Gemm: n=0"),
        ("Layer, M, N, K\n", "has no layers"),
        ("h\na,8,8,3,3,4,4,1,2:4", "line 2: '2:4' in column 9"),
    ],
)
def test_malformed_lines_are_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_scalesim(text)
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.csv"):
        load_scalesim(path)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="unknown topology form 'gem'; did you mean 'gemm'"):
        to_scalesim(WORK, "gem")


def test_csv_has_a_line_per_operation():
    lines = to_csv(WORK).splitlines()
    assert lines[0].startswith("path,kind,shape,count,macs")
    assert len(lines) == 1 + len(WORK)
    assert to_csv(Workload(name="empty", ops=())) == ""
