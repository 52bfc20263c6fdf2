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
# # A tour: a format, an engine, a picture, a price
#
# One frozen object says which arithmetic a layer runs on. The same object answers what that arithmetic does to an
# image, bit for bit, and what it costs in seconds.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import analysis
import fpsim
import hwmodels

warnings.filterwarnings("ignore", message="IProgress not found")  # the libraries' bars need a widget; plain ones do

# %% [markdown]
# ## A format
#
# E2M1 has fifteen distinct values. As plain FP4 they are spread over one scale per tensor or channel; NVFP4 gives each
# block of sixteen its own E4M3 scale. Below: where the values of each four-bit format lie, and the error of rounding a
# Gaussian tensor with one outlier.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=[3, 2])
for row, name in enumerate(["e2m1", "int4", "e2m3", "e4m3"]):
    row_format = fpsim.format(name)
    codes = np.arange(2**row_format.bits, dtype=np.uint8)
    if name == "int4":
        codes = (codes.astype(np.int8) << 4) >> 4  # integers are their own codes
    values = fpsim.decode(codes, name).astype(np.float32)
    values = values[np.isfinite(values)] / row_format.max
    left.plot(values, np.full(values.size, row), "|", markersize=14)
left.set(
    yticks=range(4), yticklabels=["E2M1", "INT4", "E2M3", "E4M3"], xlabel="value / largest value", ylim=(-0.6, 3.6)
)

x = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
x[0, 0] = 60.0


def snr_db(rounded: np.ndarray) -> float:
    return float(10 * np.log10(np.square(x).sum() / np.square(x - rounded).sum()))


def one_scale(name: str) -> np.ndarray:
    scale = np.float32(np.abs(x).max() / fpsim.format(name).max)
    return fpsim.quantize(x / scale, name) * scale


errors = {name: snr_db(one_scale(name)) for name in ["int4", "e2m1"]}
errors |= {name: snr_db(fpsim.quantize(x, name)) for name in ["mxfp4", "nvfp4"]}
right.barh(list(errors), list(errors.values()), color="0.4")
right.set(xlabel="signal to rounding noise, dB")
right.invert_yaxis()
figure.tight_layout()

# %% [markdown]
# ## An engine
#
# Matrix engines do not compute dot products the way a textbook does: products are aligned to the largest one and
# truncated before they are added. Four products and an accumulator are enough to tell the generations apart. The exact
# answer is -0.875.

# %%
a = np.array([[-(2.0**13), -0.5, -0.25, -0.125]], dtype=np.float16)
b = np.array([[2.0**10], [1.0], [1.0], [1.0]], dtype=np.float16)
c = np.array([[2.0**23]], dtype=np.float32)

fingerprint = {}
for name in ["volta/mma", "turing/mma", "ampere/mma", "ada/mma", "hopper/mma", "blackwell/tcgen05", "cdna1/mfma"]:
    spec = fpsim.engine(name, a="f16", b="f16", out="f32")
    fingerprint[name] = float(fpsim.matmul(a, b, spec, c=c)[0, 0])
fingerprint

# %% [markdown]
# ## A picture
#
# The embedded pipeline is a small Stable Diffusion trained on scenes with known ground truth. The same prompts and
# seeds, in full precision and quantized: weights and activations rounded to nearest, activation ranges calibrated on
# other prompts.

# %%
from analysis.models import embedded
from analysis.runner import calibrate, quantize, sample
from analysis.scenes import held_out, parse

prompts = [
    "a large orange dotted star at middle center on a teal background",
    "a small white striped ring at top left and a large blue plain square at bottom right on a dusk background",
    "a medium red plain cross at middle left and a large yellow striped circle at middle right on a dark background",
]
pipe = embedded.load("shapes-sd")
ranges = calibrate(pipe, held_out(4, seed=1).captions(), steps=10)
schemes = ["fp32", "fp8-w8a8", "nvfp4", "int4-w4a8", "int4-w4a4"]
images = {}
for scheme in schemes:
    quantized = pipe if scheme == "fp32" else quantize(pipe, scheme, calibration=ranges)
    images[scheme] = sample(quantized, prompts, seeds=[0, 1, 2], steps=20)

figure, axes = plt.subplots(len(prompts), len(schemes), figsize=(9, 5.6))
for column, scheme in enumerate(schemes):
    axes[0, column].set_title(scheme, fontsize=10)
    for row in range(len(prompts)):
        axes[row, column].imshow(images[scheme][row].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes[row, column].axis("off")
figure.tight_layout()

# %% [markdown]
# ## A price
#
# The same formats on SDXL at full size, traced from its configuration alone. Times are projections, not measurements;
# where a device lacks a format the estimate says what it fell back to.

# %%
workload = analysis.trace("sdxl-base", batch=2)
specs = ["bf16", "fp8", "int8", "nvfp4"]
times = {}
print(f"one SDXL denoiser call, two rows; {'ms':>24s}")
for device in ["h200-sxm", "rtx-5090", "intel-npu4"]:
    for spec in specs:
        estimate = hwmodels.estimate(workload, spec, device=device, mode="graph", model="auto")
        times[device, spec] = estimate.time_s
        fallback = [note.split(";")[0] for note in estimate.notes if note.startswith(("nvfp4", "e4m3", "int8", "bf16"))]
        print(f"{device:10s} {spec:5s} {estimate.model:8s} {estimate.time_s * 1e3:9.1f}   {'; '.join(fallback)}")

# %% [markdown]
# ## The claims of this page, asserted

# %%
import torch

from analysis import metrics

assert errors["nvfp4"] > errors["mxfp4"] > errors["e2m1"] > errors["int4"]  # one outlier costs a tensor its scale
assert (fingerprint["volta/mma"], fingerprint["ampere/mma"], fingerprint["hopper/mma"]) == (0.0, -0.5, -0.75)
assert fingerprint["cdna1/mfma"] == -0.875
fidelity = {s: float(metrics.psnr(images[s], images["fp32"]).mean()) for s in schemes[1:]}
assert fidelity["fp8-w8a8"] > fidelity["int4-w4a4"]
assert metrics.evaluate(images["fp32"], parse(prompts)).correct.all()
assert not torch.equal(images["fp8-w8a8"], images["fp32"])
assert times["h200-sxm", "fp8"] < times["h200-sxm", "bf16"] < times["intel-npu4", "int8"]
