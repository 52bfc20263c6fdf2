"""The systolic model through `estimate`: parts that add up, formats, attention, vector work, device files."""

from dataclasses import replace

import numpy as np
import pytest

import hwmodels as h
from hwmodels.fallback import Execution
from hwmodels.npu import NotSystolic, explain, materialised, systolic
from hwmodels.npu.model import PARTS, price_systolic
from hwmodels.npu.vector import cuts, sum_limit

NPUS = [name for name in h.DEVICES if h.device(name).npu is not None]
OPS = (
    h.Gemm(m=512, n=384, k=320, bias=True, path="linear"),
    h.Gemm(m=1, n=1024, k=1024, path="gemv"),
    h.Gemm(m=64, n=64, k=64, batch=8, parameter=False, path="bmm"),
    h.Conv2d(batch=2, in_channels=32, out_channels=48, height=20, width=20, kernel=3, path="conv"),
    h.Conv2d(in_channels=32, out_channels=32, height=20, width=20, kernel=3, groups=32, path="depthwise"),
    h.Conv2d(in_channels=8, out_channels=16, height=21, width=20, kernel=3, stride=2, padding=1, dilation=2),
    h.ConvNd(in_channels=8, out_channels=16, size=(5, 8, 8), kernel=(3, 3, 3), output=(5, 8, 8)),
    h.Attention(batch=2, heads=4, queries=100, keys=77, head_dim=40),
    h.Attention(heads=4, queries=128, keys=128, head_dim=64, causal=True, kv_heads=2),
    h.Norm(rows=200, columns=320, affine=640),
    h.Softmax(rows=100, columns=100),
    h.Elementwise(elements=5000),
    h.Reduction(elements=5000),
    h.Move(writes=5000, reads=5000),
    h.Quantize(elements=5000, format="int8"),
)
WORK = h.Workload(name="all kinds", ops=OPS)


def _spec(name):
    return (
        "bf16"
        if ("bf16", "bf16", "f32") in h.device(name).rates
        else h.Precision(weight="int8", activation="int8", accumulator="int32", output="int8")
    )


