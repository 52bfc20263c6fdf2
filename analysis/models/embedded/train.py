"""Trains the embedded pipelines from nothing but the scene renderer.

    python -m analysis.models.embedded.train vae --out DIR
    python -m analysis.models.embedded.train judge --out DIR
    python -m analysis.models.embedded.train shapes-sd --out DIR      # waits for DIR/vae.safetensors
    python -m analysis.models.embedded.train shapes-dit --out DIR
    python -m analysis.models.embedded.train vae-polish --out DIR     # decoder only: the latent space stays
    python -m analysis.models.embedded.train shapes-sd-polish --out DIR
    python -m analysis.models.embedded.train shapes-dit-polish --out DIR
    python -m analysis.models.embedded.train evaluate --out DIR

Stages are processes so that two GPUs can share the work. Scenes are drawn and rendered on the device and never stored;
the noise, the times and the caption dropout of a step come from a generator seeded by (seed, step), so a run that is
stopped and started again with the same `--out` goes on with the step it would have taken. `--seconds` caps a stage: the
cosine schedule then reaches zero at whichever comes first, the configured steps or the time.

Checkpoints and weights are safetensors. `DIR/log.jsonl` keeps loss, learning rate and time.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from analysis import decoder, judge, scenes
from analysis.models.embedded import build
from analysis.models.embedded.optimise import Run, optimise

CONFIG = Path(__file__).with_name("train.toml")


def _compiled(run: Run, function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function) if run.compile else function


def train_vae(run: Run) -> None:
    """Reconstruct renders; then measure the scale of the latents so that the denoisers see unit variance."""
    config = run.config
    vae = _on(run.device, build.autoencoder())

    def objective(images: Tensor, noise: Tensor) -> Tensor:
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return _reconstruction(decoded - images, config) + config["kl"] * kl

    step_loss = _compiled(run, objective)

    def loss_of(step: int) -> Tensor:
        images = scenes.render(run.draw(config["batch"], step)) * 2 - 1
        shape = (len(images), build.LATENT_CHANNELS, build.LATENT_SIZE, build.LATENT_SIZE)
        noise = torch.randn(shape, generator=run.generator(step), device=run.device)
        return step_loss(images.contiguous(memory_format=torch.channels_last), noise)

    optimise(run, vae, loss_of)
    latents, _ = _encode(run, vae, 20_000)
    scale = 1 / float(latents.float().std())
    _reconstruction_report(run, vae)
    weights = {name: value.contiguous() for name, value in vae.state_dict().items()}
    partial = run.out / "vae.partial"
    save_file(weights, partial, metadata={"scaling_factor": repr(scale)})
    partial.replace(run.out / "vae.safetensors")


def polish_decoder(run: Run) -> None:
    """Train only the decoder further, on slightly noisy latents: the latent space, and with it every denoiser, stays
    as it is while fine detail (dots, stripes) gets sharper and tolerates the small errors of generated latents."""
    config = run.config
    vae = AutoencoderKL.from_pretrained(run.out / "shapes-sd" / "vae", dtype=torch.float32)
    vae = _on(run.device, vae)
    vae.requires_grad_(False)
    trained = nn.ModuleList([vae.decoder, vae.post_quant_conv]).requires_grad_(True)
    spread = 1 / vae.config.scaling_factor

    def objective(latents: Tensor, images: Tensor) -> Tensor:
        return _reconstruction(vae.decode(latents).sample - images, config)

    step_loss = _compiled(run, objective)

    def loss_of(step: int) -> Tensor:
        drawn, generator = run.draw(config["batch"], step), run.generator(step)
        images = (scenes.render(drawn) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean.float()
        noise = torch.randn(latents.shape, generator=generator, device=run.device)
        strength = torch.rand(len(images), 1, 1, 1, generator=generator, device=run.device)
        return step_loss(latents + noise * strength * config["noise"] * spread, images)

    optimise(run, trained, loss_of)
    _reconstruction_report(run, vae)
    vae.half()
    for name in ("shapes-sd", "shapes-dit"):
        vae.save_pretrained(run.out / name / "vae")


def _reconstruction(error: Tensor, config: dict[str, Any]) -> Tensor:
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    total: Tensor = error.square().mean() + config["l1"] * error.abs().mean() + config["edge"] * edges
    return total


def _reconstruction_report(run: Run, vae: Any) -> None:
    test = scenes.held_out(2048, seed=run.seed).to(run.device)
    images = scenes.render(test)
    with torch.no_grad():
        parts = [vae.decode(vae.encode(p * 2 - 1).latent_dist.mean).sample for p in images.split(256)]
    decoded = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
    psnr = -10 * (decoded - images).square().mean((1, 2, 3)).log10()
    right = decoder.all_correct(decoder.decode(decoded), test).float()
    by_count = {str(k): round(float(right[test.count == k].mean()), 4) for k in range(1, 5)}
    run.log(psnr=round(float(psnr.mean()), 2), reconstruction_all_correct=by_count)


def load_vae(path: Path) -> Any:
    """The trained autoencoder with its latent scale in the config."""
    from safetensors import safe_open

    vae = build.autoencoder()
    with safe_open(path, "pt") as file:
        scale = float(file.metadata()["scaling_factor"])
    vae.load_state_dict(load_file(path))
    vae.register_to_config(scaling_factor=scale)
    return vae.eval().requires_grad_(False)


def _encode(run: Run, vae: Any, count: int) -> tuple[Tensor, Tensor]:
    """Latent means [count, 4, 16, 16] in float16 (unscaled) and tokens [count, MAX_TOKENS] of fresh training scenes."""
    latents, tokens, batch = [], [], 8192
    for start in range(0, count, batch):
        drawn = run.draw(min(batch, count - start), -1 - start)
        with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            for part in (scenes.render(drawn) * 2 - 1).split(2048):
                image = part.contiguous(memory_format=torch.channels_last)
                latents.append(vae.encode(image).latent_dist.mean.half())
        tokens.append(drawn.tokens())
    return torch.cat(latents), torch.cat(tokens)


def train_judge(run: Run) -> None:
    """Classify every cell of renders that were blurred and noised by random amounts."""
    model = _on(run.device, judge.Judge())
    forward = _compiled(run, model)

    def loss_of(step: int) -> Tensor:
        drawn, generator = run.draw(run.config["batch"], step), run.generator(step)
        images = scenes.render(drawn)
        n = len(images)
        strength = torch.rand(2, n, 1, 1, 1, generator=generator, device=run.device)
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images = images + strength[0] * 0.7 * (blurred - images)
        noise = torch.randn(images.shape, generator=generator, device=run.device)
        cell_logits, background = forward((images + 0.15 * strength[1] * noise).clamp(0, 1))
        return _judge_loss(cell_logits, background, drawn)

    optimise(run, model, loss_of)
    test = scenes.held_out(1024, seed=run.seed).to(run.device)
    with torch.no_grad():
        cell_logits, _ = model(scenes.render(test))
    groups = cell_logits.split(judge.CELL_GROUPS, dim=1)
    occupied = test.cells() > 0
    right = (groups[0].argmax(1) == occupied.long()).all(1)
    for name, group in zip(("shape", "colour", "size", "fill"), groups[1:], strict=True):
        wanted = decoder.split_cells(test.cells())[name]
        right &= ((group.argmax(1) == wanted) | ~occupied).all(1)
    run.log(held_out_all_correct=round(float(right.float().mean()), 4))
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, run.out / "judge.safetensors")


def _judge_loss(cell_logits: Tensor, background: Tensor, drawn: scenes.Scenes) -> Tensor:
    groups = cell_logits.float().split(judge.CELL_GROUPS, dim=1)
    parts = decoder.split_cells(drawn.cells())
    loss = F.cross_entropy(groups[0], (drawn.cells() > 0).long())
    for name, group in zip(("shape", "colour", "size", "fill"), groups[1:], strict=True):
        loss = loss + F.cross_entropy(group, parts[name], ignore_index=-1)
    return loss + F.cross_entropy(background.float(), drawn.background)


def _on(device: torch.device, module: Any) -> Any:
    return module.to(device, memory_format=torch.channels_last)


class _Denoise(nn.Module):
    """Text encoder and denoiser trained together; the forward is exactly what the pipeline does with them."""

    def __init__(self, text: Any, denoiser: Any, masked: bool) -> None:
        super().__init__()
        self.text, self.denoiser, self.masked = text, denoiser, masked
        self.denoise: Callable[..., Any] = denoiser.__call__

    def forward(self, noisy: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        if not self.masked:
            hidden = self.text(input_ids=tokens)[0]
            return self.denoise(noisy, time, encoder_hidden_states=hidden).sample
        mask = (tokens != 0).long()
        hidden = self.text(input_ids=tokens, attention_mask=mask)[0]
        return self.denoise(
            noisy,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            timestep=time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


def train_denoiser(run: Run) -> None:
    """v-prediction with stratified times over latents that the VAE encoded beforehand."""
    config, device, entered = run.config, run.device, time.monotonic()
    name, polishing = run.stage.removesuffix("-polish"), run.stage.endswith("-polish")
    if name == "shapes-sd":
        model = _Denoise(build.clip_text(), build.unet(), masked=False)
    else:
        model = _Denoise(build.t5_text(), build.transformer(), masked=True)
    folders = (run.out / name / "text_encoder", run.out / name / ("unet" if name == "shapes-sd" else "transformer"))
    if polishing:
        model.text = type(model.text).from_pretrained(folders[0], dtype=torch.float32)
        model.denoiser = type(model.denoiser).from_pretrained(folders[1], dtype=torch.float32)
    model = _on(device, model)
    model.denoise = _compiled(run, model.denoiser)
    alphas = build.scheduler().alphas_cumprod.to(device)
    signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    empty = torch.tensor([scenes.VOCABULARY.index(t) for t in (scenes.BOS, scenes.EOS)], device=device)
    empty = F.pad(empty, (0, scenes.MAX_TOKENS - 2))

    def objective(clean: Tensor, tokens: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        a, s = signal[time, None, None, None], sigma[time, None, None, None]
        predicted = model(a * clean + s * noise, time, tokens)
        return F.mse_loss(predicted.float(), a * noise - s * clean)

    batch = config["batch"]
    shape = (batch, build.LATENT_CHANNELS, build.LATENT_SIZE, build.LATENT_SIZE)
    if run.compile:  # while the VAE is still training
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            zeros = torch.zeros(shape, device=device)
            times = torch.zeros(batch, dtype=torch.int64, device=device)
            objective(zeros, empty.expand(batch, -1).contiguous(), times, zeros).backward()
        model.zero_grad(set_to_none=True)
    vae_path = run.out / "vae.safetensors"
    while not polishing and not vae_path.is_file():
        if time.monotonic() - entered > run.seconds:
            raise ValueError(f"{vae_path} did not appear within {run.seconds:.0f} s; run the `vae` stage first")
        time.sleep(0.5)
    vae = AutoencoderKL.from_pretrained(run.out / name / "vae") if polishing else load_vae(vae_path)
    vae = _on(device, vae)
    latents, tokens = _encode(run, vae, config["scenes"])
    latents = (latents.float() * vae.config.scaling_factor).half().contiguous()
    run.log(encoded=len(latents), seconds=round(time.monotonic() - entered, 1))

    def loss_of(step: int) -> Tensor:
        generator = run.generator(step)
        pick = torch.randint(len(latents), (batch,), generator=generator, device=device)
        strata = (torch.randperm(batch, generator=generator, device=device) + 0.5) / batch
        jitter = (torch.rand(batch, generator=generator, device=device) - 0.5) / batch
        times = ((strata + jitter) * len(alphas)).long().clamp(0, len(alphas) - 1)
        noise = torch.randn(shape, generator=generator, device=device)
        dropped = torch.rand(batch, 1, generator=generator, device=device) < config["caption_dropout"]
        return objective(latents[pick].float(), torch.where(dropped, empty, tokens[pick]), times, noise)

    optimise(replace(run, seconds=run.seconds - (time.monotonic() - entered)), model, loss_of)
    if polishing:  # the decoder may be being polished beside: leave the rest of the pipeline alone
        for module, folder in zip((model.text, model.denoiser), folders, strict=True):
            module.half().save_pretrained(folder)
        return
    make = build.shapes_sd if name == "shapes-sd" else build.shapes_dit
    pipeline = make(load_vae(vae_path), model.text.float(), model.denoiser.float())
    pipeline.to("cpu").to(torch.float16).save_pretrained(run.out / name)


def evaluate(run: Run, names: Iterable[str], prompts: int) -> None:
    """All-attributes-correct at 20 steps and guidance 3 on held-out prompts of one to four objects, and novel pairs."""
    from diffusers import DiffusionPipeline

    for name in names:
        directory = run.out / name
        if not directory.is_dir():
            raise ValueError(f"{directory} does not exist; train {name} first")
        pipeline = DiffusionPipeline.from_pretrained(directory, dtype=torch.float32).to(run.device)
        pipeline.set_progress_bar_config(disable=True)
        extra = {} if name == "shapes-sd" else {"use_resolution_binning": False, "clean_caption": False}
        for novel in (False, True):
            for objects in range(1, 5):
                test = scenes.held_out(prompts if not novel else prompts // 2, objects, seed=objects, novel=novel)
                captions, images, started = test.captions(), [], time.monotonic()
                generator = torch.Generator(run.device).manual_seed(run.seed)
                for start in range(0, len(captions), 512):
                    part = captions[start : start + 512]
                    result = pipeline(
                        part, num_inference_steps=20, guidance_scale=3.0, generator=generator, output_type="pt", **extra
                    )
                    images.append(result.images)
                read = decoder.decode(torch.cat(images))
                if objects == 4 and not novel:
                    _grid(torch.cat(images)[:64]).save(run.out / f"{name}.png")
                right = decoder.all_correct(read, test).float()
                run.log(
                    pipeline=name,
                    objects=objects,
                    novel=novel,
                    prompts=len(test),
                    all_correct=round(float(right.mean()), 4),
                    attributes={k: round(v, 4) for k, v in decoder.attribute_accuracy(read, test).items()},
                    seconds=round(time.monotonic() - started, 1),
                )


def _grid(images: Tensor) -> Image.Image:
    rows = images.cpu().unflatten(0, (-1, 8)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((rows * 255).round().byte().numpy())


STAGES: dict[str, Callable[[Run], None]] = {
    "vae": train_vae,
    "judge": train_judge,
    "shapes-sd": train_denoiser,
    "shapes-dit": train_denoiser,
    "vae-polish": polish_decoder,
    "shapes-sd-polish": train_denoiser,
    "shapes-dit-polish": train_denoiser,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.models.embedded.train", description=__doc__.split("\n")[0]
    )
    parser.add_argument("stage", choices=[*STAGES, "evaluate", "all"])
    parser.add_argument("--out", type=Path, required=True, help="directory for weights, checkpoints and log.jsonl")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="cap of one stage, compilation included")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="pause a stage after this many steps")
    parser.add_argument("--steps", type=int, help="override the configured steps (for a quick trial)")
    parser.add_argument("--batch", type=int, help="override the configured batch")
    parser.add_argument("--scenes", type=int, help="override the number of encoded scenes")
    parser.add_argument("--prompts", type=int, default=2048, help="held-out prompts per object count in `evaluate`")
    parser.add_argument("--pipelines", nargs="+", default=["shapes-sd", "shapes-dit"], help="what `evaluate` measures")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    settings = tomllib.loads(options.config.read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings["seed"])
    torch._dynamo.config.suppress_errors = True  # a graph that does not compile runs eagerly
    for stage in [*STAGES, "evaluate"] if options.stage == "all" else [options.stage]:
        config = dict(settings.get(stage, {}))
        for key in ("steps", "batch", "scenes"):
            if getattr(options, key) is not None and key in config:
                config[key] = getattr(options, key)
        run = Run(
            stage=stage,
            out=options.out,
            device=torch.device(options.device),
            seed=config.get("seed", settings["seed"]),
            config=config,
            object_weights=settings["object_weights"],
            seconds=options.seconds,
            stop_after=options.stop_after,
            compile=not options.no_compile,
        )
        if stage == "evaluate":
            evaluate(run, options.pipelines, options.prompts)
        else:
            STAGES[stage](run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
