"""The measuring part of `analysis.accumulators`: watch the sums, count the overflows, draw the pictures."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.accumulators import ALL, Candidate, Row, Study, Tell
from analysis.accumulators.partial_sums import LayerSums, watched
from fpsim.accumulators import Accumulator
from fpsim.spec import MatmulSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from analysis.runner.calibrate import Calibration
    from analysis.scenes import Scenes
    from fpsim.counts import Totals


def on_accumulator(pipe: "DiffusionPipeline", accumulator: Accumulator) -> "DiffusionPipeline":
    """`pipe`, quantized, with the products of its quantized layers added in `accumulator`; codes and scales stay.

    Raises ValueError for a pipeline without layers that multiply codes by codes, and for operands whose codes cannot
    be multiplied as they are (weights with a zero point).
    """
    import torch

    from analysis.runner.load import denoiser_name
    from analysis.runner.quantize import replaced
    from fpsim.nn.layer import QuantizedLayer, element_format

    name = denoiser_name(pipe)
    denoiser = replaced(getattr(pipe, name), {})
    count = 0
    for path, layer in denoiser.named_modules():
        if not isinstance(layer, QuantizedLayer) or layer.activation_quantizer is None:
            continue
        if layer.weight_quantizer.has_zero or layer.weight.dtype != torch.float32:
            raise ValueError(
                f"layer {path}: codes are multiplied for weights without a zero point in float32 pipelines, not "
                f"{layer.weight_quantizer} in {layer.weight.dtype}"
            )
        a, b = element_format(layer.activation_quantizer), element_format(layer.weight_quantizer)
        layer.spec = MatmulSpec(a, b, accumulator)
        count += 1
    if not count:
        raise ValueError("no layer multiplies codes by codes: quantize weights and activations first")
    made = copy.copy(pipe)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    setattr(made, name, denoiser)
    return made


class Laboratory:
    """Everything that candidates of one study share: the pipeline, its calibration, pictures in full precision."""

    def __init__(self, study: Study, device: str, tell: Tell) -> None:
        self.study, self.device, self.tell = study, device, tell
        self._ready = False
        self._quantized: dict[str, tuple[DiffusionPipeline, list[LayerSums]]] = {}
        self._reference: Any = None
        self.pipe: Any = None
        self.calibration: Calibration
        self.scenes: Scenes

    def rows(self, candidate: Candidate, file: Path | None) -> list[Row]:
        """A row per layer and one over all of them, without costs; read from `file` if it is there, kept there if not.

        Raises ValueError as the candidate's method does.
        """
        from analysis.store import DamagedFile, read_json, write_json

        if file is not None:
            try:
                return [Row(**row) for row in read_json(file)["rows"]]
            except (FileNotFoundError, DamagedFile):
                pass  # not done yet, or done again
        made = self._measured(candidate)
        if file is not None:
            write_json(file, {"rows": [asdict(row) for row in made]})
        return made

    def _prepare(self) -> None:
        """Load and calibrate, once it is known that something is left to measure."""
        from analysis.plan import held_out
        from analysis.runner import calibrate, load, sample

        if self._ready:
            return
        asked = self.study
        self.pipe = load(asked.pipeline, device=self.device)
        captions = held_out(asked.calibration, (1, 2, 3, 4), asked.seed + 1_000_003).captions()
        self.calibration = calibrate(
            self.pipe,
            captions,
            steps=asked.steps,
            guidance=asked.guidance,
            progress=lambda done, total: self.tell("calibrating", done, total),
        )
        self.scenes = held_out(asked.prompts, (1, 2, 3, 4), asked.seed)
        self._reference = sample(self.pipe, *self._call(asked.prompts))
        self._ready = True

    def _call(self, prompts: int) -> tuple[Any, ...]:
        """Arguments of `sample` for the first prompts."""
        asked = self.study
        first = asked.seed * 1_000_000
        seeds = list(range(first, first + prompts))
        return self.scenes.captions()[:prompts], seeds, asked.steps, asked.guidance, asked.batch

    def _made(self, candidate: Candidate) -> "tuple[DiffusionPipeline, list[LayerSums]]":
        """The quantized pipeline, and what its sums are when nothing overflows."""
        from analysis.runner import quantize, sample
        from analysis.runner.load import denoiser_name

        asked = self.study
        if candidate.recipe not in self._quantized:
            made = quantize(
                self.pipe, asked.scheme, candidate.method, calibration=self.calibration, **dict(candidate.options)
            )
            seen = self.calibration
            with watched(getattr(made, denoiser_name(made)), asked.rows) as sums:
                captions, seeds = seen.captions[: asked.watched], seen.seeds[: asked.watched]
                sample(made, captions, seeds, asked.steps, asked.guidance, asked.batch)
            self._quantized = {candidate.recipe: (made, sums())}  # candidates of one recipe follow each other
        return self._quantized[candidate.recipe]

    def _measured(self, candidate: Candidate) -> list[Row]:
        from analysis import metrics
        from analysis.runner import sample

        self._prepare()
        made, sums = self._made(candidate)
        narrow = on_accumulator(made, candidate.kind)
        counted = self._counted(narrow)
        images = sample(narrow, *self._call(self.study.prompts))
        judged = metrics.evaluate(images, self.scenes, self._reference)
        quality: dict[str, float] = {}
        for name, values in (("correct", judged.correct), ("psnr", judged.psnr)):
            if values is not None:  # equal pictures have an infinite psnr
                quality |= _interval(name, values.double().clamp(max=200).numpy())
        bits = candidate.bits
        return [
            _row(self.study, candidate, ALL, sums, bits, counted, quality),
            *(_row(self.study, candidate, one.path, [one], bits, counted, {}) for one in sums),
        ]

    def _counted(self, narrow: "DiffusionPipeline") -> "Mapping[str, Totals]":
        """Path of a layer -> losses, on the first picture's first steps."""
        from analysis.runner import sample
        from analysis.runner.load import denoiser_name
        from fpsim.nn import counted

        asked = self.study
        if not asked.counted or self.device != "cpu":
            return {}
        captions, seeds, *_ = self._call(1)
        with counted(getattr(narrow, denoiser_name(narrow))) as found:
            sample(narrow, captions, seeds, asked.counted, asked.guidance)
        return found


