"""A run directory: every file whole or absent, every picture checked, so that a killed run continues where it was.

Files are written beside their destination, flushed to the disk, then renamed, which POSIX makes atomic: after a power
cut a reader finds the old file, the new file or none, never half of one. Pictures are kept as safetensors (no pickle,
nothing executes on load) whose header carries the identity of the batch and the SHA-256 of its data. A batch that does
not match is measured again; a manifest that does not match is an error that says which directory to delete.

    runs/<name>-<key>/
      experiment.json          the experiment and what it ran with, written first
      batches/<identity>.safetensors, layers/<identity>.json, quantized/<identity>/
      results.csv costs.csv layers.csv results.json grid.png pareto-*.png index.html run.log
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]  # (N, 3, H, W) in [0, 1]

#: what reading JSON raises that is none, or is not what it should be
_NOT_A_HEADER = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class DamagedFile(ValueError):  # noqa: N818 - it reads as what is wrong
    """A stored file is not what was written: truncated, edited, or of another batch."""


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces, no NaN), as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or the next start after a crash, never sees a part of it.

    Raises OSError, naming `path`, where that cannot be: no permission, a full disk, a file where a folder should be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name it had while being written


def write_output(path: Path, text: str) -> None:
    """What a command was told to write: the whole file, or the one that was there before.

    A link, a pipe or a device (`/dev/stdout`) is written to as it is: replacing it is not what was meant. A folder
    that is not there is a mistake, not a wish. Raises OSError as `write_atomic` does.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    if not path.parent.is_dir():
        raise NotADirectoryError(errno.ENOENT, "No such directory", str(path.parent))
    write_atomic(path, text.encode())


def _write_beside(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes files only their owner may read; a report is to be shared
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically; its key `sha256` is the digest of all the others."""
    document = {"sha256": digest(dict(value)), **value}
    write_atomic(path, (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises DamagedFile when the bytes are not that, FileNotFoundError without a file."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or "sha256" not in document:
            raise DamagedFile(f"{path} is damaged: it is not a file that fpsim wrote")
        if document.pop("sha256") != digest(document):
            raise DamagedFile(f"{path} is damaged: its content does not match its hash")
    except DamagedFile:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, no text, or NaN; lists in lists in lists
        raise DamagedFile(f"{path} is damaged: {error}") from error
    return document


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


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """Where one run keeps what it has. Opening makes the folder; nothing in it is trusted without its hash."""

    path: Path

    @classmethod
    def open(cls, root: Path, *, name: str, key: str, manifest: Mapping[str, Any]) -> RunDirectory:
        """The directory `root/name-key`, made if need be; `manifest` goes into experiment.json.

        Raises ValueError when a directory of that name holds something else or its manifest is damaged.
        """
        run = cls(path=root / f"{name}-{key[:12]}")
        if run.path.exists() and not run.path.is_dir():
            raise ValueError(f"{run.path} is a file where a run directory should be; move it, or choose another --runs")
        if run.manifest_path.exists():
            if run.manifest()["key"] != key:
                raise ValueError(f"{run.path} holds another experiment; delete that directory and start again")
        else:
            if run.path.is_dir() and any(run.batches.glob("*.safetensors")):
                raise ValueError(
                    f"run directory {run.path} has pictures but no experiment.json; delete it and start again"
                )
            write_json(run.manifest_path, {**manifest, "key": key})
        run.batches.mkdir(exist_ok=True)
        return run

    @classmethod
    def existing(cls, path: Path) -> RunDirectory:
        """A directory made earlier. Raises ValueError when there is none, or it is not one of ours."""
        run = cls(path=path)
        if not run.manifest_path.is_file():
            raise ValueError(
                f"{path} is not a run directory (no experiment.json in it); give one that `fpsim whatif` made"
            )
        run.manifest()
        return run

    @property
    def manifest_path(self) -> Path:
        return self.path / "experiment.json"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    def manifest(self) -> dict[str, Any]:
        """What experiment.json says. Raises ValueError, with what to delete, when it is damaged."""
        try:
            return read_json(self.manifest_path)
        except DamagedFile as error:
            raise ValueError(f"{error}; delete {self.path} and start again") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the system lets go of it when the process ends, however it ends."""
        import fcntl

        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another fpsim is working in {self.path}; wait for it, or stop it") from error
            for partial in self.path.glob("**/.*.partial"):
                partial.unlink(missing_ok=True)
            yield

    def batch_path(self, identity: str) -> Path:
        return self.batches / f"{identity}.safetensors"

    def save(self, identity: str, images: Images) -> None:
        """Keep one measured batch."""
        write_atomic(self.batch_path(identity), pack_images(images, identity))

    def load(self, identity: str) -> Images | None:
        """A batch measured earlier, or None. Raises DamagedFile when the file is there but is not that batch."""
        try:
            data = self.batch_path(identity).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return unpack_images(data, identity)
        except DamagedFile as error:
            raise DamagedFile(f"{self.batch_path(identity)} is damaged: {error}") from error

    def layers_path(self, identity: str) -> Path:
        """Where a worker says what became of each layer of a quantized pipeline."""
        return self.path / "layers" / f"{identity}.json"

    def layers(self, identity: str) -> list[dict[str, Any]] | None:
        """The layers of a quantized pipeline, from here or from a run beside this one; None if nobody wrote them."""
        for file in (self.layers_path(identity), *sorted(self.path.parent.glob(f"*/layers/{identity}.json"))):
            with contextlib.suppress(DamagedFile, FileNotFoundError):
                layers: list[dict[str, Any]] = read_json(file)["layers"]
                return layers
        return None

    def adopt(self, identity: str) -> bool:
        """Take over a batch of the same identity from a run beside this one, if one has it undamaged.

        The two runs share the file where the file system can: nothing ever writes into a batch that is there.
        """
        for other in sorted(self.path.parent.glob(f"*/batches/{identity}.safetensors")):
            with contextlib.suppress(DamagedFile, OSError):
                data = other.read_bytes()
                unpack_images(data, identity)
                try:
                    os.link(other, self.batch_path(identity))
                except OSError:
                    write_atomic(self.batch_path(identity), data)
                return True
        return False
