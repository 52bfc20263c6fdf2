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
# # One dot product on eight chips
#
# A matrix engine promises the sum of a few products. It does not promise the textbook's: products are aligned to the
# largest one, cut to a number of bits, added, cut again. **Claim of this page:** four products and a starting value
# tell the generations of GPUs apart, and one GPU has two FP8 paths whose errors differ by a factor of 500, for reasons
# that can be read off one frozen object.

# %%
import matplotlib.pyplot as plt
import numpy as np

import fpsim

# %% [markdown]
# ## The fingerprint
#
# The products are -2^23, -1/2, -1/4 and -1/8, the starting value is 2^23. The large ones cancel: the answer is -0.875.
# An engine that aligns everything to 2^23 keeps only as many bits of the small products as its adder is wide.

# %%
a = np.array([[-(2.0**13), -0.5, -0.25, -0.125]], dtype=np.float32)
b = np.array([[2.0**10], [1.0], [1.0], [1.0]], dtype=np.float32)
c = np.array([[2.0**23]], dtype=np.float32)

CHIPS = ["volta/mma", "turing/mma", "ampere/mma", "ada/mma", "hopper/wgmma", "blackwell/tcgen05", "cdna1/mfma",
         "cdna2/mfma", "cdna3/mfma"]  # fmt: skip


def fingerprint(engine: str, operands: str) -> float | None:
    """The engine's answer, None if it has no such operands."""
    try:
        spec = fpsim.engine(engine, a=operands, b=operands, out="f32")
    except ValueError:
        return None
    return float(fpsim.matmul(fpsim.encode(a, operands), fpsim.encode(b, operands), spec, c=c)[0, 0])


table = {engine: {kind: fingerprint(engine, kind) for kind in ("f16", "bf16", "e5m2")} for engine in CHIPS}
print(f"{'':20s}{'f16':>9s}{'bf16':>9s}{'e5m2':>9s}")
for engine, row in table.items():
    print(f"{engine:20s}" + "".join(f"{'' if value is None else value:>9}" for value in row.values()))

# %% [markdown]
# ## Why: the accumulator
#
# What differs is data, not code: the number of products fused, the fraction bits kept after alignment, the rounding.

# %%
for engine, operands in [
    ("volta/mma", "f16"),
    ("ampere/mma", "f16"),
    ("hopper/wgmma", "f16"),
    ("hopper/wgmma", "e4m3"),
]:
    print(f"{engine:14s}{operands:6s}{fpsim.engine(engine, a=operands, b=operands, out='f32').accumulator}")

# %% [markdown]
# ## Two FP8 paths of one GPU
#
# Hopper's FP8 instruction keeps 13 fraction bits while it adds. `torch._scaled_mm` with `use_fast_accum=True` chains it
# over the whole of K; with `use_fast_accum=False` every 128 products go into a float32 sum outside. Below, the error of
# both against the exact sum, for all-positive operands, where a running sum grows and its last bits matter most.

# %%
generator = np.random.default_rng(0)
lengths = [128, 256, 512, 1024, 2048, 4096, 8192]
paths = {"fast": "hopper/scaled_mm-fast", "promoted every 128": "hopper/scaled_mm"}
errors: dict[str, list[float]] = {name: [] for name in paths}
for k in lengths:
    x = fpsim.encode(generator.uniform(0.25, 1.75, (16, k)).astype(np.float32), "e4m3")
    w = fpsim.encode(generator.uniform(0.25, 1.75, (k, 16)).astype(np.float32), "e4m3")
    # E4M3 products are multiples of 2^-18 below 2^18: these float64 sums are exact
    exact = fpsim.decode(x, "e4m3").astype(np.float64) @ fpsim.decode(w, "e4m3").astype(np.float64)
    one = np.ones((), np.float32)
    for name, engine in paths.items():
        spec = fpsim.engine(engine, a="e4m3", b="e4m3", out="f32")
        y = fpsim.matmul(x, w, spec, a_scale=one, b_scale=one).astype(np.float64)
        errors[name].append(float(np.sqrt(np.mean(np.square((y - exact) / exact)))))

figure, axis = plt.subplots(figsize=(6, 3))
for name, values in errors.items():
    axis.loglog(lengths, values, "o-", label=f"{name}: {paths[name]}", markersize=4)
axis.set(xlabel="K, products per sum", ylabel="relative error, RMS")
axis.set_xticks(lengths, [str(k) for k in lengths])
axis.minorticks_off()
axis.legend(frameon=False, fontsize=8)
for side in ("top", "right"):
    axis.spines[side].set_visible(False)
figure.tight_layout()
print({name: [f"{value:.1e}" for value in values] for name, values in errors.items()})

# %% [markdown]
# ## A what-if: how many bits would do?
#
# The accumulator is a frozen dataclass, so the question "what if it kept more bits?" is one line.

# %%
hopper = fpsim.engine("hopper/wgmma", a="e4m3", b="e4m3", out="f32")
x = fpsim.encode(generator.uniform(0.25, 1.75, (16, 4096)).astype(np.float32), "e4m3")
w = fpsim.encode(generator.uniform(0.25, 1.75, (4096, 16)).astype(np.float32), "e4m3")
exact = fpsim.decode(x, "e4m3").astype(np.float64) @ fpsim.decode(w, "e4m3").astype(np.float64)
wider = {}
for bits in (10, 13, 16, 19, 22, 25):
    accumulator = fpsim.FusedDot(terms=hopper.accumulator.terms, fraction_bits=bits, rounding="rz", output="f32")
    spec = fpsim.MatmulSpec(a="e4m3", b="e4m3", accumulator=accumulator, out="f32")
    wider[bits] = float(np.sqrt(np.mean(np.square(fpsim.matmul(x, w, spec) / exact - 1))))
    print(f"{bits} fraction bits: relative error {wider[bits]:.1e}")

# %% [markdown]
# ## The claims of this page, asserted

# %%
assert [table[engine]["f16"] for engine in CHIPS] == [0.0, -0.5, -0.5, -0.5, -0.75, -0.75, -0.875, 0.0, -0.5]
assert fingerprint("cdna2/mfma-bf16", "bf16") == -0.375  # the older of its two instructions pairs differently
assert table["hopper/wgmma"]["e5m2"] == 0.0  # an FP8 sum on Hopper keeps fewer bits than an FP16 one
assert table["blackwell/tcgen05"]["e5m2"] == -0.75  # Blackwell repaired it
assert errors["fast"][0] == errors["promoted every 128"][0], "up to 128 products both are the same chain"
assert errors["fast"][-1] > 500 * errors["promoted every 128"][-1]
assert wider[10] > wider[13] > wider[16] > wider[19] > wider[22] == wider[25] == 0.0, "22 bits hold every sum here"
