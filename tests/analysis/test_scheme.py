import subprocess
import sys

import pytest

from analysis.scheme import EDGES, SCHEMES, VARIANTS, Rule, Scheme, scheme
from fpsim.nn.quantizer import Quantizer

E4M3 = Quantizer(format="e4m3", granularity="channel")
PATHS = {
    "conv_in": "Conv2d",
    "time_embedding.linear_1": "Linear",
    "down_blocks.0.resnets.0.conv1": "Conv2d",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "Linear",
    "conv_out": "Conv2d",
}


def test_the_first_matching_rule_decides() -> None:
    first, second = Rule(pattern="conv_*"), Rule(weight=E4M3)
    made = Scheme(name="x", rules=(first, second))
    assert made.rule_for("conv_in", "Conv2d") is first
    assert made.rule_for("down_blocks.0.resnets.0.conv1", "Conv2d") is second
    assert Scheme(name="x", rules=(first,)).rule_for("other", "Linear") is None


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*", "a.b.c", True),
        ("*.attn1.*", "blocks.0.attn1.to_q", True),
        ("attn1", "blocks.0.attn1.to_q", False),
        ("CONV_IN", "conv_in", False),
        ("re:conv_(in|out)", "conv_out", True),
        ("re:conv_(in|out)", "conv_outer", False),
        ("re:.*conv", "x.conv1", False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert Rule(pattern=pattern).matches(path) is expected


def test_layer_kinds_filter() -> None:
    rule = Rule(weight=E4M3, kinds=("Linear",))
    assert rule.matches("x", "Linear")
    assert rule.matches("x")
    assert not rule.matches("x", "Conv2d")


def test_unused_rules_are_those_that_decide_nothing() -> None:
    typo, every, late = Rule(pattern="conv_inn"), Rule(weight=E4M3), Rule(pattern="conv_in")
    made = Scheme(name="x", rules=(typo, every, late))
    assert made.unused_rules(PATHS) == (typo, late)
    assert made.unused_rules(list(PATHS)) == (typo, late)
    convolutions = Scheme(name="x", rules=(Rule(pattern="conv_in", weight=E4M3, kinds=("Linear",)), every))
    assert convolutions.unused_rules(PATHS) == convolutions.rules[:1]
    assert convolutions.unused_rules(list(PATHS)) == ()


def test_equal_rules_are_refused_because_the_second_could_not_decide_anything() -> None:
    with pytest.raises(ValueError, match="repeats a rule"):
        Scheme(name="x", rules=(Rule(weight=E4M3), Rule(weight=E4M3)))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_presets_and_their_variants_survive_toml_and_json(name: str, variant: str) -> None:
    made = scheme(f"{name}+{variant}" if variant else name)
    assert Scheme.from_toml(made.to_toml()) == made
    assert Scheme.from_json(made.to_json()) == made


def test_a_scheme_with_everything_survives_toml_and_json() -> None:
    made = Scheme(
        name='a "quoted" name',
        arithmetic="exact",
        rest="f16",
        rules=(
            Rule(pattern=r"re:conv_(in|out)\.?"),
            Rule(
                weight=Quantizer(format="int4", granularity="block", group=32),
                activation=Quantizer(format="int8", granularity="token", range="dynamic"),
                spec="generic/int32",
                kinds=("Linear",),
            ),
        ),
    )
    assert Scheme.from_toml(made.to_toml()) == made
    assert Scheme.from_json(made.to_json()) == made


def test_presets_say_what_they_share_scales_over() -> None:
    assert SCHEMES["fp8-w8a8"].summary == (
        "all layers: weights e4m3 per output channel; activations e4m3 per tensor, static"
    )
    assert scheme("int8-w8a8+dynamic").summary.endswith("activations int8 per token, dynamic")
    assert SCHEMES["nvfp4"].summary.endswith(
        "weights nvfp4 per block of 16; activations nvfp4 per block of 16, dynamic"
    )
    assert "per tensor; activations" in scheme("fp4-w4a8+per-tensor").summary
    assert SCHEMES["w4a16"].summary.endswith("activations in full precision")
    assert SCHEMES["fp32"].summary == "all layers in full precision"


def test_keep_edges_spares_the_ends_and_the_conditioning_of_every_architecture() -> None:
    made = scheme("fp4-w4a8+keep-edges")
    kept = [
        "conv_in",
        "conv_out",
        "time_embedding.linear_2",
        "down_blocks.1.resnets.0.time_emb_proj",
        "adaln_single.linear",
        "adaln_single.emb.timestep_embedder.linear_1",
        "pos_embed.proj",
        "proj_out",
        "caption_projection.linear_1",
        "transformer_blocks.3.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
        "x_embedder",
    ]
    quantized = [
        "down_blocks.0.attentions.0.proj_out",
        "mid_block.resnets.0.conv_shortcut",
        "transformer_blocks.0.ff.net.2",
        "single_transformer_blocks.0.proj_out",
    ]
    assert [path for path in kept if made.rule_for(path) is not made.rules[0]] == []
    assert [path for path in quantized if made.rule_for(path) is made.rules[0]] == []
    assert made.rules[0].pattern == EDGES


def test_precision_of_operations() -> None:
    hwmodels = pytest.importorskip("hwmodels.ops")
    gemm = hwmodels.Gemm(path="blocks.0.attn1.to_q", m=4, n=4, k=4)
    found = SCHEMES["int4-w4a8"].precision_for(gemm)
    assert (found.weight, found.activation, found.accumulator, found.output) == ("int4", "int8", "int32", "bf16")
    assert not found.dynamic
    found = scheme("fp8-w8a8+dynamic").precision_for(gemm)
    assert (found.dynamic, found.granularity, found.accumulator) == (True, "token", "f32")
    found = scheme("fp4-w4a8+g32").precision_for(gemm)
    assert (found.weight, found.weight_group) == ("e2m1", 32)
    assert SCHEMES["fp16"].precision_for(gemm).output == "f16"
    assert SCHEMES["w4a16"].precision_for(gemm).activation == "bf16"
    # Layers that a rule keeps, and operations that are no layer, run in `rest`.
    kept = hwmodels.Gemm(path="proj_out", m=4, n=4, k=4)
    assert scheme("nvfp4+keep-edges").precision_for(kept).weight == "bf16"
    attention = hwmodels.Attention(path="blocks.0.attn1", batch=1, heads=1, queries=4, keys=4, head_dim=4)
    assert SCHEMES["nvfp4"].precision_for(attention).weight == "bf16"
    assert SCHEMES["fp32"].precision_for(gemm).weight == "f32"


def test_exact_names_the_engine_in_every_quantizing_rule() -> None:
    made = scheme("fp8-w8a8+keep-edges").exact("hopper/wgmma")
    assert made.arithmetic == "exact"
    assert [rule.spec for rule in made.rules] == [None, "hopper/wgmma"]
    assert made.name == "fp8-w8a8+keep-edges@hopper/wgmma"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scheme("fp8-w8a9"), r"unknown scheme 'fp8-w8a9'; did you mean 'fp8-w8a8'\?"),
        (lambda: scheme("nvfp4+keep-edge"), r"unknown scheme variant 'keep-edge'; did you mean 'keep-edges'\?"),
        (lambda: Rule(pattern=""), "needs a pattern"),
        (lambda: Rule(pattern="re:(conv"), "not a regular expression"),
        (lambda: Rule(kinds=("Conv3d",)), "unknown layer kind 'Conv3d'; did you mean 'Conv2d'"),
        (lambda: Rule(kinds=()), "no layer kind"),
        (lambda: Rule(activation=Quantizer(format="e4m3")), "add a weight quantizer"),
        (lambda: Rule(weight=Quantizer(format="e4m3", range="dynamic")), "range must be 'static'"),
        (lambda: Scheme(name="x", rules=()), "has no rules"),
        (lambda: Scheme(name="x", rules=(Rule(),), arithmetic="exactly"), "did you mean 'exact'"),
        (lambda: Scheme(name="x", rules=(Rule(),), rest="b16"), "unknown format 'b16'"),
        (lambda: Scheme(name="x", rules=(Rule(weight=E4M3),), arithmetic="exact"), r"has no spec"),
        (lambda: scheme("w4a16").exact("hopper/wgmma"), "has no activation quantizer"),
        (lambda: Scheme.from_toml("name = 'x'\nrulez = []"), "unknown key of scheme 'x' 'rulez'; did you mean 'rules'"),
        (lambda: Scheme.from_toml("name = 'x'\nrules = [1]"), "list of tables"),
        (lambda: Scheme.from_toml("name = 'x'\n[[rules]]\nwieght = {}"), "did you mean 'weight'"),
        (lambda: Scheme.from_toml("name = 'x'\n[[rules]]\nweight = 'e4m3'"), "must be a table"),
        (lambda: Scheme.from_toml("name = "), "Invalid value"),
        (lambda: Scheme.from_toml("[[rules]]\n"), "has no name"),
        (lambda: Scheme.from_toml("name = 'x'\n[[rules]]\nweight = {}"), "weight quantizer has no format"),
        (lambda: Scheme.from_json("{"), "Expecting"),
    ],
)
def test_mistakes_are_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "e4m4"}, "unknown format 'e4m4'; did you mean"),
        ({"format": "e4m3", "granularity": "row"}, "unknown granularity 'row'"),
        ({"format": "e4m3", "range": "fixed"}, "unknown range 'fixed'"),
        ({"format": "mxfp4"}, "granularity must be 'block'"),
        ({"format": "mxfp4", "granularity": "block", "group": 16}, "blocks of its own"),
        ({"format": "int8", "granularity": "block"}, "needs group >= 1"),
        ({"format": "int8", "granularity": "block", "group": "32"}, "needs group >= 1"),
        ({"format": "int8", "group": 32}, "belongs to granularity 'block'"),
        ({"format": "bf16", "granularity": "block", "group": 32}, "plain cast"),
        ({"format": "e8m0"}, "no zero"),
        ({"format": "e2m1", "one_sided": "e3m0-finite"}, "must be an unsigned scalar format"),
        ({"format": "ue2m2", "one_sided": "ue2m2"}, "must be an unsigned scalar format"),
        ({"format": "mxfp4", "granularity": "block", "one_sided": "ue2m2"}, "must be an unsigned scalar format"),
        ({"format": "nf4"}, "codebook"),
        ({"format": "e4m3", "steps": 0}, "at least 1"),
        ({"format": "e4m3", "range": "dynamic", "steps": 10}, "belongs to static ranges"),
    ],
)
def test_quantizers_without_a_meaning_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(**options)  # type: ignore[arg-type]


def test_schemes_are_read_without_torch_or_numba() -> None:
    code = "import sys, analysis.scheme, analysis.methods; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
