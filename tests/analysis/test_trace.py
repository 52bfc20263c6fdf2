"""The tracer: full-size totals against published ones, small modules against torch's own counter."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analysis.models import Input
from analysis.trace import trace
from hwmodels import Attention, Conv2d, Elementwise, Gemm, Move, Norm, Reduction, Workload
from hwmodels.ops import ConvNd, Softmax

# GMAC of one call at batch 1, M parameters: published-configuration traces by another tool (attention included).
TOTALS = {
    "sd15": (401.6, 859.52),
    "dit-xl-2-256": (118.67, 749.8),
    "pixart-sigma": (3316.8, 610.9),
    "sdxl-base": (3380.6, 2567.46),
    "sd3-medium": (4452.2, 2028.3),
    "sd35-large": (15560.6, 8056.6),
    "flux1-dev": (37192, 11901.4),
    "cogvideox-2b": (59999, 1693.8),
    "wan21-1.3b": (141501, 1419.0),
    "wan21-14b": (839185, 14288.5),
    "hunyuanvideo": (6034296, 12821),
}
QUICK = ("sd15", "dit-xl-2-256", "pixart-sigma", "sdxl-base", "flux1-dev")
SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TOTALS]


@pytest.mark.parametrize("name", SLOW)
def test_totals_of_the_denoisers(name):
    work = trace(name)
    macs, parameters = TOTALS[name]
    assert work.macs / 1e9 == pytest.approx(macs, rel=0.01)
    assert work.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert work.notes == ()


def test_sd15_layer_by_layer():
    work = trace("sd15")
    totals = work.totals()
    assert (totals["gemm"].operations, totals["conv2d"].operations, totals["attention"].operations) == (184, 98, 32)
    parts = [round(totals[kind].macs / 1e9, 1) for kind in ("gemm", "conv2d", "attention")]
    assert parts == [116.6, 222.0, 63.0]
    first = next(op for op in work if op.kind == "conv2d")
    assert (first.path, first.describe()) == ("conv_in", "1 x 4 x 64x64 -> 320, 3x3")
    attention = next(op for op in work if op.kind == "attention" and op.keys == 77)
    assert attention.path == "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert (attention.heads, attention.queries, attention.head_dim) == (8, 4096, 40)
    quantizable = {op.path for op in work if op.kind == "gemm"}
    assert "mid_block.attentions.0.transformer_blocks.0.ff.net.2" in quantizable
    assert (
        sum(op.function == "cat" for op in work if isinstance(op, Move)) == 14
    )  # 12 skips; sin beside cos, and swapped
    assert 2 * work.live_elements > 64 * 64 * 320 * 2 * 12  # the skip connections are alive at once


@pytest.mark.parametrize(("name", "gmac"), [("sd15", 1257.3), ("sdxl-base", 5235.2)])
def test_vae_decoders(name, gmac):
    work = trace(name, part="vae-decode")
    assert work.macs / 1e9 == pytest.approx(gmac, rel=0.01)
    assert work.parameters == pytest.approx(49.49e6, rel=0.01)
    assert work.name == f"{name}:vae-decode"


def test_text_encoders_are_traced_in_turn():
    work = trace("sdxl-base", part="text-encoder")
    assert work.parameters / 1e6 == pytest.approx(123.06 + 694.66, rel=0.01)
    assert {op.path.partition(".")[0] for op in work} >= {"CLIPTextModel0", "CLIPTextModelWithProjection1"}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae-decode", "text-encoder"])
@pytest.mark.parametrize("name", list(TOTALS))
def test_every_part_traces_without_unknown_operations(name, part):
    from analysis.models import model

    if part in model(name).parts:
        assert not [note for note in trace(name, part=part).notes if "no known kind" in note]


def test_batch_and_size_scale_as_they_should():
    one, two = trace("dit-xl-2-256"), trace("dit-xl-2-256", batch=2)
    assert two.macs == 2 * one.macs
    assert two.parameters == one.parameters
    large = trace("dit-xl-2-256", height=512, width=512)
    assert large.totals()["attention"].macs == 16 * one.totals()["attention"].macs
    assert large.macs / 1e9 == pytest.approx(524.58, rel=0.01)


class Small(torch.nn.Module):
    """Every family of operation once."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.strip = torch.nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=4)
        self.transposed = torch.nn.Conv1d(8, 8, 3)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.q = torch.nn.Linear(8, 16)
        self.out = torch.nn.Linear(16, 8, bias=False)
        self.table = torch.nn.Embedding(10, 8)

    def forward(self, image, ids):
        x = torch.nn.functional.silu(self.norm(self.strip(self.conv(image))))
        x = x.flatten(2).transpose(1, 2) + self.table(ids)[:, None]
        q = self.q(x).unflatten(-1, (2, 8)).transpose(1, 2)
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        weights = torch.softmax(x @ x.transpose(1, 2), dim=-1)
        y = self.out(y) + torch.bmm(weights, x)
        z = self.transposed(y.transpose(1, 2))
        return torch.cat([z, z], dim=1).float().mean()


