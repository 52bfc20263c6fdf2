"""Latencies of the user's own GPU: single kernels (`kernels`) and whole denoise steps (`steps`).

What a measured time means is decided before the clock starts, so every row says it:

mode   graph  many calls of one kernel captured in a CUDA graph and replayed: no host time between them
       eager  one isolated call from the host, launch included (what `triton.testing.do_bench` reports)
cache  warm   weights come from main memory, each call reading its own; activations are those of the call before
       cold   every operand of every call is its own, and L2 is overwritten before the first

L2 is flushed before every replay by writing a buffer several times its size, and the clock (CUDA events) starts after
that.  The replay is queued behind the flush, so the GPU never waits for the host.  A row is the median of a few
replays with the quartiles beside it, and the SM clock and board power seen at the time.  Values are normally
distributed: zeros would draw less power and run at higher clocks.

Rows are appended as they finish; the same command goes on where a stopped one ended.  Without a GPU the same code runs
on the CPU's clock, which tests use; such rows are marked by their mode ("host") and are good for nothing else.
"""

from analysis.measure.cases import KINDS as KINDS
from analysis.measure.cases import SUITES as SUITES
from analysis.measure.cases import Case as Case
from analysis.measure.cases import cases as cases
from analysis.measure.run import measure as measure
from analysis.measure.steps import measure_steps as measure_steps
