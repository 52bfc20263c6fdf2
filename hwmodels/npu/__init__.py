"""Systolic NPUs: what an array, its memories and its vector unit do with the operations of a model, and at what price.

    >>> import hwmodels
    >>> from hwmodels.npu import explain
    >>> found = hwmodels.estimate(hwmodels.Gemm(m=4096, n=4096, k=4096), "bf16", "tpu-v5e", model="systolic")
    >>> explain(found).ideal + explain(found).lost == found.time_s

| file | what it holds |
|---|---|
| `array.py` | the array as data; what of a device file becomes it |
| `dataflow.py` | folds and cycles of products, weight, output or input stationary |
| `tiling.py` | tiles that fit the memory, loop orders, and the main memory traffic they leave |
| `vector.py` | work beside the array: norms, softmax, scales, widening, partial sums |
| `model.py` | all of it for the kernels of a program; where the time goes |
| `energy.py` | joules, by technology node |
| `gates.py` | gates of units; formats in equal silicon |
| `unfused.py` | attention whose scores go through main memory |
| `scalesim/` | SCALE-Sim 3.0.0, reproduced |
"""

from .array import NotSystolic as NotSystolic
from .array import Systolic as Systolic
from .array import systolic as systolic
from .energy import Energy as Energy
from .energy import Joules as Joules
from .energy import energies as energies
from .energy import joules as joules
from .gates import in_equal_area as in_equal_area
from .model import SystolicTimes as SystolicTimes
from .model import Utilisation as Utilisation
from .model import explain as explain
from .unfused import materialised as materialised
