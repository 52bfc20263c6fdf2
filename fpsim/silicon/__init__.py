"""The instructions of the machine this runs on, to compare the emulators with. Nothing is probed at import."""
