"""Compiled kernels. `scalar` is the arithmetic, one value at a time; `cpu` loops over arrays with it."""
