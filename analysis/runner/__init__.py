"""From a pipeline and a scheme to images: load, calibrate, quantize, sample.

The four functions share their names with the modules they live in; importing them here makes `analysis.runner.sample`
the function for good. None of the modules imports torch before it is called.
"""

from analysis.runner.calibrate import Calibration as Calibration
from analysis.runner.calibrate import calibrate as calibrate
from analysis.runner.load import load as load
from analysis.runner.quantize import QuantizationReport as QuantizationReport
from analysis.runner.quantize import quantize as quantize
from analysis.runner.quantize import report_of as report_of
from analysis.runner.quantize import restore as restore
from analysis.runner.quantize import save as save
from analysis.runner.sample import sample as sample

__all__ = [
    "Calibration",
    "QuantizationReport",
    "calibrate",
    "load",
    "quantize",
    "report_of",
    "restore",
    "sample",
    "save",
]
