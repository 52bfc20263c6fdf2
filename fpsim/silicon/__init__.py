"""Instructions and libraries of the machine this runs on, to compare the emulators with. Nothing is probed at import.

`cpu` runs the CPU's own dot product instructions, `nvidia` the tensor core instructions of the GPU (their table is
`instructions`, their CUDA source `source` and `probes/`; `nvrtc` compiles them for GPUs that are not here), `library`
torch's GEMMs, whose splits of K `splits` finds. `inputs` makes what they are fed with; `verify` compares, `record`
keeps what was found, and `golden` keeps the bits.
"""
