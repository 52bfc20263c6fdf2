"""What rounding methods need to know of a layer's inputs, sampled along the calibration trajectories.

A layer is a matrix product y = X W^T; for a convolution a row of X is the window of one output pixel, K = taps x
channels (tap-major, as in `fpsim.nn.exact`). Two things are kept per layer: the mean outer product X^T X / n (K x K),
from which the output error of any rounded weight follows, tr(D H D^T) with D the weight's change; and a small sample of
rows. Rows are drawn uniformly from every denoiser call, so all timesteps and both halves of guidance weigh the same.

Memory is bounded: layers are taken in passes whose K x K matrices fit a budget, and each pass runs the trajectories
again. The draws depend on nothing but the seed and the layer's place, so a run can be repeated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.methods import Layer
from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.padding import unpadded
from analysis.runner.sample import call

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

BATCH = 16
#: Rows per column of a Gram matrix that roundings are chosen with: more do not change them for the better.
PER_COLUMN = 8


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The inputs of one layer.

    gram : (K, K) float32, mean of x^T x over the rows drawn
    rows : (R, K) float32, some of them
    channel_low, channel_high : (channels,) ends of each input channel over everything that passed
    cross : (K, K) float32, mean of x^T z over the same rows, x as in `gram` behind quantized layers, z the same input
            in full precision; None where x is in full precision itself
    halves : (gram, cross) of every other call, twice, for judging on one what the other suggests; None without `cross`
    """

    gram: "Tensor"
    rows: "Tensor"
    channel_low: "Tensor"
    channel_high: "Tensor"
    cross: "Tensor | None" = None
    halves: "tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None" = None

    @property
    def channel_max(self) -> "Tensor":
        """(channels,) largest magnitude of each input channel."""
        return self.channel_high.maximum(-self.channel_low)


def statistics(
    pipe: "DiffusionPipeline",
    layers: Sequence[Layer],
    calibration: Calibration,
    gram_rows: int = 16384,
    kept_rows: int = 1024,
    budget: int | None = None,
    seed: int = 0,
    per_column: int | None = None,
) -> Iterator[tuple[Layer, Statistics]]:
    """Statistics of each layer, in passes of at most `budget` bytes of Gram matrices and rows.

    gram_rows, kept_rows : rows per layer in all; a layer that sees fewer has fewer
    budget     : by default 2 GiB, and 16 GiB on a GPU, where passes cost more than memory
    per_column : bound on the rows of the Gram matrix for each of its K columns
    Raises ValueError, naming the layer, for inputs with NaN or Inf.
    """
    if budget is None:
        budget = (16 if getattr(pipe, denoiser_name(pipe)).device.type == "cuda" else 2) << 30
    for group in _passes(layers, kept_rows, budget):
        rows = {layer.path: (enough(layer, gram_rows, per_column), kept_rows) for layer in group}
        yield from _one_pass(pipe, group, calibration, rows, seed)


