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
# # From trace to milliseconds
#
# A diffusion model is a list of operations; a GPU is a list of rates; a projection is what one makes of both. **Claim
# of this page:** whole denoise steps are projected within ten per cent of what an H200 takes, and the projection says
# why FP8 buys far less than its factor of two.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import analysis
import hwmodels

# %% [markdown]
# ## The list of operations
#
# The model is built from its published configuration, without weights, and run once on PyTorch's meta device: shapes,
# types, layer paths. Two rows, as classifier-free guidance makes of one image.

# %%
workload = analysis.trace("sdxl-base", batch=2)
macs = pd.Series(dict.fromkeys(("Gemm", "Conv2d", "Attention"), 0))
for op in workload.ops:
    if type(op).__name__ in macs.index:
        macs[type(op).__name__] += op.macs
print(f"{len(workload.ops)} operations, {macs.sum() / 1e9:,.0f} GMAC")
print((100 * macs / macs.sum()).round(1).astype(str).add(" %").to_string())

# %% [markdown]
# ## The list of rates
#
# `fpsim show h200-sxm` prints the device with a source for every figure. Where the time goes, and what changes with FP8
# linear layers (static scales, a cast kernel before each; convolutions and attention stay in bf16):

# %%
estimates = {spec: hwmodels.estimate(workload, spec, "h200-sxm", mode="graph") for spec in ("bf16", "fp8")}
kinds = pd.DataFrame({spec: one.breakdown.by_kind() for spec, one in estimates.items()}).fillna(0) * 1e3
kinds = kinds.sort_values("bf16", ascending=False)
print(kinds.round(2).to_string())
figure, axis = plt.subplots(figsize=(8, 2.2))
left = pd.Series(0.0, index=kinds.columns)
for kind, row in kinds.iterrows():
    axis.barh(kinds.columns, row, left=left, label=kind, height=0.55)
    left += row
axis.set(xlabel="milliseconds per denoiser call, SDXL at 1024 x 1024, two rows, H200 (projected)")
axis.invert_yaxis()
axis.legend(ncols=5, fontsize=7.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
for side in ("top", "right"):
    axis.spines[side].set_visible(False)
figure.tight_layout()

# %% [markdown]
# ## How far off is it?
#
# The same pipelines, built by diffusers with random weights, were timed on one H200 as CUDA graphs. None of these steps
# took part in any fit.

# %%
measured = pd.read_csv(Path(hwmodels.__file__).parent / "measurements" / "h200" / "steps.csv")
steps = measured[(measured["mode"] == "graph") & measured.seconds.notna()]
rows = []
for row in steps.itertuples():
    traced = analysis.trace(row.model, batch=row.rows, part=row.part)
    projected = hwmodels.estimate(traced, row.format, "h200-sxm", mode="graph").time_s
    rows.append((row.model, row.part, row.format, row.rows, 1e3 * row.seconds, 1e3 * projected))
compared = pd.DataFrame(rows, columns=["model", "part", "format", "rows", "measured, ms", "projected, ms"])
compared["error, %"] = 100 * (compared["projected, ms"] / compared["measured, ms"] - 1)
print(compared.round(2).to_string(index=False))
errors = compared["error, %"].abs()
print(f"\nmean {errors.mean():.1f} %, largest {errors.max():.1f} %")

# %% [markdown]
# ## Another chip, another format
#
# A device without a format answers with a named fallback or refuses; it never invents a rate.

# %%
devices, specs = ["a100-sxm-80gb", "l40s", "h200-sxm", "b200-sxm", "rtx-5090"], ["bf16", "int8", "fp8", "nvfp4"]
table = pd.DataFrame(index=devices, columns=specs, dtype=object)
for device in devices:
    for spec in specs:
        one = hwmodels.estimate(workload, spec, device, mode="graph")
        fallback = any(execution is not None and execution.note for execution in one.breakdown.executions)
        table.loc[device, spec] = f"{1e3 * one.time_s:.1f} ms{' *' if fallback else ''}"
print(table.to_string())
print("* lacks the format: runs what the estimate's notes name")

# %% [markdown]
# ## The claims of this page, asserted

# %%
assert abs(macs.sum() / 2 / 3380.6e9 - 1) < 0.01  # per row; counted independently on the meta device
assert errors.max() < 10
assert errors.mean() < 5
speedup = estimates["bf16"].time_s / estimates["fp8"].time_s
assert 1.0 < speedup < 1.6, "a factor of two in the linear layers, much less in the whole"
