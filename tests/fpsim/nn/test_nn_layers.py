"""Quantized layers against numpy: `fpsim.quantize` plus a float64 product, and `fpsim.matmul` of the codes."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer
from fpsim.nn.exact import holds, recode
from fpsim.nn.layer import QuantizedLayer

WGMMA = fpsim.engine("hopper/wgmma", "e4m3", "e4m3", "f32")
INT8 = fpsim.engine("generic/int32", "int8", "int8")


def linear(inputs: int = 70, outputs: int = 24) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs)


def conv(**options: int) -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(20, 12, **({"kernel_size": 3, "padding": 1} | options))


def tokens(*shape: int) -> torch.Tensor:
    """Rows of very different size, so that a wrong grouping of scales shows."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator) * torch.exp(torch.randn(*shape[:-1], 1, generator=generator))


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 20, 9, 7, generator=generator) * torch.exp(torch.randn(2, 1, 9, 7, generator=generator))


def numpy_quantize(x: np.ndarray, quantizer: Quantizer, axis: int, dims: tuple[int, ...] | None) -> np.ndarray:
    """`x` on its scaled grid by the numpy codec: one scale over `dims` (None: casts and block formats)."""
    if dims is None:
        return fpsim.quantize(x, quantizer.format, axis)
    scale = np.max(np.abs(x), axis=dims, keepdims=True) / np.float32(quantizer.row.max)
    return fpsim.quantize(x / scale, quantizer.format) * scale


def assert_close_sums(made: torch.Tensor, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> None:
    """float32 sums of K products in any order lie within (K + 2) * 2^-24 * sum |x w| of the exact value (first order of
    the standard bound, Higham 2002, section 3.1; the + 2 are the product and the bias)."""
    exact = x.astype(np.float64) @ w.T.astype(np.float64) + bias
    bound = (x.shape[-1] + 2) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(w).T + np.abs(bias))
    assert np.all(np.abs(made.detach().numpy() - exact) <= bound)


WEIGHTS = {
    "channel": (Quantizer(format="e4m3", granularity="channel"), (1,)),
    "tensor": (Quantizer(format="int8"), (0, 1)),
    "fp4": (Quantizer(format="e2m1", granularity="channel"), (1,)),
    "cast": (Quantizer(format="bf16"), None),
    "mxfp4": (Quantizer(format="mxfp4", granularity="block"), None),
    "nvfp4": (Quantizer(format="nvfp4", granularity="block"), None),
}
ACTIVATIONS = {
    "static": (Quantizer(format="e4m3"), (0, 1, 2)),
    "token": (Quantizer(format="int8", granularity="token", range="dynamic"), (2,)),
    "sample": (Quantizer(format="int8", range="dynamic"), (1, 2)),
    "cast": (Quantizer(format="f16"), None),
    "mxfp8": (Quantizer(format="mxfp8", granularity="block", range="dynamic"), None),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_in_quantize_arithmetic_is_the_product_of_two_quantized_operands(weight: str, activation: str) -> None:
    source, x = linear(), tokens(3, 5, 70)
    w_quantizer, w_dims = WEIGHTS[weight]
    a_quantizer, a_dims = ACTIVATIONS[activation]
    layer = QuantizedLinear.from_float(
        source, weight=w_quantizer, activation=a_quantizer, input_range=float(x.abs().max())
    )
    w = numpy_quantize(source.weight.detach().numpy(), w_quantizer, 1, w_dims)
    assert np.array_equal(layer.weight.numpy().view(np.uint32) << 1, w.view(np.uint32) << 1)  # the sign of zero aside
    a = numpy_quantize(x.numpy(), a_quantizer, -1, a_dims)
    assert_close_sums(layer(x), a, w, source.bias.detach().numpy())


def test_nvfp4_activations_have_one_tensor_scale_per_sample() -> None:
    source, x = linear(), tokens(3, 5, 70)
    quantizer = Quantizer(format="nvfp4", granularity="block", range="dynamic")
    layer = QuantizedLinear.from_float(source, weight=Quantizer(format="bf16"), activation=quantizer)
    a = np.stack([fpsim.quantize(sample, "nvfp4") for sample in x.numpy()])
    assert_close_sums(layer(x), a, layer.weight.numpy(), source.bias.detach().numpy())
    # The same 70 products per output, perhaps summed in another order for another number of rows: 70 * 2^-24 = 4e-6.
    assert torch.allclose(layer(x)[:1], layer(x[:1]), rtol=1e-5), "a sample depends on its neighbours"


def test_groups_of_a_scalar_format_have_float_scales_along_the_inputs() -> None:
    source = linear(70)
    layer = QuantizedLinear.from_float(source, weight=Quantizer(format="int4", granularity="block", group=32))
    w = source.weight.detach().numpy()
    parts = [numpy_quantize(w[:, i : i + 32], Quantizer(format="int4"), 1, (1,)) for i in (0, 32, 64)]
    assert np.array_equal(layer.weight.numpy(), np.concatenate(parts, 1) + 0.0)


@pytest.mark.parametrize("granularity", ["static", "token", "sample"])
def test_conv_in_quantize_arithmetic(granularity: str) -> None:
    source, x = conv(stride=2), images()
    quantizer, _ = ACTIVATIONS[granularity]
    dims = {"static": (0, 1, 2, 3), "token": (1,), "sample": (1, 2, 3)}[granularity]
    layer = QuantizedConv2d.from_float(
        source,
        weight=Quantizer(format="e2m1", granularity="channel"),
        activation=quantizer,
        input_range=float(x.abs().max()),
    )
    w = numpy_quantize(source.weight.detach().numpy(), Quantizer(format="e2m1"), 1, (1, 2, 3))
    a = numpy_quantize(x.numpy(), quantizer, 1, dims)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(a).double(), torch.from_numpy(w).double(), source.bias.double(), stride=2, padding=1
    )
    # As in assert_close_sums, K = 180 products; sum |x w| is bounded by the same convolution of magnitudes.
    size = torch.nn.functional.conv2d(torch.from_numpy(a).abs(), torch.from_numpy(w).abs(), stride=2, padding=1)
    assert torch.all((layer(x) - wanted).abs() <= 182 * 2.0**-24 * (size + 1))