def _small():
    torch.manual_seed(0)
    module = Small()
    return module, {"image": torch.randn(2, 3, 8, 6), "ids": torch.tensor([1, 2])}


@pytest.mark.parametrize("meta", [False, True])
def test_a_small_module_counts_what_torchs_flop_counter_counts(meta):
    module, inputs = _small()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(**inputs)
    if meta:
        module = module.to("meta")
        inputs = {key: value.to("meta") for key, value in inputs.items()}
    work = trace(module, inputs=inputs)
    assert 2 * work.macs == counter.get_total_flops()
    assert work.parameters == sum(p.numel() for p in module.parameters())
    assert work.notes == ()
    assert [type(op) for op in work if op.macs or op.kind in ("norm", "softmax")] == [
        Conv2d, Conv2d, Norm, Gemm, Attention, Gemm, Softmax, Gemm, Gemm, ConvNd,
    ]  # fmt: skip
    assert [op.path for op in work if isinstance(op, Gemm) and op.parameter] == ["q", "out"]
    strip = work.ops[1]
    assert (strip.kernels, strip.groups, strip.outputs) == ((1, 3), 4, (4, 3))
    reduction = next(op for op in work if isinstance(op, Reduction))
    assert (reduction.elements, reduction.outputs) == (2 * 16 * 10, 1)


def test_values_are_not_touched_and_hooks_are_removed():
    module, inputs = _small()
    module.train()
    wanted = module(**inputs)
    trace(module, inputs=inputs)
    assert module.training
    assert torch.equal(module(**inputs), wanted)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_types_other_than_the_models_own_are_recorded():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            return (self.linear(x).float() * 2).to(x.dtype)

    work = trace(Mixed().to(torch.bfloat16), inputs={"x": Input(shape=(2, 4))})
    up, times, down = (op for op in work if isinstance(op, Elementwise))
    assert (up.function, up.dtype, up.out_dtype) == ("cast", "bf16", "f32")
    assert (times.function, times.dtype, times.out_dtype) == ("mul", "f32", "f32")
    assert (down.function, down.dtype, down.out_dtype) == ("cast", "f32", "bf16")


def test_live_memory_is_the_peak_of_what_is_alive():
    class Chain(torch.nn.Module):
        def forward(self, x):
            a = x + 1  # x, a
            b = a * 2  # x, a, b
            del a
            view = b.view(-1)  # free
            c = torch.cat([view, view])  # x, b, c (2 parts)
            del b, view
            return c.sum()

    work = trace(Chain(), inputs={"x": torch.zeros(100)})
    assert work.live_elements == 400
    assert [op.kind for op in work] == ["elementwise", "elementwise", "move", "reduction"]


def test_an_unknown_operation_is_named_with_its_share():
    class Spectral(torch.nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    (note,) = trace(Spectral(), inputs={"x": torch.zeros(8, 8)}).notes
    assert note.startswith("WARNING: operation '_fft_r2c' is of no known kind")


def test_attention_by_hand_and_transposed_operands():
    class Hand(torch.nn.Module):
        def forward(self, q, k):
            return torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)

    inputs = {"q": torch.zeros(2, 3, 5, 4), "k": torch.zeros(2, 3, 7, 4)}
    work = trace(Hand(), inputs=inputs)
    assert work.macs == 2 * 3 * 5 * 7 * 4
    assert next(op for op in work if isinstance(op, Softmax)).columns == 7


