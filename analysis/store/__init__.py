"""A run directory: every file whole or absent, every picture checked, so that a killed run continues where it was.

Files are written beside their destination, flushed to the disk, then renamed, which POSIX makes atomic: after a power
cut a reader finds the old file, the new file or none, never half of one. Pictures are kept as safetensors (no pickle,
nothing executes on load) whose header carries the identity of the batch and the SHA-256 of its data. A batch that does
not match is measured again; so is all else that is kept and does not match its hash: calibrations, quantized pipelines
(a folder and its seal), what became of layers, the manifest.

    runs/<name>-<key>/
      experiment.json          the experiment and what it ran with, written first
      batches/<identity>.safetensors, layers/<identity>.json, calibration.json
      quantized/<identity>/, quantized/<identity>.json
      results.csv costs.csv layers.csv results.json grid.png pareto-*.png index.html run.log
"""

from __future__ import annotations

from analysis.store.files import DamagedFile as DamagedFile
from analysis.store.files import digest as digest
from analysis.store.files import discard_damaged as discard_damaged
from analysis.store.files import file_digest as file_digest
from analysis.store.files import is_sealed as is_sealed
from analysis.store.files import read_json as read_json
from analysis.store.files import seal as seal
from analysis.store.files import write_atomic as write_atomic
from analysis.store.files import write_json as write_json
from analysis.store.files import write_output as write_output
from analysis.store.run import RunDirectory as RunDirectory
from analysis.store.tensors import Images as Images
from analysis.store.tensors import check_safetensors as check_safetensors
from analysis.store.tensors import pack_images as pack_images
from analysis.store.tensors import unpack_images as unpack_images