def test_exact_linear_is_matmul_of_codes_times_scales_plus_bias() -> None:
    source, x = linear(), tokens(3, 5, 70)
    layer = QuantizedLinear.from_float(
        source,
        weight=Quantizer(format="e4m3", granularity="channel"),
        activation=Quantizer(format="e4m3"),
        input_range=float(x.abs().max()),
        spec=WGMMA,
    )
    w = source.weight.detach().numpy()
    w_scale = np.abs(w).max(1, keepdims=True) / np.float32(448)
    x_scale = np.abs(x.numpy()).max() / np.float32(448)
    codes = fpsim.matmul(
        fpsim.encode(x.numpy().reshape(15, 70) / x_scale, "e4m3"), fpsim.encode(w / w_scale, "e4m3").T, WGMMA
    )
    wanted = codes * (x_scale * w_scale.T) + source.bias.detach().numpy()
    assert np.array_equal(layer(x).detach().numpy().reshape(15, 24), wanted)


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_exact_linear_with_dynamic_int8_differs_from_float_only_by_rounding(granularity: str) -> None:
    source, x = linear(), tokens(3, 5, 70)
    options = {"weight": Quantizer(format="int8", granularity="channel"), "activation": ACTIVATIONS[granularity][0]}
    fast, exact = (QuantizedLinear.from_float(source, **options, spec=spec) for spec in (None, INT8))
    # Integer products are exact; what differs is the float32 sum of 70 products in `fast`.
    size = x.abs() @ source.weight.abs().T + 1
    assert torch.all((fast(x) - exact(x)).abs() <= 80 * 2.0**-24 * size)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"kernel_size": 1, "padding": 0}])
@pytest.mark.parametrize("granularity", ["static", "token", "sample"])
def test_exact_conv_agrees_with_float_where_integers_are_exact(options: dict[str, int], granularity: str) -> None:
    source, x = conv(**options), images()
    activation = {"static": Quantizer(format="int8")}.get(granularity, ACTIVATIONS[granularity][0])
    given = {
        "weight": Quantizer(format="int8", granularity="channel"),
        "activation": activation,
        "input_range": float(x.abs().max()),
    }
    fast, exact = (QuantizedConv2d.from_float(source, **given, spec=spec) for spec in (None, INT8))
    assert fast(x).shape == exact(x).shape
    size = torch.nn.functional.conv2d(
        x.abs(), source.weight.abs(), None, source.stride, source.padding, source.dilation
    )
    # 180 products in float32, two scale products per tap: 2^-24 each, relative to the sum of magnitudes.
    assert torch.all((fast(x) - exact(x)).abs() <= 220 * 2.0**-24 * (size + 1))


def test_exact_conv_runs_k_over_taps_then_channels() -> None:
    source, x = conv(), images()[:1]
    layer = QuantizedConv2d.from_float(
        source,
        weight=Quantizer(format="e4m3"),
        activation=Quantizer(format="e4m3"),
        input_range=float(x.abs().max()),
        spec=WGMMA,
    )
    w = source.weight.detach().numpy()
    w_scale, x_scale = np.abs(w).max() / np.float32(448), np.abs(x.numpy()).max() / np.float32(448)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], (3, 3), axis=(1, 2))  # (C, H, W, 3, 3)
    rows = windows.transpose(1, 2, 3, 4, 0).reshape(63, 180)
    columns = w.transpose(2, 3, 1, 0).reshape(180, 12)
    codes = fpsim.matmul(fpsim.encode(rows / x_scale, "e4m3"), fpsim.encode(columns / w_scale, "e4m3"), WGMMA)
    wanted = codes * (x_scale * w_scale) + source.bias.detach().numpy()
    made = layer(x)[0].permute(1, 2, 0).reshape(63, 12)
    assert np.array_equal(made.detach().numpy(), wanted)


