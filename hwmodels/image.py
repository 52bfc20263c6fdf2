"""From one pass to one image: steps, guidance, text encoder and decoder into seconds, throughput and memory.

A request for `batch` images runs the text encoder once, the denoiser once per step, and the decoder once.  With
classifier-free guidance the denoiser works on two rows per image: trace it with that batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .estimate import Estimate
from .op import check_size


@dataclass(frozen=True, kw_only=True)
class ImageCost:
    """What `batch` images cost in one request.

    seconds: of the request; step_s, text_s, decode_s: its parts (step_s is one denoiser call).
    memory: bytes with every part resident; offloaded: with only the running part on the device (its copy not timed).
    fits, fits_offloaded: None where the device states no capacity.  joules: at most, None where a part has none.
    """

    batch: int
    steps: int
    seconds: float
    step_s: float
    text_s: float
    decode_s: float
    memory: float
    offloaded: float
    fits: bool | None
    fits_offloaded: bool | None
    joules: float | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput of requests of this size, one after another."""
        return self.batch / self.seconds

    @property
    def seconds_per_image(self) -> float:
        return self.seconds / self.batch


def image_cost(
    denoiser: Estimate,
    steps: int,
    batch: int = 1,
    decoder: Estimate | None = None,
    text: Estimate | None = None,
) -> ImageCost:
    """Cost of one request from the estimates of its parts, each made for this batch.

    Raises ValueError for a step count or batch below 1, or estimates of different devices.
    """
    check_size("image_cost", "steps", steps)
    check_size("image_cost", "batch", batch)
    parts = [part for part in (text, denoiser, decoder) if part is not None]
    if len({part.device for part in parts}) > 1:
        raise ValueError(
            f"estimates of different devices: {', '.join(part.device for part in parts)}; allowed: one device"
        )
    capacity = denoiser.footprint.capacity
    memory = sum(part.footprint.weights for part in parts) + max(part.footprint.activations for part in parts)
    offloaded = max(part.footprint.total for part in parts)
    text_s = text.time_s if text else 0.0
    decode_s = decoder.time_s if decoder else 0.0
    return ImageCost(
        batch=batch,
        steps=steps,
        seconds=text_s + steps * denoiser.time_s + decode_s,
        step_s=denoiser.time_s,
        text_s=text_s,
        decode_s=decode_s,
        memory=memory,
        offloaded=offloaded,
        fits=None if capacity is None else memory <= capacity,
        fits_offloaded=None if capacity is None else offloaded <= capacity,
        joules=_joules(denoiser, steps, [part for part in (text, decoder) if part is not None]),
    )


def _joules(denoiser: Estimate, steps: int, others: list[Estimate]) -> float | None:
    parts = [part.energy_j for part in others]
    if denoiser.energy_j is None or None in parts:
        return None
    return steps * denoiser.energy_j + sum(part for part in parts if part is not None)
