"""SCALE-Sim 3.0.0, reproduced: the same reports from closed forms and a short replay, without its simulation.

    >>> from hwmodels.npu import scalesim
    >>> config = scalesim.load_config("google.cfg")
    >>> layers = scalesim.load_topology("resnet18.csv")
    >>> scalesim.write_reports(config, layers, "results")

What it reports is reproduced as it is, mistakes included, so that its users can compare with their records; what
hardware would do is `hwmodels.npu`, and docs/npu.md says where the two differ.  Facts about SCALE-Sim were read in its
source (PyPI `scalesim` 3.0.0, MIT licence) and checked against its output; none of its code is here.

| file | what it holds |
|---|---|
| `cfg.py`, `topology.py` | its two input files |
| `schedule.py` | folds, lines and streams: which element is asked for in which cycle |
| `closed.py` | cycles, SRAM accesses and utilisations: closed forms, any number of layers at once |
| `turnover.py` | DRAM reads where it estimates bandwidth ("CALC") |
| `window.py` | DRAM reads where the user gives it ("USER") |
| `drain.py`, `replay.py` | the write buffer, and the events of all three put in order |
| `report.py` | its three CSV files |
"""

from .cfg import Config as Config
from .cfg import load_config as load_config
from .cfg import parse_config as parse_config
from .closed import Closed as Closed
from .closed import closed_forms as closed_forms
from .replay import LayerResult as LayerResult
from .replay import replay as replay
from .report import layer_rows as layer_rows
from .report import run as run
from .report import write_reports as write_reports
from .topology import Layer as Layer
from .topology import layers_of as layers_of
from .topology import load_topology as load_topology
from .topology import parse_topology as parse_topology