@pytest.mark.parametrize("name", NPUS)
@pytest.mark.parametrize("mode", ["graph", "compiled"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_parts_of_every_operation_add_up_on_every_device(name, mode, cache):
    found = h.estimate(WORK, _spec(name), name, mode=mode, cache=cache, model="systolic")
    assert found.model == "systolic"
    times = found.breakdown.times
    parts = sum(getattr(times, part) for part in PARTS)
    # five terms, each rounded: a few units in the last place
    np.testing.assert_allclose(parts, times.total, rtol=1e-14)
    assert all((getattr(times, part) >= 0).all() for part in PARTS)
    assert found.time_s == pytest.approx(explain(found).total, rel=1e-12)
    assert sum(explain(found).shares().values()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", NPUS)
def test_no_estimate_beats_the_roofline(name):
    for op in OPS:
        if not op.MATMUL:
            continue
        low = h.estimate(op, _spec(name), name, cache="cold", model="roofline")
        found = h.estimate(op, _spec(name), name, cache="cold", model="systolic")
        assert (
            found.time_s
            >= 2 * op.macs / h.device(name).rates[found.breakdown.executions[0].rate.key].peak.value / 1.001
        )
        assert explain(found).dram_bytes >= low.bytes * (1 - 1e-12) or isinstance(op, h.ConvNd | h.Conv2d)


def test_auto_takes_the_systolic_model_on_an_npu_and_others_are_refused():
    op = h.Gemm(m=64, n=64, k=64)
    assert h.estimate(op, "bf16", "tpu-v5e", model="auto").model == "systolic"
    assert h.estimate(op, "bf16", "tpu-v5e", model="roofline").model == "roofline"
    with pytest.raises(NotSystolic, match=r"h200-sxm: the systolic model needs an \[npu\] table"):
        h.estimate(op, "bf16", "h200-sxm", model="systolic")
    with pytest.raises(ValueError, match="an estimate by 'roofline' has no systolic explanation"):
        explain(h.estimate(op, "bf16", "tpu-v5e", model="roofline"))


def test_a_large_product_runs_at_the_peak_and_a_gemv_at_the_bandwidth():
    big = explain(h.estimate(h.Gemm(m=8192, n=8192, k=8192), "bf16", "tpu-v5e", model="systolic"))
    assert big.utilisation > 0.99
    gemv = h.estimate(h.Gemm(m=1, n=8192, k=8192), "bf16", "tpu-v5e", model="systolic")
    assert gemv.bound == "memory" or explain(gemv).bandwidth > 0
    assert gemv.time_s >= 8192 * 8192 * 2 / h.device("tpu-v5e").bandwidth


def test_formats_pack_as_the_device_says_and_missing_ones_widen_on_the_vector_unit():
    op = h.Gemm(m=4096, n=4096, k=4096)
    times = {
        spec: h.estimate(op, spec, "my-npu", model="systolic") for spec in ("bf16", "int8", "fp8", "nvfp4", "int4")
    }
    ideal = {spec: explain(found).ideal for spec, found in times.items()}
    assert ideal["bf16"] == 2 * ideal["int8"] == 2 * ideal["fp8"] == 4 * ideal["nvfp4"] == 4 * ideal["int4"]
    native, widened = times["nvfp4"], h.estimate(op, "nvfp4", "tpu-v5e", model="systolic")
    assert explain(widened).vector_ops > explain(native).vector_ops
    assert explain(native).vector_ops == op.m * op.n  # one scale per result
    assert "widened" in " ".join(widened.notes)
    with pytest.raises(h.UnsupportedFormat, match="gemmini-16x16 has no rate for bf16"):
        h.estimate(op, "bf16", "gemmini-16x16", model="systolic")


def test_narrow_accumulators_cut_long_sums():
    assert sum_limit("int8", "int8", "int24") == (2**23 - 1) // 128**2 == 511
    assert sum_limit("int8", "int8", "int32") == (2**31 - 1) // 128**2
    assert sum_limit("bf16", "bf16", "f32") == float("inf")
    with pytest.raises(ValueError, match="an int15 accumulator overflows on one product of int8 and int8"):
        sum_limit("int8", "int8", "int15")
    op = h.Gemm(m=256, n=256, k=2048)
    wide, narrow = (
        explain(
            h.estimate(
                op,
                h.Precision(weight="int8", activation="int8", accumulator=accumulator, output="int8"),
                "my-npu",
                model="systolic",
            )
        )
        for accumulator in ("int32", "int24")
    )
    assert narrow.vector_ops - wide.vector_ops == 256 * 256 * (-(-2048 // 511) - 1)


def test_a_cut_sum_is_noted_once_per_accumulator():
    narrow = h.Precision(weight="int8", activation="int8", accumulator="int24", output="int8")
    work = h.Workload(name="w", ops=(h.Gemm(m=64, n=64, k=2048), h.Gemm(m=64, n=64, k=9000), h.Gemm(m=64, n=64, k=500)))
    notes = h.estimate(work, narrow, "my-npu", model="systolic").notes
    said = [note for note in notes if "added up on the vector unit" in note]
    assert said == [
        "int8 x int8 into int24: sums of more than 511 products (here up to 9,000) are cut, and their parts added up "
        "on the vector unit"
    ]
    short = h.Workload(name="w", ops=work.ops[2:])
    assert not any("added up" in note for note in h.estimate(short, narrow, "my-npu", model="systolic").notes)


def test_attention_in_a_narrow_accumulator_cuts_its_sums_too():
    device = h.device("my-npu")
    rates = {rate.accumulator: rate for rate in device.rates.values() if rate.activation == "int8"}
    op = h.Attention(batch=2, heads=3, queries=64, keys=2048, head_dim=1024, value_dim=64)
    assert [cuts(length, rates["int24"]) for length in (64, 511, 512, 1024, 2048)] == [0, 0, 1, 2, 4]
    kernel = h.estimate(op, "bf16", "my-npu", model="systolic").breakdown.program.distinct[0]
    array = systolic(device)
    wide, narrow = (
        price_systolic([kernel], [Execution(rate=rates[name], native=True, exact=True)], array, True)
        for name in ("int32", "int24")
    )
    # two more parts of each of 2,048 scores, four of each of 64 results, for each of 2 x 3 x 64 queries
    assert narrow.vector_ops[0] - wide.vector_ops[0] == 2 * 3 * 64 * (2048 * 2 + 64 * 4)


def test_the_result_does_not_depend_on_what_else_is_priced():
    array = systolic(h.device("my-npu"))
    whole = h.estimate(WORK, "bf16", "my-npu", model="systolic")
    kernels, executions = whole.breakdown.program.distinct, whole.breakdown.executions
    together = price_systolic(kernels, executions, array, True)
    for i in range(len(kernels)):
        alone = price_systolic(kernels[i : i + 1], executions[i : i + 1], array, True)
        assert alone.total[0] == together.total[i]


def _with_sram(size):
    dev = h.device("my-npu")
    sram = dev.caches["sram"]
    return replace(dev, caches={"sram": replace(sram, capacity=replace(sram.capacity, value=size))})


def test_keys_and_values_that_do_not_fit_are_read_once_per_block_of_queries():
    op = h.Attention(heads=1, queries=4096, keys=65536, head_dim=128)
    dev = h.device("my-npu")
    small, tiny = _with_sram(2.0**20), _with_sram(4096.0)
    large, less = (explain(h.estimate(op, "bf16", d, model="systolic")).dram_bytes for d in (dev, small))
    assert less > large
    # two tiles of 128 keys and values of 128 bf16, and for each of 128 queries itself twice, its sums and its scores
    need = (2 * 128 * 256 * 2 + 128 * (2 * 128 * 2 + 4 * 128 + 4 * 128)) / 1024
    with pytest.raises(ValueError, match=rf"128 queries of 'a' and its keys needs {need:.1f} KiB .* it has 4\.0 KiB"):
        h.estimate(replace(op, path="a"), "bf16", tiny, model="systolic")
    assert h.estimate(op, "bf16", _with_sram(1024 * need), model="systolic").time_s > 0
    with pytest.raises(ValueError, match=r"one tile of 'linear' needs .* KiB of scratchpad, it has 4.0 KiB"):
        h.estimate(OPS[0], "bf16", tiny, model="systolic")


def test_attention_in_three_kernels_does_the_same_products_and_moves_its_scores():
    plain = h.Attention(batch=2, heads=4, queries=512, keys=256, head_dim=64, value_dim=32, path="a", count=3)
    masked = h.Attention(heads=2, queries=64, keys=64, head_dim=32, causal=True, path="b")
    work = h.Workload(name="w", ops=(plain, OPS[0], masked))
    three = materialised(work)
    assert [type(op).__name__ for op in three.ops] == [
        *("Gemm", "Softmax", "Gemm", "Gemm", "Gemm", "Elementwise", "Softmax", "Gemm")
    ]
    assert [op.path for op in three.ops] == ["a"] * 3 + ["linear"] + ["b"] * 4
    assert sum(op.macs for op in three.ops[:3]) == plain.macs
    assert {op.count for op in three.ops[:3]} == {3}
    assert sum(op.macs for op in three.ops[4:]) == 2 * 64 * 64 * 64  # a mask saves nothing
    one, apart = (
        explain(h.estimate(w, "bf16", "my-npu", cache="cold", model="systolic"))
        for w in (h.Workload(name="w", ops=(plain,)), h.Workload(name="w", ops=three.ops[:3]))
    )
    assert apart.dram_bytes - one.dram_bytes == 3 * 4 * 2 * 4 * 512 * 256 * 2  # scores: out, in, out, in
    assert apart.ideal == pytest.approx(one.ideal, rel=1e-15)  # added up in another order


TOML = (h.device_file.FOLDER / "my-npu.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('dataflow = "ws"', 'dataflow = "rs"', "mine.toml: npu.dataflow: 'rs'; allowed: ws, os, is"),
        ('dataflow = "ws"', "", "npu.dataflow: missing"),
        ('scratchpad = "sram"', 'scratchpad = "l1"', "npu.scratchpad: 'l1'; allowed: sram"),
        ("rows = { value = 128", "rows = { value = 0", "npu.rows.value: 0; allowed: a positive number"),
        ("rows = { value = 128", "rows = { value = 1.5", "npu.rows: 1.5; allowed: a whole number"),
        ('clock = "core"\nscratchpad', 'clock = "turbo"\nscratchpad', "npu.clock: 'turbo'; allowed: core"),
        ("overlap = true", "overlap = 1", "npu.overlap: 1; allowed: true, false"),
        ("overlap = true", "overlaps = true", "npu.overlaps: unknown key"),
    ],
)
def test_a_mistake_in_an_npu_table_names_file_and_key(old, new, message):
    assert old in TOML
    with pytest.raises(ValueError, match=message):
        h.parse_device(TOML.replace(old, new), "mine")


@pytest.mark.parametrize("name", NPUS)
def test_arrays_reproduce_the_peaks(name):
    device = h.device(name)
    array = systolic(device)
    for rate in device.rates.values():
        packed = array.packing(rate)
        assert min(abs(packed - whole) for whole in (0.25, 0.5, 1, 2, 4)) < 0.01, (rate.key, packed)
