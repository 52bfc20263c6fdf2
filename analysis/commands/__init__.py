"""One module per command of `fpsim`, found by its file name.

Each has a docstring (its `--help`), HELP (its line in `fpsim --help`), `arguments(parser)` and `run(options)`. They
print; nothing else in the library does. Imports beyond the standard library stay inside the functions, so that
`fpsim --help` is instant.
"""
