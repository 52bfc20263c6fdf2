"""The instructions of the machine this runs on, to compare the emulators with. Nothing is probed at import.

`cpu` runs the CPU's own dot product instructions; `verify` compares every engine that has hardware here.
"""
