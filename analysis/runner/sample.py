"""Images, or videos, from a pipeline, one seed per prompt.

Pipelines differ in what their call takes; what is passed is looked up in the signature, so that one function serves
Stable Diffusion 1/2/XL/3, PixArt and Flux, CogVideoX, Wan and LTX-Video. Every prompt draws its initial noise from its
own generator on the CPU: an image depends on its caption and seed, not on its place in a batch, and a GPU starts from
the same noise as a CPU. (Matrix libraries may choose another order of summation for another batch size, so images agree
to float32 rounding, not to the bit.)
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

#: called with (images done, images in all) after each batch
Progress = Callable[[int, int], None]

#: Given to a pipeline when its call knows them. PixArt's cleaning of web text and its bins of image sizes would change
#: what was asked for.
_PREFERENCES: dict[str, Any] = {"clean_caption": False, "use_resolution_binning": False}


def sample(
    pipe: "DiffusionPipeline",
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 3.0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> "Tensor":
    """Images of `captions`, float32 (N, 3, H, W) in [0, 1], on the CPU, of the pipeline's own size (see `sized`).

    Videos of a pipeline that makes them: (N, frames, 3, H, W).

    seeds      : one integer per caption, for its initial noise
    steps      : denoising steps; guidance : classifier-free guidance scale, 1 turns it off
    batch_size : prompts per call; guidance doubles the denoiser's batch
    progress   : called with (images done, images in all)

    The pipeline is not changed. Raises ValueError for counts that do not fit, a pipeline that takes no prompt, and
    images with NaN or Inf.
    """
    import torch

    check(captions, seeds, steps, batch_size)
    images = []
    for start in range(0, len(captions), batch_size):
        stop = min(start + batch_size, len(captions))
        images.append(call(pipe, captions[start:stop], seeds[start:stop], steps, guidance, output="pt").float().cpu())
        if progress is not None:
            progress(stop, len(captions))
    made = torch.cat(images)
    if not torch.isfinite(made).all():
        bad = int((~torch.isfinite(made)).flatten(1).any(1).sum())
        raise ValueError(f"{bad} of {len(made)} images have NaN or Inf; the scheme overflows somewhere in the denoiser")
    return made.clamp_(0, 1)


#: what a size is called by `sized` -> by pipelines
_SIZES = {"height": "height", "width": "width", "frames": "num_frames"}


def sized(
    pipe: "DiffusionPipeline", height: int | None = None, width: int | None = None, frames: int | None = None
) -> "DiffusionPipeline":
    """The same pipeline, told what size to make wherever nobody says: pixels, and frames of a video.

    Raises ValueError for a size that the pipeline's call does not take.
    """
    given = {"height": height, "width": width, "frames": frames}
    wanted = {_SIZES[name]: value for name, value in given.items() if value is not None}
    taken = inspect.signature(type(pipe).__call__).parameters
    for name, value in given.items():
        if value is not None and _SIZES[name] not in taken:
            raise ValueError(f"{type(pipe).__name__} takes no {name}; leave {name} = {value} out")
    made = copy.copy(pipe)
    made._size = wanted
    return made


def check(captions: Sequence[str], seeds: Sequence[int], steps: int, batch_size: int) -> None:
    """Raise ValueError unless the arguments of `sample` make sense together."""
    if isinstance(captions, str):
        raise ValueError("captions is one string; give a list of captions")
    if not captions:
        raise ValueError("no captions: give at least one")
    if len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions but {len(seeds)} seeds: one seed per caption")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps={steps} and batch_size={batch_size} must both be at least 1")


def call(
    pipe: "DiffusionPipeline",
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    output: str,
) -> "Tensor":
    """One call of the pipeline; `output` is "pt" for images or videos in [0, 1] or "latent" to spare the decoder."""
    import torch

    taken = inspect.signature(type(pipe).__call__).parameters
    if "prompt" not in taken:
        raise ValueError(f"{type(pipe).__name__} takes no prompt; a text-to-image or -video pipeline is needed")
    wanted: dict[str, Any] = {
        "prompt": list(captions),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds],
        "output_type": output,
        **_PREFERENCES,
        **getattr(pipe, "_size", {}),
    }
    tokenizer = getattr(pipe, "tokenizer", None)
    if "max_sequence_length" in taken and tokenizer is not None:
        usual = taken["max_sequence_length"].default
        wanted["max_sequence_length"] = min(usual, tokenizer.model_max_length)
    with torch.no_grad():
        made: Any = _quiet(pipe)(**{key: value for key, value in wanted.items() if key in taken})
    found: Tensor = made.images if hasattr(made, "images") else made.frames
    return found


def _quiet(pipe: "DiffusionPipeline") -> "DiffusionPipeline":
    """The same components without a progress bar, and with a scheduler of its own: schedulers keep state."""
    made = copy.copy(pipe)
    made.set_progress_bar_config(disable=True)
    if getattr(pipe, "scheduler", None) is not None:
        made.scheduler = copy.deepcopy(pipe.scheduler)
    return made
