"""Accumulators drawn at random, wrapped and not, on random operands: the kernels, the counts, the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim import counts
from fpsim.accumulators import (
    FixedPoint,
    FusedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import container
from fpsim.gemm import result_dtype
from fpsim.rounding import ROUNDINGS
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, random_codes

ROUNDING = st.sampled_from([name for name, row in ROUNDINGS.items() if not row.stochastic])
SMALL = ["e4m3", "e5m2", "e2m1", "e3m4", "e4m3fnuz", "f16", "bf16", "binary8p4se"]
OUTPUTS = st.sampled_from(["f32", "f16", "bf16", "e8m13", "tf32", "e5m2", "e4m3", "e4m3fnuz", "e2m3", "e6m9-ieee"])
OVERFLOW = st.sampled_from(["infinity", "saturate", "nan"])

FLOATS = st.one_of(
    st.builds(
        FusedDot,
        st.one_of(st.none(), st.integers(1, 20)),
        st.one_of(st.none(), st.integers(1, 26)),
        ROUNDING,
        OUTPUTS,
        st.one_of(st.none(), st.integers(-140, 3)),
    ),
    st.builds(TwoStageDot, st.integers(1, 16), st.integers(8, 26), st.integers(26, 31), st.booleans()),
    st.builds(
        SequentialFma,
        OUTPUTS,
        ROUNDING,
        st.sampled_from(["ascending", "odd-even"]),
        st.booleans(),
        st.just(False),
        OUTPUTS,
        OVERFLOW,
    ),
    st.builds(SequentialFma, OUTPUTS, ROUNDING, flush=st.booleans(), overflow=OVERFLOW),
    st.builds(PairwiseTree, st.sampled_from([1, 2, 4, 8]), OUTPUTS, st.booleans(), ROUNDING, OUTPUTS, OVERFLOW),
)
INTEGERS = st.one_of(
    st.builds(
        IntegerAccumulator,
        st.integers(8, 40),
        st.sampled_from(["wrap", "saturate"]),
        st.integers(1, 9),
        st.one_of(st.none(), st.integers(8, 20)),
    ),
    st.builds(
        IntegerAccumulator,
        st.integers(8, 40),
        st.sampled_from(["wrap", "saturate"]),
        st.sampled_from([1, 2, 4, 8, 32]),
        st.none(),
        st.just("pairwise"),
    ),
)
EVERY, ORDER = st.integers(1, 20), st.sampled_from(["ascending", "mod4-pairs"])


def wrapped(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The kinds themselves, promoted into a float, split."""
    promoted = st.builds(Promoted, inner, EVERY, OUTPUTS, ORDER, rounding=ROUNDING)
    return st.one_of(
        inner, promoted, st.builds(SplitK, st.one_of(inner, promoted), st.integers(1, 4), st.integers(1, 9))
    )


REGISTERS = st.builds(
    FixedPoint,
    st.integers(2, 52),
    st.one_of(st.none(), st.integers(-60, 20)),
    st.sampled_from(["wrap", "saturate"]),
    ROUNDING,
    OUTPUTS,
)
SPECS = st.one_of(
    st.builds(MatmulSpec, st.sampled_from(SMALL), st.sampled_from(SMALL), wrapped(FLOATS)),
    st.builds(MatmulSpec, st.sampled_from([*SMALL, "int8"]), st.sampled_from([*SMALL, "f32", "uint4"]), REGISTERS),
    st.builds(
        MatmulSpec,
        st.sampled_from(["int8", "uint8", "int4", "int12"]),
        st.sampled_from(["int8", "uint4"]),
        st.one_of(
            wrapped(INTEGERS),
            st.builds(
                Promoted,
                INTEGERS,
                EVERY,
                order=ORDER,
                outer=st.builds(IntegerAccumulator, st.integers(8, 48), st.sampled_from(["wrap", "saturate"])),
            ),
        ),
    ),
)


CASES = given(SPECS, st.sampled_from(list(DISTRIBUTIONS)), st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())


def check(spec: MatmulSpec, name: str, seed: int, depth: int, starts: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = DISTRIBUTIONS[name](rng, spec.a, (2, depth)), DISTRIBUTIONS[name](rng, spec.b, (2, depth)).T
    held = container(spec.accumulator.output)
    c = None
    if starts and held.kind == "float":
        c = random_codes(rng, held, (2, 2)).view(result_dtype(held.name))
    got = fpsim.matmul(a, b, spec, c)
    assert_same_bits(got, fpsim.matmul(a, b, spec, c, backend="reference"), f"{spec} {name} {seed} {depth}")
    assert_same_bits(counts.matmul(a, b, spec, c).result, got, f"counted: {spec} {name} {seed} {depth}")


@settings(max_examples=40, deadline=None)
@CASES
def test_kernels_equal_reference(spec: MatmulSpec, name: str, seed: int, depth: int, starts: bool) -> None:
    check(spec, name, seed, depth, starts)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@CASES
def test_many_more(spec: MatmulSpec, name: str, seed: int, depth: int, starts: bool) -> None:
    check(spec, name, seed, depth, starts)