def enough(layer: Layer, rows: int, per_column: int | None) -> int:
    """Rows of the Gram matrix of a layer: at most `rows`, and `per_column` for each of its columns."""
    weight = layer.module.get_parameter("weight")
    return rows if per_column is None else min(rows, per_column * (weight.numel() // weight.shape[0]))


def as_matrix(weight: "Tensor") -> "Tensor":
    """A Linear's (out, in) or a convolution's (out, in, h, w) weight as (out, K), K tap-major."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def as_weight(matrix: "Tensor", shape: "Sequence[int]") -> "Tensor":
    """Undo `as_matrix` for a weight of `shape`."""
    if len(shape) == 2:
        return matrix
    out, channels, height, width = shape
    return matrix.reshape(out, height, width, channels).permute(0, 3, 1, 2).contiguous()


def _passes(layers: Sequence[Layer], kept_rows: int, budget: int) -> Iterator[list[Layer]]:
    group: list[Layer] = []
    used = 0
    for layer in layers:
        weight = layer.module.get_parameter("weight")
        width = weight.numel() // weight.shape[0]
        need = 4 * width * (width + kept_rows)
        if group and used + need > budget:
            yield group
            group, used = [], 0
        group.append(layer)
        used += need
    if group:
        yield group


def _one_pass(
    pipe: "DiffusionPipeline",
    layers: list[Layer],
    calibration: Calibration,
    rows: Mapping[str, tuple[int, int]],
    seed: int,
) -> Iterator[tuple[Layer, Statistics]]:
    count = len(calibration.captions)
    calls = -(-count // BATCH) * calibration.steps
    taps = {layer.path: Tap(layer, rows[layer.path], calls, seed + i) for i, layer in enumerate(layers)}
    handles = [layer.module.register_forward_pre_hook(taps[layer.path]) for layer in layers]
    try:
        with unpadded(getattr(pipe, denoiser_name(pipe))):
            for start in range(0, count, BATCH):
                part = slice(start, start + BATCH)
                call(
                    pipe,
                    calibration.captions[part],
                    calibration.seeds[part],
                    calibration.steps,
                    calibration.guidance,
                    output="latent",
                )
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        yield layer, taps.pop(layer.path).result()


class Tap:
    """A forward-pre-hook that draws rows of a layer's input: `rows` (for the Gram matrix, to keep) in all of `calls`.

    holds : rows are held as they are, to be counted when they are paired with those of another tap (`pair`)
    """

    def __init__(self, layer: Layer, rows: tuple[int, int], calls: int, seed: int, holds: bool = False) -> None:
        import torch

        self.layer = layer
        self.gram_rows, self.kept_rows = (-(-count // calls) for count in rows)
        self.generator = torch.Generator().manual_seed(seed)
        self.gram: Any = 0.0
        self.count = 0
        self.rows: list[Tensor] = []
        self.held: list[Tensor] | None = [] if holds else None
        self.low: Any = float("inf")
        self.high: Any = -float("inf")

    def __call__(self, _: Any, args: tuple[Any, ...]) -> None:
        x = args[0].detach().float()
        channels = x.flatten(0, -2) if self.layer.kind == "Linear" else x.movedim(1, -1).flatten(0, -2)
        self.low = channels.amin(0).clamp(max=self.low)
        self.high = channels.amax(0).clamp(min=self.high)
        rows = draw(self.layer.module, x, self.gram_rows, self.generator)
        if self.held is not None:
            self.held.append(rows)
            rows = rows[: self.kept_rows]
        self.gram = self.gram + rows.T @ rows
        self.count += len(rows)
        self.rows.append(rows[: self.kept_rows].clone())  # a view would keep all of them

    def result(self) -> Statistics:
        """What was seen; of rows that are held, those that are kept make the Gram matrix."""
        return self._made(self.gram / max(self.count, 1), self.rows)

    def pair(
        self, other: "Tap", here: Callable[["Tensor"], "Tensor"], there: Callable[["Tensor"], "Tensor"]
    ) -> Statistics:
        """Statistics of what `here` makes of the held rows, beside what `there` makes of those of `other`, which saw
        the same in full precision. They are held no longer."""
        count, sums, rows = 0, [], []
        for index, (x, z) in enumerate(zip(self.held or (), other.held or (), strict=True)):
            x, z = here(x), there(z)
            count += len(x)
            rows.append(x[: self.kept_rows].clone())
            new = x.T @ x, x.T @ z
            if index < 2:  # even calls, odd calls
                sums.append(new)
            else:
                for total, one in zip(sums[index % 2], new, strict=True):
                    total += one
        self.held = other.held = None
        if not sums:
            raise ValueError(f"layer {self.layer.path} was not called during calibration")
        gram, cross = (sum(parts) / count for parts in zip(*sums, strict=True))
        halves = (sums[0], sums[1]) if len(sums) == 2 else None
        return replace(self._made(gram, rows), cross=cross, halves=halves)

    def _made(self, gram: "Tensor", rows: "list[Tensor]") -> Statistics:
        import torch

        if not self.count:
            raise ValueError(f"layer {self.layer.path} was not called during calibration")
        if not torch.isfinite(gram).all():
            raise ValueError(f"the input of layer {self.layer.path} has NaN or Inf in full precision")
        return Statistics(gram=gram, rows=torch.cat(rows), channel_low=self.low, channel_high=self.high)


def draw(module: Any, x: "Tensor", count: int, generator: Any) -> "Tensor":
    """At most `count` random rows of a layer's input as a matrix, (rows, K): tokens, or windows of a convolution."""
    import torch

    if x.ndim != 4 or not isinstance(module, torch.nn.Conv2d):
        flat = x.reshape(-1, x.shape[-1])
        chosen = torch.randperm(len(flat), generator=generator)[:count].to(x.device)
        return flat[chosen]
    geometry: Any = module
    (kernel_h, kernel_w), (stride_h, stride_w) = geometry.kernel_size, geometry.stride
    (pad_h, pad_w), (dilation_h, dilation_w) = geometry.padding, geometry.dilation
    padded = torch.nn.functional.pad(x, (pad_w, pad_w, pad_h, pad_h))
    height = (padded.shape[2] - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (padded.shape[3] - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    chosen = torch.randperm(len(x) * height * width, generator=generator)[:count].to(x.device)
    image, row, column = chosen // (height * width), chosen // width % height, chosen % width
    taps = torch.arange(kernel_h * kernel_w, device=x.device)
    rows = row[:, None] * stride_h + taps // kernel_w * dilation_h
    columns = column[:, None] * stride_w + taps % kernel_w * dilation_w
    return padded[image[:, None], :, rows, columns].flatten(1)  # (count, taps, channels)
