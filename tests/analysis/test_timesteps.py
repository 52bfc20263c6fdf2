"""Layers that depend on the timestep alone: which ones, and that a table of their outputs changes no bit."""

from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel

from analysis.models import embedded
from analysis.runner import quantize, report_of, restore, sample, save
from analysis.runner.timesteps import tabled, time_only, without
from analysis.scenes import held_out
from analysis.trace import trace
from fpsim.nn.clock import Now
from fpsim.nn.tabled import TabledLinear

CAPTIONS, SEEDS = ["a", "b"], [1, 2]


def tables_of(model: torch.nn.Module) -> dict[str, TabledLinear]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, TabledLinear)}


def found(model: torch.nn.Module, **kwargs: Any) -> set[str]:
    return set(time_only(model.eval(), (), kwargs))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_all_of_the_time_embedding_in_stable_diffusion() -> None:
    made = tabled(tiny_pipelines.unet_pipeline(), steps=2)
    linears = {path for path, layer in made.unet.named_modules() if isinstance(layer, torch.nn.Linear)}
    wanted = {path for path in linears if path.startswith("time_embedding.") or path.endswith(".time_emb_proj")}
    assert len(wanted) > 5
    assert set(tables_of(made.unet)) == wanted


def test_sdxl_adds_text_and_sizes_to_its_embedding() -> None:
    paths = found(tiny_pipelines.sdxl_pipeline().unet, **tiny_pipelines.denoiser_inputs("sdxl"))
    assert paths == {"time_embedding.linear_1", "time_embedding.linear_2"}


@pytest.mark.parametrize("conditions", [False, True])
def test_pixart_shares_its_modulation(conditions: bool) -> None:
    model = tiny_pipelines.dit_pipeline().transformer
    added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if conditions:
        thirds = {"attention_head_dim": 24, "cross_attention_dim": 48}  # for the timestep, for each size
        model = PixArtTransformer2DModel.from_config(model.config, use_additional_conditions=True, **thirds)
        added = {"resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.full((2, 1), 1.0)}
    paths = found(
        model,
        hidden_states=noise(2, 4, 8, 8),
        encoder_hidden_states=noise(2, 5, 32),
        timestep=torch.tensor([300, 300]),
        added_cond_kwargs=added,
    )
    embedder = {f"adaln_single.emb.timestep_embedder.linear_{i}" for i in (1, 2)}
    # With sizes in the sum, what is projected from it depends on them too.
    assert paths == (embedder if conditions else embedder | {"adaln_single.linear"})


def test_models_that_mix_text_labels_or_guidance_into_the_embedding() -> None:
    embedder = {f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)}
    assert found(tiny_pipelines.sd3_pipeline().transformer, **tiny_pipelines.denoiser_inputs("sd3")) == embedder
    flux = FluxTransformer2DModel.from_config(tiny_pipelines.flux_pipeline().transformer.config, guidance_embeds=True)
    given = tiny_pipelines.denoiser_inputs("flux")
    assert found(flux, **given, guidance=torch.tensor([3.5, 3.5])) == embedder
    dit = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=9
    )
    assert found(
        dit, hidden_states=noise(2, 4, 8, 8), timestep=torch.tensor([3, 3]), class_labels=torch.tensor([4, 1])
    ) == {f"transformer_blocks.1.norm1.emb.timestep_embedder.linear_{i}" for i in (1, 2)}  # the first is called twice


