"""Pictures as PNG files, out and in.

A PNG holds 8 bits per channel: a picture in [0, 1] is rounded to the nearest of 256 values, and a file read back and
written again is the same pixels, exactly. What a run measures are its own float32 pictures, not these files.

    DIR/<run>/<configuration>/000012.png          prompt 12, counted from 0; its text says prompt, seed, configuration
    DIR/<run>/<configuration>/000012-003.png      frame 3 of a video
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.plan import Batch, Plan
from analysis.store import write_atomic
from fpsim._names import printable

if TYPE_CHECKING:
    from analysis.store import Images

Picture = npt.NDArray[np.float32]  # (3, H, W) in [0, 1]

_FRAME = re.compile(r"(.+)-(\d{3,})")


def to_png(picture: Picture, about: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of one picture (3, H, W) in [0, 1]; `about` becomes its text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in (about or {}).items():
        text.add_itxt(key, value)
    pixels = np.rint(np.clip(np.moveaxis(picture, 0, -1), 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="png", pnginfo=text)
    return out.getvalue()


def from_png(path: Path) -> Picture:
    """float32 (3, H, W) in [0, 1]: 8-bit values over 255. Raises ValueError, naming the file, for anything else."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            mode, opaque = image.mode, "A" not in image.getbands() or image.getextrema()[-1] == (255, 255)
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    except FileNotFoundError as error:
        raise ValueError(f"no picture {printable(str(path))}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{printable(str(path))} is no whole picture: {' '.join(str(error).split())}") from error
    if mode not in ("RGB", "RGBA", "L", "P", "1") or not opaque:
        what = "it is transparent in places" if not opaque else f"its pixels are {mode}"
        raise ValueError(f"{printable(str(path))}: {what}; allowed: opaque pictures of 8 bits per channel")
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) / np.float32(255)


class Export:
    """Writes the pictures of a plan into `folder` as they come; called with each batch. Files that are there stay."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder

    @cached_property
    def folders(self) -> Sequence[str]:
        """One folder name per row of the plan."""
        names: list[str] = []
        for row in self.plan.rows:
            name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", row.label)[:100]
            names.append(name if name not in names else f"{name}-{len(names)}")
        return names

    def __call__(self, batch: Batch, images: Images) -> None:
        row = self.plan.rows[batch.row]
        seeds = self.plan.seeds(row)
        for index, image in enumerate(images, batch.start):
            about = {"prompt": self.plan.captions[index], "seed": str(seeds[index]), "configuration": row.label}
            frames = [image] if image.ndim == 3 else image
            for number, frame in enumerate(frames):
                name = f"{index:06d}.png" if image.ndim == 3 else f"{index:06d}-{number:03d}.png"
                path = self.folder / self.folders[batch.row] / name
                if not path.exists():  # written whole or not at all, and the folder is this run's
                    write_atomic(path, to_png(frame, about))


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of pictures: the files of each by name, one, or one per frame of videos."""

    path: Path
    files: Mapping[str, tuple[Path, ...]]
    videos: bool = False

    @classmethod
    def open(cls, path: Path) -> Folder:
        """All PNG files right in a folder, by name. Raises ValueError without a folder or without a PNG in it."""
        if not path.is_dir():
            raise ValueError(f"no folder {printable(str(path))}; give one of PNG files")
        found = sorted(
            file for file in path.iterdir() if file.suffix.lower() == ".png" and not file.name.startswith(".")
        )
        if not found:
            inner = sorted(one.name for one in path.iterdir() if one.is_dir())
            hint = f"; its folders: {', '.join(inner[:8])}" if inner else ""
            raise ValueError(f"no PNG file in {printable(str(path))}{printable(hint)}")
        parts = [_FRAME.fullmatch(file.stem) for file in found]
        if not all(parts):
            return cls(path=path, files={file.stem: (file,) for file in found})
        files: dict[str, tuple[Path, ...]] = {}
        for file, part in zip(found, parts, strict=True):
            if part is not None:
                files[part[1]] = (*files.get(part[1], ()), file)
        return cls(path=path, files=files, videos=True)

    def read(self, names: Sequence[str]) -> Images:
        """float32 (N, 3, H, W), or videos (N, F, 3, H, W), of some names. Raises ValueError for sizes that differ."""
        pictures = [self._one(name) for name in names]
        for name, picture in zip(names, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise ValueError(
                    f"{printable(str(self.path))}: {name} is {_size(picture)}, {names[0]} is {_size(pictures[0])}; "
                    "all pictures must have one size"
                )
        return np.stack(pictures)

    def _one(self, name: str) -> npt.NDArray[np.float32]:
        frames = [from_png(file) for file in self.files[name]]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise ValueError(f"{printable(str(self.path))}: the frames of {name} differ in size")
        return np.stack(frames) if self.videos else frames[0]


def _size(picture: npt.NDArray[np.float32]) -> str:
    """`64 x 48`, of a video `16 frames of 64 x 48`; width first."""
    frames = f"{len(picture)} frames of " if picture.ndim == 4 else ""
    return f"{frames}{picture.shape[-1]} x {picture.shape[-2]}"
