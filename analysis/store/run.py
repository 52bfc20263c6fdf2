"""Where one run keeps what it has."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.store.files import DamagedFile, read_json, write_atomic, write_json
from analysis.store.tensors import Images, pack_images, unpack_images

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """Where one run keeps what it has. Opening makes the folder; nothing in it is trusted without its hash."""

    path: Path

    @classmethod
    def open(cls, root: Path, *, name: str, key: str, manifest: Mapping[str, Any]) -> RunDirectory:
        """The directory `root/name-key`, made if need be; `manifest` goes into experiment.json.

        A manifest that is lost or damaged is written again: pictures say themselves what they are.
        Raises ValueError when a directory of that name holds another experiment, or is none.
        """
        run = cls(path=root / f"{name}-{key[:12]}")
        if run.path.exists() and not run.path.is_dir():
            raise ValueError(f"{run.path} is a file where a run directory should be; move it, or choose another --runs")
        try:
            held = read_json(run.manifest_path)["key"]
        except (FileNotFoundError, DamagedFile) as error:
            if isinstance(error, DamagedFile):
                LOG.warning("%s; writing it again", error)
            write_json(run.manifest_path, {**manifest, "key": key})
            held = key
        if held != key:
            raise ValueError(f"{run.path} holds another experiment; delete that directory and start again")
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
        """What experiment.json says. Raises ValueError, with what to do, when it is damaged."""
        try:
            return read_json(self.manifest_path)
        except DamagedFile as error:
            raise ValueError(f"{error}; the command that made it repairs it (what is measured is kept)") from error

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