def test_groups_on_an_engine_without_block_scales_are_promoted_in_order() -> None:
    source, x = linear(70), tokens(4, 70)
    layer = QuantizedLinear.from_float(
        source,
        weight=Quantizer(format="e4m3", granularity="block", group=32),
        activation=Quantizer(format="e4m3", granularity="token", range="dynamic"),
        spec=WGMMA,
    )
    w, a = source.weight.detach().numpy(), x.numpy()
    a_scale = np.abs(a).max(1, keepdims=True) / np.float32(448)
    total = np.zeros((4, 24), np.float32)
    for start in (0, 32, 64):
        part = w[:, start : start + 32]
        scale = np.abs(part).max(1, keepdims=True) / np.float32(448)
        codes = fpsim.matmul(
            fpsim.encode(a[:, start : start + 32] / a_scale, "e4m3"), fpsim.encode(part / scale, "e4m3").T, WGMMA
        )
        total += codes * (a_scale * scale.T)
    assert np.array_equal(layer(x).detach().numpy(), total + source.bias.detach().numpy())


def test_weights_in_a_narrower_format_are_widened_without_loss() -> None:
    e2m1, e4m3, int4, int8 = (fpsim.format(name) for name in ("e2m1", "e4m3", "int4", "int8"))
    assert holds(e4m3, e2m1)
    assert holds(int8, int4)
    assert not holds(e2m1, e4m3)
    assert not holds(int8, e4m3)
    codes = torch.arange(16, dtype=torch.uint8)
    wide = recode(codes, e2m1, e4m3)
    assert np.array_equal(fpsim.decode(wide.numpy(), "e4m3"), fpsim.decode(codes.numpy(), "e2m1"))
    with pytest.raises(ValueError, match="does not hold every value of e4m3"):
        recode(codes, e4m3, e2m1)


def test_the_source_is_untouched_and_its_bias_shared() -> None:
    source = linear()
    before = source.weight.detach().clone()
    layer = QuantizedLinear.from_float(source, weight=Quantizer(format="int4", granularity="channel"))
    layer(tokens(2, 70))
    assert torch.equal(source.weight, before)
    assert layer.bias is source.bias
    assert "weight" not in layer.state_dict()
    assert layer.weight_codes.dtype == torch.int8


def test_output_has_the_dtype_of_the_input() -> None:
    layer = QuantizedLinear.from_float(linear().to(torch.bfloat16), weight=Quantizer(format="e4m3"))
    assert layer(tokens(2, 70).to(torch.bfloat16)).dtype == torch.bfloat16


def test_all_zero_weights_and_inputs_give_the_bias() -> None:
    source = linear()
    torch.nn.init.zeros_(source.weight)
    for name in ("int8", "e4m3"):
        layer = QuantizedLinear.from_float(
            source,
            weight=Quantizer(format=name, granularity="channel"),
            activation=Quantizer(format=name, granularity="token", range="dynamic"),
        )
        assert torch.equal(layer(torch.zeros(2, 70)), source.bias.expand(2, -1))
    for name in ("mxfp4", "nvfp4"):
        block = Quantizer(format=name, granularity="block")
        layer = QuantizedLinear.from_float(
            source, weight=block, activation=Quantizer(format=name, granularity="block", range="dynamic")
        )
        assert torch.equal(layer(torch.zeros(2, 70)), source.bias.expand(2, -1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": Quantizer(format="e4m3", granularity="token", range="dynamic")}, "weights have no tokens"),
        ({"weight": Quantizer(format="e4m3"), "activation": Quantizer(format="e4m3")}, "calibrate first"),
        ({"weight": Quantizer(format="e4m3"), "spec": WGMMA}, "give an activation quantizer"),
        (
            {"weight": Quantizer(format="e4m3"), "activation": Quantizer(format="e4m3", granularity="channel")},
            "cannot leave the sum",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedLinear.from_float(linear(), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    source = linear()
    with torch.no_grad():
        source.weight[0, 0] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        QuantizedLinear.from_float(source, weight=Quantizer(format="e4m3"))


def test_convolutions_that_are_not_supported_are_refused() -> None:
    weight, activation = Quantizer(format="int8"), Quantizer(format="int8")
    circular = torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="padding mode 'circular'"):
        QuantizedConv2d.from_float(circular, weight=weight)
    grouped = torch.nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="one group"):
        QuantizedConv2d.from_float(grouped, weight=weight, activation=activation, input_range=1.0, spec=INT8)
    assert isinstance(QuantizedConv2d.from_float(grouped, weight=weight), QuantizedLayer)
