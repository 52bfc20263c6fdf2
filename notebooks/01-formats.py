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
# # Formats and rounding, by picture
#
# A number format is a set of points on a line; rounding is the map onto it. **Claim of this page:** at four bits the
# choice of points matters as much as a fifth bit would, which choice is right depends on the distribution, and a scale
# per small block helps more than either.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import fpsim

# %% [markdown]
# ## Where the values lie
#
# Every format below has at most 256 codes, so we can decode all of them. Scaled to the same largest value, integers
# are even, floats crowd around zero: each binade has as many points as the next one, twice as large.

# %%
names = ["int4", "e1m2-finite", "e2m1", "e3m0-finite", "e2m3", "e3m2", "int8", "e4m3", "e5m2"]


def values_of(name: str) -> np.ndarray:
    """Every finite value of a format, as a share of the largest."""
    row = fpsim.format(name)
    codes = np.arange(2**row.bits, dtype=np.uint8)
    if row.kind == "int":  # integers are their own codes
        codes = ((codes.astype(np.int8) << (8 - row.bits)) >> (8 - row.bits)).astype(np.int8)
    values = fpsim.decode(codes, name).astype(np.float64)
    return np.unique(values[np.isfinite(values)]) / float(row.max)


figure, axis = plt.subplots(figsize=(9, 3.4))
for line, name in enumerate(names):
    values = values_of(name)
    axis.plot(values, np.full(values.size, line), "|", color="0.2", markersize=11, markeredgewidth=0.7)
axis.set(yticks=range(len(names)), yticklabels=names, xlabel="value / largest value", xlim=(-1.16, 1.05))
axis.invert_yaxis()
for side in ("top", "right"):
    axis.spines[side].set_visible(False)
figure.tight_layout()

# %% [markdown]
# ## The map onto them
#
# Rounding to nearest, ties to even; what lies beyond the last point saturates (E4M3 by the conversion named "ocp-sat").
# Stochastic rounding goes to either neighbour, so that the mean is right.

# %%
x = np.linspace(-7, 7, 2801, dtype=np.float32)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True)
for panel, name in zip(axes, ["int4", "e2m1", "e3m0-finite"], strict=True):
    panel.plot(x, x, color="0.8", lw=1)
    panel.plot(x, fpsim.quantize(x, name), lw=1.2)
    panel.set_title(name, fontsize=10)
    panel.set_xlabel("x")
axes[0].set_ylabel("rounded")
figure.tight_layout()

many = np.full(20_000, 2.3, dtype=np.float32)
stochastic = fpsim.decode(fpsim.encode(many, "e2m1", rounding="sra", random=1), "e2m1")
print(f"2.3 to nearest: {fpsim.quantize(many[:1], 'e2m1')[0]}; stochastically: {np.unique(stochastic)}, ", end="")
print(f"mean {stochastic.mean():.3f}")

# %% [markdown]
# ## Which four bits are best?
#
# For three distributions, sampled at their quantiles so that nothing here is luck: the signal-to-noise ratio of each
# format at its best clip value. Integers (E1M2 is the same grid) are as good as E2M1 on a Gaussian; the heavier the
# tail, the more exponent bits pay.

# %%
quantiles = (np.arange(20_000) + 0.5) / 20_000
samples = {
    "Gaussian": stats.norm.ppf(quantiles),
    "Laplace": stats.laplace.ppf(quantiles),
    "Student t, 3 degrees": stats.t.ppf(quantiles, 3),
}


def snr(signal: np.ndarray, rounded: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(signal - rounded).sum()))


def best_clip(signal: np.ndarray, name: str) -> float:
    """Signal-to-noise ratio in dB at the best of 96 clip values, six octaves below 1.2 times the largest."""
    largest, top = np.abs(signal).max(), float(fpsim.format(name).max)
    scales = [np.float32(1.2 * largest * 2 ** (-step / 16) / top) for step in range(96)]
    return max(snr(signal, fpsim.quantize((signal / scale).astype(np.float32), name) * scale) for scale in scales)


four = ["int4", "e1m2-finite", "e2m1", "e3m0-finite"]
table = {kind: {name: best_clip(signal, name) for name in [*four, "e2m3"]} for kind, signal in samples.items()}
print(f"{'dB':22s}" + "".join(f"{name:>13s}" for name in [*four, "e2m3"]))
for kind, row in table.items():
    print(f"{kind:22s}" + "".join(f"{value:13.2f}" for value in row.values()))

# %% [markdown]
# ## A scale for every few values
#
# Block formats store one scale per 16 or 32 values: MXFP4 a power of two, NVFP4 an E4M3 number. Below, one outlier of
# 60 standard deviations in 65,536 Gaussian values. With one scale per tensor it takes the range from all the others.

# %%
tensor = samples["Gaussian"][np.random.default_rng(0).permutation(20_000)[:16_384]].reshape(64, 256).astype(np.float32)
tensor[0, 0] = 60.0


def one_scale(name: str) -> np.ndarray:
    scale = np.float32(np.abs(tensor).max() / float(fpsim.format(name).max))
    return fpsim.quantize(tensor / scale, name) * scale


blocks = {"int4": one_scale("int4"), "e2m1": one_scale("e2m1")}
blocks |= {name: fpsim.quantize(tensor, name) for name in ["mxfp4", "nvfp4", "mxfp6"]}
noise = {name: snr(tensor, rounded) for name, rounded in blocks.items()}
bits = {name: fpsim.format(name).bits_per_element for name in noise}
figure, axes = plt.subplots(1, len(blocks), figsize=(9, 2.2))
for panel, (name, rounded) in zip(axes, blocks.items(), strict=True):
    panel.imshow(np.log10(np.abs(tensor - rounded) + 1e-3)[:32, :32], cmap="magma", vmin=-2.5, vmax=0.5)
    panel.set_title(f"{name}\n{bits[name]:.2f} bits, {noise[name]:.1f} dB", fontsize=9)
    panel.axis("off")
figure.suptitle("rounding error (dark: small)", fontsize=9, y=0.02)
figure.tight_layout()

# %% [markdown]
# ## The claims of this page, asserted

# %%
assert abs(table["Gaussian"]["e1m2-finite"] - table["Gaussian"]["e2m1"]) < 0.5, "four bits: a tie on a Gaussian"
assert (
    table["Student t, 3 degrees"]["e3m0-finite"]
    > table["Student t, 3 degrees"]["e2m1"]
    > table["Student t, 3 degrees"]["e1m2-finite"]
)
assert table["Gaussian"]["e3m0-finite"] < table["Gaussian"]["e2m1"]
assert table["Gaussian"]["e2m3"] - table["Gaussian"]["e2m1"] > 10  # two bits more, six decibels each
assert noise["nvfp4"] > noise["mxfp4"] > noise["e2m1"] + 5 > noise["int4"]
assert set(np.unique(stochastic)) == {2.0, 3.0}
# 20,000 draws of a two-point variable with p = .3: the mean's standard error is .0032
assert abs(stochastic.mean() - 2.3) < 4 * 0.0033