@pytest.mark.parametrize("make", [tiny_pipelines.unet_pipeline, tiny_pipelines.dit_pipeline])
def test_no_bit_of_an_image_changes_at_any_number_of_steps(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make()
    made = tabled(pipe, steps=3)
    computed: list[int] = []
    plain = torch.nn.Linear.forward

    def count(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        computed.append(isinstance(self, TabledLinear))
        return plain(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    for steps in (3, 5):
        computed.clear()
        ours = sample(made, CAPTIONS[:1], SEEDS[:1], steps=steps)
        used_weights = sum(computed)
        wanted = sample(pipe, CAPTIONS[:1], SEEDS[:1], steps=steps)
        assert torch.equal(ours, wanted)
        assert (used_weights == 0) == (steps == 3)  # timesteps that are not in the table are computed


def test_another_number_of_rows_gets_the_first() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    made = tabled(pipe, steps=2, batch_size=2)
    assert torch.equal(sample(made, CAPTIONS, SEEDS, steps=2), sample(pipe, CAPTIONS, SEEDS, steps=2))
    # Sums of a few hundred products may be made in another order: 2^-24 of values of order 1, some hundred times.
    ours = sample(made, CAPTIONS[:1], SEEDS[:1], steps=2)
    assert torch.allclose(ours, sample(pipe, CAPTIONS[:1], SEEDS[:1], steps=2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-dit"])
def test_no_bit_of_an_embedded_pipelines_image_changes(name: str) -> None:
    pipe = embedded.load(name)
    caption = held_out(1).captions()
    made = tabled(pipe, steps=2)
    assert len(tables_of(made.components.get("unet") or made.transformer)) >= 3
    assert torch.equal(sample(made, caption, [5], steps=2), sample(pipe, caption, [5], steps=2))


def test_quantizing_leaves_tables_in_full_precision_and_a_checkpoint_holds_the_weights(tmp_path: Any) -> None:
    pipe = tiny_pipelines.unet_pipeline()
    made = quantize(pipe, "fp4-w4a8+dynamic", tables=3)
    report, tables = report_of(made), tables_of(made.unet)
    assert {path for path, why in report.skipped.items() if "3 timesteps" in why} == set(tables)
    assert not {layer.path for layer in report.layers} & set(tables)
    images = sample(made, CAPTIONS[:1], SEEDS[:1], steps=3)
    assert all(layer.now.timestep in layer.places for layer in tables.values())  # they were told the time, and knew it
    save(made, tmp_path / "unet")
    loaded = restore(pipe, tmp_path / "unet")
    assert not tables_of(loaded.unet)
    assert torch.equal(sample(loaded, CAPTIONS[:1], SEEDS[:1], steps=3), images)
    again = tabled(loaded, steps=3)
    assert set(tables_of(again.unet)) == set(tables)
    assert torch.equal(sample(again, CAPTIONS[:1], SEEDS[:1], steps=3), images)


def test_rows_at_several_timesteps_and_other_dtypes_are_computed() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    unet = tabled(pipe, steps=2).unet
    (timestep, *_) = next(iter(tables_of(unet).values())).places
    given = {"sample": noise(2, 4, 8, 8), "encoder_hidden_states": noise(2, 24, 32)}
    mixed = torch.tensor([timestep, 7])
    with torch.no_grad():
        assert torch.equal(unet(timestep=mixed, **given).sample, pipe.unet(timestep=mixed, **given).sample)
        half = unet.to(torch.bfloat16)
        assert all(not layer.places for layer in tables_of(half).values())
        x = noise(2, tables_of(half)["time_embedding.linear_1"].in_features).bfloat16()
        assert half.time_embedding.linear_1(x).dtype == torch.bfloat16


def test_their_operations_leave_the_workload() -> None:
    pipe = tiny_pipelines.unet_pipeline()
    paths = set(tables_of(tabled(pipe, steps=1).unet))
    inputs = {"sample": noise(2, 4, 8, 8), "timestep": 1, "encoder_hidden_states": noise(2, 24, 32)}
    whole = trace(pipe.unet, inputs=inputs)
    rest = without(whole, paths)
    gone = [op for op in whole.ops if op not in rest.ops]
    assert {op.path for op in gone} == paths
    assert len(rest) == len(whole) - len(gone)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no timesteps"):
        TabledLinear.from_float(torch.nn.Linear(2, 2), {}, Now())
