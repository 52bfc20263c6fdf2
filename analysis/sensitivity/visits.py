"""Where sensitivity is judged: calls of the denoiser along full-precision trajectories, and what a change does to them.

A `Visit` is one call with all its images, both halves of guidance in it if the pipeline puts them there. Its inputs are
those of the trajectory in full precision whatever is quantized (teacher forcing), so an error is that of this call
alone, not one of an earlier step that has grown. Two questions are asked of an output:

- quality: how large is the error? Power of the error over power of the output, summed over the call: the inverse of
  its SQNR. Errors of different layers are hardly correlated, so these numbers nearly add up.
- content: is it still the same picture? The output, guidance applied, says what the clean picture would be if it were
  right; the pipeline's decoder shows it. 1 - SSIM (Wang et al. 2004) between the pictures with and without the change.

Both are 0 exactly where nothing changed, and grow with the square of a small error. After MixDQ (arXiv:2405.17873,
section 4.2), which asks both of final images.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.runner.calibrate import Calibration
from analysis.runner.samples import Call, collect

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

_ALL = 1 << 60  # images and bytes of stored calls: those of a few captions, whole


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One call of the denoiser on a full-precision trajectory; timestep: which."""

    call: Call
    timestep: float


def visits(pipe: "DiffusionPipeline", calibration: Calibration, images: int, steps: int) -> tuple[Visit, ...]:
    """Every call of the denoiser at `steps` timesteps, spread evenly, while the first `images` captions are denoised.

    Raises ValueError for counts that calibration does not have.
    """
    from fpsim.nn.clock import timestep_of

    if not 1 <= images <= len(calibration.captions):
        raise ValueError(f"{images} images to judge on, but calibration has 1 to {len(calibration.captions)} captions")
    if not 1 <= steps <= len(calibration.timesteps):
        raise ValueError(f"{steps} timesteps to judge at, but the trajectory has 1 to {len(calibration.timesteps)}")
    part = replace(calibration, captions=calibration.captions[:images], seeds=calibration.seeds[:images])
    calls = collect(pipe, part, _ALL, _ALL)
    found = [Visit(call=call, timestep=timestep_of(call.args, call.kwargs)) for call in calls]
    times = list(dict.fromkeys(visit.timestep for visit in found))
    chosen = {times[(2 * i + 1) * len(times) // (2 * steps)] for i in range(steps)}
    return tuple(visit for visit in found if visit.timestep in chosen)


def noise(output: "Tensor", reference: "Tensor") -> float:
    """Power of the error over power of the reference, in float64; 0 exactly where they are equal."""
    wanted = reference.double()
    power = float(wanted.square().sum())
    error = float((output.double() - wanted).square().sum())
    return error / power if power else float(error > 0)


class Clean:
    """The clean pictures that an output of the denoiser stands for.

    x0 = sqrt(a) x - sqrt(1 - a) v, (x - sqrt(1 - a) e) / sqrt(a) or the output itself, by the scheduler's
    `prediction_type`, a = alphas_cumprod[t]; x0 = x - (t / T) v for flow matching. Inputs that a scheduler scales to
    unit variance are such x already.
    Raises ValueError for a pipeline of another kind (packed latents, no autoencoder).
    """

    def __init__(self, pipe: "DiffusionPipeline", images: int, guidance: float) -> None:
        self.vae: Any = getattr(pipe, "vae", None)
        self.scheduler: Any = pipe.scheduler
        self.images, self.guidance = images, guidance
        self.kind = str(getattr(self.scheduler.config, "prediction_type", "flow"))
        self.alphas: Any = getattr(self.scheduler, "alphas_cumprod", None)
        if self.alphas is None and type(self.scheduler).__name__.startswith("FlowMatch"):
            self.kind = "flow"
        elif self.alphas is None or self.kind not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"{type(self.scheduler).__name__} says nothing of clean pictures; leave content out")
        if not hasattr(self.vae, "decode"):
            raise ValueError(f"{type(pipe).__name__} has no autoencoder to show pictures with; leave content out")

    def latents(self, visit: Visit, output: "Tensor") -> "Tensor":
        """float32 (images, C, H, W): x0 of the guided output (of each half by itself where a call has one half)."""
        call = visit.call
        given = call.args[0] if call.args else call.kwargs.get("sample", call.kwargs.get("hidden_states"))
        if given is None or given.ndim != 4 or output.shape[1] < given.shape[1]:
            raise ValueError("content takes latents of shape (N, C, H, W); leave it out for this denoiser")
        x, made = given.float(), output[:, : given.shape[1]].float()  # a learned variance comes after
        if self.guidance > 1 and call.images == 2 * self.images:
            (unconditional, conditional), x = made.chunk(2), x[: self.images]
            made = unconditional + self.guidance * (conditional - unconditional)
        if self.kind == "flow":
            return x - visit.timestep / self.scheduler.config.num_train_timesteps * made
        a = float(self.alphas[round(visit.timestep)])
        if self.kind == "v_prediction":
            return a**0.5 * x - (1 - a) ** 0.5 * made
        return made if self.kind == "sample" else (x - (1 - a) ** 0.5 * made) / a**0.5

    def pictures(self, visit: Visit, output: "Tensor") -> "Tensor":
        """float64 (images, 3, H, W) in [0, 1]."""
        import torch

        config = self.vae.config
        latents = self.latents(visit, output) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        with torch.no_grad():
            made = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (made.double() / 2 + 0.5).clamp(0, 1)


def restructured(pictures: "Tensor", reference: "Tensor") -> float:
    """1 - SSIM, mean over pictures, in float64: SSIM in float32 is uncertain by more than a 16-bit cast changes it."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    similar: Any = structural_similarity_index_measure(pictures, reference, data_range=1.0, reduction="none")
    return max(1.0 - float(similar.mean()), 0.0)
