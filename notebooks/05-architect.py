# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which array, which format, which accumulator?
#
# The question before silicon exists. **Claims of this page:** on SDXL each quadrupling of the array buys less than the
# one before, because main memory does not grow with it; of the 8-bit formats it is the accumulator that decides the
# gates, not the multiplier, and FP8 in 16 bits of fixed point is smaller than INT8; and a small U-Net is content with
# fewer accumulator bits than any guarantee asks for, until suddenly it is not. The long version, with more pictures:
# `fpsim whatif experiments/npu.toml`.
#
# Times, bytes and joules below are **projected** (a model in closed form, nothing fitted; docs/npu.md says what it
# leaves out). Gates are **counted** by synthesis (about 20 % of tool noise). Bits and pictures are
# **measured** here, by running the embedded U-Net bit for bit.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

import analysis
import fpsim
import hwmodels
from analysis.accumulators.partial_sums import by_data_type, watched
from analysis.accumulators.runs import on_accumulator
from analysis.metrics import evaluate
from analysis.plan import held_out
from analysis.runner import calibrate, load
from analysis.silicon import silicon
from hwmodels import rtl
from hwmodels.npu import explain, joules

# %% [markdown]
# ## 1. The array (projected)
#
# `my-npu` is a TOML file to copy; a what-if is a `dataclasses.replace`. The array grows with its rates, the scratchpad
# on its own, main memory (128 GB/s) and vector unit stay. One denoiser call of SDXL, 1024 x 1024, two rows, INT8.

# %%
sdxl = analysis.trace("sdxl-base", batch=2)
template = hwmodels.device("my-npu")
SIDES, MEBIBYTES = (32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32)


def built(side: int, mebibytes: int) -> hwmodels.Device:
    """The template with side x side elements and another scratchpad."""
    factor = side**2 / (template.npu.rows.value * template.npu.columns.value)

    def scaled(row, by):
        return replace(row, value=row.value * by)

    length = side / template.npu.rows.value
    pad = template.caches["sram"]
    return replace(
        template,
        npu=replace(template.npu, rows=scaled(template.npu.rows, length), columns=scaled(template.npu.columns, length)),
        caches={"sram": replace(pad, capacity=replace(pad.capacity, value=mebibytes * 2.0**20))},
        rates={
            key: replace(rate, peak=scaled(rate.peak, factor), per_clock=scaled(rate.per_clock, factor))
            for key, rate in template.rates.items()
        },
    )


priced, refused = {}, {}
for side in SIDES:
    for size in MEBIBYTES:
        try:
            priced[side, size] = hwmodels.estimate(sdxl, "int8", built(side, size), mode="compiled", model="systolic")
        except ValueError as error:
            refused[side, size] = str(error).partition(": ")[2]
times = pd.Series({key: 1e3 * one.time_s for key, one in priced.items()}).unstack()
times.index.name, times.columns.name = "side", "MiB"
print("milliseconds per call, projected\n")
print(times.map("{:.0f}".format).replace("nan", "refused").to_string())
print("\nrefused, for one:", next(iter(refused.values())))

# %% [markdown]
# Where the time goes with 8 MiB. *Mapping*: elements that an operation's shape leaves idle; *bandwidth*: waiting for
# main memory. The ideal part falls sixteen-fold from 64 to 256; the rest grows.

# %%
reasons = pd.DataFrame({side: explain(priced[side, 8]).shares() for side in SIDES}).T
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for size, shade in zip((2, 8, 32), ("#9ecae1", "#4292c6", "#08306b"), strict=True):
    left.loglog(SIDES, times[size], "o-", color=shade, label=f"{size} MiB", markersize=4)
