"""Pictures and checkpoints as safetensors: no pickle, nothing executes on load, and damage is found."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.store.files import DamagedFile

Images = npt.NDArray[np.float32]  # (N, 3, H, W) in [0, 1]

#: what reading JSON raises that is none, or is not what it should be
_NOT_A_HEADER = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


def pack_images(images: Images, identity: str) -> bytes:
    """Safetensors bytes of float32 images (N, 3, H, W); the header names the batch and the hash of the data."""
    from safetensors.numpy import save

    data = np.ascontiguousarray(images, dtype="<f4")
    # One key, because the order of several is not fixed: equal pictures are equal files.
    return save({"images": data}, {"batch": _seal(data, identity)})


def _seal(data: Images, identity: str) -> str:
    return f"{identity} {hashlib.sha256(data.tobytes()).hexdigest()}"


def unpack_images(data: bytes, identity: str) -> Images:
    """The images of `pack_images`. Raises DamagedFile when anything differs from what was packed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        images = load(data)["images"]
    except (*_NOT_A_HEADER, struct.error, OverflowError, SafetensorError) as error:
        raise DamagedFile(f"not a whole safetensors file ({error})") from error
    seal = str(metadata.get("batch", ""))
    if not seal.startswith(f"{identity} "):
        raise DamagedFile("it holds another batch")
    if seal != _seal(images, identity):
        raise DamagedFile("its content does not match its hash")
    return np.asarray(images, dtype=np.float32)


def check_safetensors(path: Path) -> None:
    """Raise ValueError when a checkpoint file is shorter (or longer) than its own header says.

    A safetensors file is 8 bytes of header length, a JSON header whose `data_offsets` cover the rest, and the data.
    """
    size = path.stat().st_size
    fix = "restore it (from the repository or the place you got it from)"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"truncated checkpoint: {path} ends within its header at {size} bytes; {fix}")
        try:
            header = json.loads(file.read(length))
            end = max((row["data_offsets"][1] for key, row in header.items() if key != "__metadata__"), default=0)
        except _NOT_A_HEADER as error:
            raise ValueError(f"damaged checkpoint: {path} has no safetensors header; {fix}") from error
    if 8 + length + end != size:
        raise ValueError(f"truncated checkpoint: {path} has {size} bytes, its header says {8 + length + end}; {fix}")
