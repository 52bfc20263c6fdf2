"""Files that are whole or absent, and that say by their hash whether they are what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)


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


def discard_damaged(path: Path) -> None:
    """Remove a file of `write_json` that is not what was written, so that it is made again; the log says so."""
    try:
        read_json(path)
    except FileNotFoundError:
        return
    except DamagedFile as error:
        LOG.warning("%s; making it again", error)
        path.unlink()


def seal(folder: Path) -> None:
    """Write FOLDER.json with the hash of every file in `folder`, for `is_sealed`."""
    write_json(_seal_of(folder), {"files": _hashes(folder)})


def is_sealed(folder: Path) -> bool:
    """Whether `folder` holds what it held when it was sealed, to the byte, and nothing more; the log says where not."""
    try:
        sealed = read_json(_seal_of(folder))["files"]
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        LOG.warning("%s", error)
        return False
    found = _hashes(folder)
    for name in sorted({*sealed, *found}):
        if sealed.get(name) != found.get(name):
            LOG.warning("%s is damaged: its content does not match its hash", folder / name)
            return False
    return True


def _seal_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}
