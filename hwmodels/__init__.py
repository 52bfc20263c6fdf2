"""What arithmetic costs: operations, workloads, devices, and the models that price them.

    >>> import hwmodels
    >>> hwmodels.estimate(hwmodels.Gemm(m=4096, n=4096, k=4096), "fp8", "h200-sxm").bound
    'compute'

numpy and fpsim's data tables only: no torch, no compiler.
"""

from .device import ComputeRate as ComputeRate
from .device import Device as Device
from .device import Memory as Memory
from .device import Quantity as Quantity
from .device import Source as Source
from .device_file import DEVICES as DEVICES
from .device_file import device as device
from .device_file import parse_device as parse_device
from .estimate import Breakdown as Breakdown
from .estimate import Estimate as Estimate
from .estimate import Footprint as Footprint
from .estimate import KernelCost as KernelCost
from .estimate import estimate as estimate
from .fallback import UnsupportedFormat as UnsupportedFormat
from .fallback import execution as execution
from .op import Op as Op
from .ops import OPS as OPS
from .ops import Attention as Attention
from .ops import Conv2d as Conv2d
from .ops import ConvNd as ConvNd
from .ops import Elementwise as Elementwise
from .ops import Gemm as Gemm
from .ops import Move as Move
from .ops import Norm as Norm
from .ops import Quantize as Quantize
from .ops import Reduction as Reduction
from .ops import Softmax as Softmax
from .ops import op_from_dict as op_from_dict
from .precision import SHORTHANDS as SHORTHANDS
from .precision import Precision as Precision
from .precision import Shorthand as Shorthand
from .precision import precision_map as precision_map
from .workload import Totals as Totals
from .workload import Workload as Workload
