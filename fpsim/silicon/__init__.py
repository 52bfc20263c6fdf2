"""The instructions of the machine this runs on, to compare the emulators with. Nothing is probed at import.

`cpu` runs the CPU's own dot product instructions, `nvidia` the tensor core instructions of the GPU; `verify` compares
every engine that has hardware here and says why the others were not run.
"""