left.set_xticks(SIDES, [str(side) for side in SIDES])
left.set_yticks((200, 500, 1000, 2000, 5000), ("200", "500", "1000", "2000", "5000"))
left.minorticks_off()
left.set(xlabel="side of the array", ylabel="ms per call, projected")
left.legend(frameon=False, fontsize=8, title="scratchpad", title_fontsize=8)
bottom = pd.Series(0.0, index=reasons.index)
labels = [str(side) for side in SIDES]
colours = {
    "ideal": "#2ca02c",
    "mapping": "#ff7f0e",
    "fill_drain": "#7f7f7f",
    "bandwidth": "#d62728",
    "vector": "#9467bd",
}
for reason, shares in reasons.items():
    right.bar(
        labels, 100 * shares, bottom=100 * bottom, label=reason.replace("_", "/"), color=colours[reason], width=0.6
    )
    bottom += shares
right.set(xlabel="side of the array, 8 MiB", ylabel="% of the time, projected")
right.legend(ncols=3, fontsize=7.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
for axis in (left, right):
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
figure.tight_layout()
memory = pd.DataFrame(
    {
        "main memory, GB": {size: explain(priced[128, size]).dram_bytes / 1e9 for size in MEBIBYTES},
        "joules, 7 nm": {size: joules(priced[128, size], "7nm", built(128, size)).total for size in MEBIBYTES},
    }
)
print("128 x 128, one call, by MiB of scratchpad, projected\n")
print(memory.round(1).to_string())

# %% [markdown]
# ## 2. The format (time and joules projected, gates counted)
#
# Time and main memory do not know what an adder costs: INT8 and FP8 look the same to them. Gates do. The
# last two columns are of one multiply-accumulate, register and block scales aside; `needs` is the width that holds any
# sum of the longest dot product of SDXL (for floats: of the fixed-point register that adds without rounding).
# `fixed16-lsb8-saturate` is a fixed-point register of 16 bits whose last bit is worth 2**8: what products have below it
# is cut off.

# %%
longest = max(
    (op.gemm() if isinstance(op, hwmodels.Conv2d) else op).k
    for op in sdxl.ops
    if isinstance(op, (hwmodels.Gemm, hwmodels.Conv2d))
)
# scheme, operands, accumulator in words
BUILDS = [
    ("bf16", "bf16", "f32"),
    ("int8", "int8", "int32"),
    ("int8", "int8", "int24"),
    ("int8", "int8", "int16-saturate"),
    ("fp8", "e4m3", "f32"),
    ("fp8", "e4m3", "f16"),
    ("fp8", "e4m3", "fixed40"),
    ("fp8", "e4m3", "fixed16-lsb8-saturate"),
    ("int4", "int4", "int32"),
    ("nvfp4", "e2m1", "f32"),
]
rows = []
for scheme, operand, words in BUILDS:
    one = hwmodels.estimate(sdxl, scheme, "my-npu", mode="compiled", model="systolic")
    kind = rtl.accumulator(words)
    spec = fpsim.MatmulSpec(operand, operand, kind)
    fits = next(iter(rtl.in_equal_area(rtl.REFERENCE, [spec]).values()))
    cost = silicon(one, words if scheme != "bf16" else None)
    row = fpsim.format(operand)
    needs = "" if operand in ("bf16", "e2m1") else by_data_type(row, row, longest)
    gates = rtl.gates(spec).gates_per_product
    rows.append((scheme, words, 1e3 * one.time_s, 20 * cost.energy, needs, gates, fits))
formats = pd.DataFrame(
    rows, columns=["scheme", "adds into", "ms per call", "J per image", "needs, bits", "gates", "per int8/int32"]
)
print(f"SDXL on my-npu, 20 steps with guidance, denoiser only; longest sum: {longest:,} products\n")
print(formats.round({"ms per call": 0, "J per image": 0, "gates": 0, "per int8/int32": 2}).to_string(index=False))
formats = formats.set_index(["scheme", "adds into"])

# %%
figure, axis = plt.subplots(figsize=(7, 2.9))
labels = [f"{operand} into {words}" for _, operand, words in BUILDS]
colours = ["#08519c" if words.startswith(("int", "fixed")) else "#e6550d" for *_, words in BUILDS]
bars = axis.barh(labels, formats["per int8/int32"], color=colours, height=0.65)
axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
axis.axvline(1, color="0.7", linewidth=0.8, zorder=0)
axis.invert_yaxis()
axis.set(
    xlabel="multiply-accumulates in the gates of one int8 into int32, counted (blue: whole numbers, orange: floats)"
)
axis.xaxis.label.set_size(8.5)
axis.tick_params(axis="y", labelsize=8)
for side in ("top", "right"):
    axis.spines[side].set_visible(False)
figure.tight_layout()

# %% [markdown]
# ## 3. The accumulator (measured)
#
# The embedded U-Net in INT8, run bit for bit. First what its sums need: the data types promise for any model, the
# weights for any input, the last three are what a few random rows of one calibration prompt did (two steps).

# %%
pipe = load("shapes-sd")
calibration = calibrate(pipe, held_out(2, (1, 2, 3, 4), 1_000_003).captions(), steps=2)
int8 = analysis.quantize(pipe, "int8-w8a8", calibration=calibration)
with watched(int8.unet, rows=2) as sums:
    analysis.sample(int8, calibration.captions[:1], calibration.seeds[:1], steps=2)
layers = sums()
KINDS = {"data_type": "data types", "weight": "weights", "any_order": "seen, any order", "in_order": "seen, in order",
         "final": "results"}  # fmt: skip
bits = pd.DataFrame([{name: getattr(layer, key) for key, name in KINDS.items()} for layer in layers])
print(f"bits over {len(layers)} layers, {sum(layer.observed.outputs for layer in layers):,} outputs looked at\n")
print(bits.agg(["min", "median", "max"]).round(1).to_string())

# %% [markdown]
# Then what narrow registers draw: three pictures, three steps, the same seeds; PSNR against full precision. Few and
# coarse, enough to tell fine from broken; docs/accumulators.md has more prompts and methods made for narrow registers.
# FP8's products reach down to 2**-18: from there 32 bits do not hold its sums. Sixteen that begin at 2**8 do, and what
# they cut off is small beside what FP8 rounds anyway.

# %%
scenes, seeds = held_out(3, (1, 2), 0), [0, 1, 2]
fp8 = analysis.quantize(pipe, "fp8-w8a8", calibration=calibration)
pictures = {"full precision": analysis.sample(pipe, scenes.captions(), seeds, steps=3)}
for quantized, several in (
    (int8, ("int32", "int18-saturate", "int16-saturate", "int16")),
    (fp8, ("f32", "fixed32-saturate", "fixed16-lsb8-saturate")),
):
    for words in several:
        narrow = on_accumulator(quantized, rtl.accumulator(words))
        pictures[words] = analysis.sample(narrow, scenes.captions(), seeds, steps=3)
psnr = {
    words: float(evaluate(images, scenes, pictures["full precision"]).psnr.mean())
    for words, images in pictures.items()
    if words != "full precision"
}
figure, axes = plt.subplots(3, len(pictures), figsize=(9, 4.2))
for column, (words, images) in zip(axes.T, pictures.items(), strict=True):
    title = words.replace("-saturate", "\nsaturate")
    column[0].set_title(title + (f"\n{psnr[words]:.1f} dB" if words in psnr else "\n"), fontsize=7.5)
    for axis, image in zip(column, images, strict=True):
        axis.imshow(image.permute(1, 2, 0))
        axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## What one would build

# %%
widest = bits.max()
conclusion = [
    ("array", "128 x 128", f"256 x 256: 4 x elements, {times[8][128] / times[8][256]:.1f} x speed", "projected"),
    (
        "scratchpad",
        "32 MiB",
        f"8 to 32 MiB: {times[8][128]:.0f} to {times[32][128]:.0f} ms, "
        f"{memory['joules, 7 nm'][8]:.1f} to {memory['joules, 7 nm'][32]:.1f} J a call",
        "projected",
    ),
    (
        "format",
        "int8",
        f"{formats['ms per call']['int8', 'int32']:.0f} ms, bf16 {formats['ms per call']['bf16', 'f32']:.0f}; "
        "fp8 the same time, into f32 "
        f"{formats['gates']['fp8', 'f32'] / formats['gates']['int8', 'int32']:.1f} x the gates",
        "projected, counted",
    ),
    (
        "accumulator",
        "24 bits",
        f"weights promise {widest['weights']}, rows seen need {widest['seen, in order']}; "
        f"{1 - formats['gates']['int8', 'int24'] / formats['gates']['int8', 'int32']:.0%} of the gates saved",
        "measured on a small U-Net, counted",
    ),
    ("not", "16 bits", f"{psnr['int32']:.0f} dB become {psnr['int16-saturate']:.0f}, wrapping {psnr['int16']:.0f}",
     "measured on 3 pictures"),
    ("or", "fp8 into 16", f"from 2**8 up: {psnr['f32']:.0f} dB stay {psnr['fixed16-lsb8-saturate']:.0f}, "
     f"{1 - formats['gates']['fp8', 'fixed16-lsb8-saturate'] / formats['gates']['int8', 'int32']:.0%} fewer gates",
     "measured on 3 pictures, counted"),
]  # fmt: skip
for what, choice, why, known in conclusion:
    print(f"{what:12s}{choice:12s}{why:68s}{known}")

# %% [markdown]
# What this does not say: whether SDXL's pictures survive INT8 (the embedded U-Net stands in for it), what the area of
# 32 MiB is (no source here gives one), and whether a last bit at 2**8 suits another model's ranges; 24 bits are a
# promise for these weights only, the data types of SDXL's longest sum ask for more, and longer sums would be cut.

# %% [markdown]
# ## The claims of this page, asserted

# %%
assert times[8][32] / times[8][64] > 3.5, "the first quadrupling is nearly all gain"
assert times[8][128] / times[8][256] < 2 < times[8][64] / times[8][128]
assert reasons["ideal"][64] > 0.9, "compute bound"
assert reasons["bandwidth"][256] > 0.5, "memory bound"
assert (1 - reasons["ideal"][256]) * times[8][256] > (1 - reasons["ideal"][64]) * times[8][64], "losses do not shrink"
assert refused, "a scratchpad that holds no tile is refused, not priced"
assert memory["main memory, GB"].is_monotonic_decreasing
assert formats["ms per call"]["int8", "int32"] == formats["ms per call"]["fp8", "f32"]
assert formats["gates"]["fp8", "f32"] > 3 * formats["gates"]["int8", "int32"]
assert formats["gates"]["fp8", "fixed40"] < 1.1 * formats["gates"]["int8", "int32"], (
    "the accumulator, not the multiplier"
)
assert formats["needs, bits"]["fp8", "fixed40"] > 40, "and why 40 bits are no promise"
assert formats["gates"]["fp8", "fixed16-lsb8-saturate"] < 0.75 * formats["gates"]["int8", "int24"]
assert formats["J per image"]["fp8", "f32"] > formats["J per image"]["int8", "int32"]
for wide, narrow in zip(list(KINDS.values())[:-1], list(KINDS.values())[1:], strict=True):
    assert (bits[wide] >= bits[narrow]).all(), "each answer is at most the one before"
assert widest["weights"] <= 24
assert widest["seen, in order"] <= 20 < widest["weights"]
assert psnr["int32"] > 35
assert psnr["int18-saturate"] > psnr["int16-saturate"] + 8
assert psnr["int16-saturate"] > psnr["int16"] + 5, "wrapping and saturating are different machines"
assert psnr["fixed16-lsb8-saturate"] > psnr["f32"] - 6, "16 bits that begin where sums do"
assert psnr["fixed32-saturate"] < psnr["fixed16-lsb8-saturate"] - 15, "and 32 that do not"