def _interval(name: str, values: Any) -> dict[str, float]:
    from analysis.metrics import bootstrap

    found = bootstrap(values)
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def _row(
    study: Study,
    candidate: Candidate,
    layer: str,
    sums: list[LayerSums],
    bits: int | None,
    counted: "Mapping[str, Totals]",
    quality: Mapping[str, float],
) -> Row:
    """Some layers as one row: the widest of each width, sums of counts."""
    kinds = {(one.kind, one.a, one.b) for one in sums}
    kind, a, b = next(iter(kinds)) if layer != ALL else ("", sums[0].a, sums[0].b)
    outputs, tiles = sum(one.observed.outputs for one in sums), candidate.register is not None
    beyond = sum(one.observed.beyond(candidate.reach(one.a, one.b) or 0) for one in sums)
    total = None
    for here in (counted[one.path] for one in sums if one.path in counted):
        total = here if total is None else total + here
    return Row(
        pipeline=study.pipeline,
        scheme=study.scheme,
        method=candidate.recipe,
        accumulator=candidate.words,
        bits=bits,
        layer=layer,
        kind=kind,
        a=a,
        b=b,
        products=max(one.products for one in sums),
        macs=sum(one.macs for one in sums) / study.watched,
        data_type=max(one.data_type for one in sums),
        weight=max(one.weight for one in sums),
        any_order=max(one.any_order for one in sums),
        in_order=max(one.in_order for one in sums),
        final=max(one.final for one in sums),
        needing=None if bits is None or tiles else beyond / outputs,
        overflow=None if total is None else total.overflow,
        overflowed=None if total is None else total.overflowed_outputs / total.outputs,
        truncated=None if total is None else total.truncated / total.products,
        **quality,
    )