def test_a_diffusers_module_needs_no_inputs():
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "layers_per_block": 1,
    }
    unet = UNet2DConditionModel(**config)
    work = trace(unet, batch=3, tokens=5)
    attention = [op for op in work if isinstance(op, Attention)]
    assert {op.keys for op in attention if op.keys != op.queries} == {5}
    assert {op.batch for op in attention} == {3}
    inputs = {
        "sample": torch.randn(3, 4, 8, 8),
        "timestep": torch.ones(3, dtype=torch.int64),
        "encoder_hidden_states": torch.randn(3, 5, 32),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet(**inputs)
    assert 2 * work.macs == counter.get_total_flops()


def test_a_pipeline_directory_is_traced_from_its_configurations(tmp_path):
    from analysis.models import model

    dit = model("dit-xl-2-256")
    index = {"_class_name": "DiTPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    for name, part in (("transformer", dit.part()[0]), ("vae", dit.part("vae-decode")[0])):
        index[name] = ["diffusers", part.class_name]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": part.class_name, **part.config}))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert trace(tmp_path).macs == trace("dit-xl-2-256").macs
    assert trace(str(tmp_path), part="vae-decode").macs == trace("dit-xl-2-256", part="vae-decode").macs
    with pytest.raises(ValueError, match="has no part 'text-encoder'; allowed: denoiser, vae-decode"):
        trace(tmp_path, part="text-encoder")
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        trace(tmp_path)


def test_a_trace_survives_json():
    work = trace("dit-xl-2-256")
    assert Workload.from_json(work.to_json()) == work


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace("sdxl-bass"), "unknown model 'sdxl-bass'; did you mean 'sdxl-base'"),
        (lambda: trace("sd15", part="vae"), "no part 'vae'; allowed: denoiser, vae-decode, text-encoder"),
        (lambda: trace("sd15", height=511), "height=511; allowed: multiples of 8"),
        (lambda: trace("sd15", batch=0), "batch=0; allowed"),
        (lambda: trace("cogvideox-2b", frames=50), r"frames=50; allowed: 1 \+ a multiple of 4"),
        (lambda: trace("dit-xl-2-256", height=512), "height=512, width=256; allowed: squares"),
        (lambda: trace("flux1-dev", height=1016), "multiples of 16"),
        (lambda: trace("no/such/pipeline"), r"model_index\.json not found"),
        (lambda: trace(3), "cannot trace int"),
        (lambda: trace(torch.nn.Linear(2, 2)), "no inputs known for Linear; pass inputs="),
        (lambda: trace(torch.nn.Linear(2, 2), inputs={"y": torch.zeros(2)}), "takes no 'y'; allowed: input"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-dit", "shapes-sd-outlier"])
def test_embedded_pipelines_are_traced_from_their_configurations(name):
    from analysis.models import embedded

    work = trace(name, batch=2)
    assert work.name == name
    assert work.notes == ()
    pipe = embedded.load(name)
    denoiser = pipe.components.get("unet") or pipe.components["transformer"]
    assert work.parameters == sum(p.numel() for p in denoiser.parameters())
    assert trace(pipe, batch=2).ops == work.ops
    decoder = trace(name, part="vae-decode")
    assert decoder.ops[-1].outputs == (64, 64)
    assert trace(name, part="text-encoder").macs > 0


@pytest.mark.slow
def test_each_model_traces_in_five_seconds_and_the_zoo_prices_in_ten():
    import time

    import hwmodels
    from analysis.models import model

    works = []
    for name in TOTALS:
        model(name).part()[0].build()  # imports are not the tracer's time
        start = time.process_time()
        works.append(trace(name))
        assert time.process_time() - start < 5, name
    start = time.process_time()
    for work in works:
        for device in hwmodels.DEVICES:
            for precision in hwmodels.SHORTHANDS:
                try:
                    result = hwmodels.estimate(work, precision, device, model="auto")
                except hwmodels.UnsupportedFormat:
                    continue
                assert result.time_s > 0
    assert time.process_time() - start < 10
