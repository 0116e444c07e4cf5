"""Int8 inference against its definition and against the float32 model."""

import copy
import math

import numpy as np
import pytest
import torch
from encoder_layers import LAYERS, close, encoded, every_layer, random_model

import lite_whisper.inference_lite_whisper as inference
import lite_whisper.kernels_lite_whisper as kernels


@pytest.fixture(autouse=True)
def no_pair_is_slower(monkeypatch) -> None:
    monkeypatch.setattr(inference, "break_even_ranks", lambda shapes, *_: {(i, o): math.inf for i, _, o in shapes})


@pytest.fixture(autouse=True, params=[False, True], ids=["usual attention", "by heads"])
def by_heads(monkeypatch, request) -> bool:
    """Which attention counts as the faster one."""
    monkeypatch.setattr(inference, "by_heads_is_faster", lambda *_: request.param)
    return request.param


def rounded_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x in unsigned int8 with one scale, times a weight in signed int8 with one scale per output."""
    scales = np.abs(weight).max(axis=0) / 127
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    return (codes @ np.rint(weight / scales)) * step * scales


def test_a_product_matches_that_of_the_rounded_numbers() -> None:
    generator = np.random.default_rng(0)
    x, first, second = (generator.standard_normal(shape) for shape in ((50, 64), (64, 24), (24, 96)))
    bias = generator.standard_normal(96)
    weights = tuple(torch.from_numpy(weight).float() for weight in (first, second))
    actual = kernels.Int8Product(kernels.Product(weights, torch.from_numpy(bias).float()))(
        torch.from_numpy(x).float(), gelu=True
    )
    expected = torch.nn.functional.gelu(torch.from_numpy(rounded_product(rounded_product(x, first), second) + bias))
    assert close(actual.double(), expected, 1e-3 if not kernels._int8_saturates() else 3e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_close_to_float32(name: str, by_heads: bool, monkeypatch) -> None:
    calls = []
    attend = inference.attention_by_heads
    monkeypatch.setattr(inference, "attention_by_heads", lambda *given: calls.append(given) or attend(*given))
    model = random_model(LAYERS[name][0], init_std=0.05)
    expected = encoded(model)
    actual = encoded(model.optimize_for_inference(dtype="int8"))
    products = model.model.encoder.layers[0].inference.products.values()
    assert all(isinstance(product, kernels.Int8Product) for product in products)
    assert len(calls) == by_heads
    assert not torch.equal(actual, encoded(model.optimize_for_inference()))
    assert (actual - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 30).expand(20, -1)], ids=["none", "bias"])
def test_attention_by_heads_is_attention(bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, rows, 16) for rows in (20, 30, 30))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, scale=0.3)
    assert close(kernels.attention_by_heads(query, key, value, bias, 0.3), expected, 2e-2)


def test_the_faster_attention_is_chosen(monkeypatch) -> None:
    seconds = iter((2.0, 1.0, 1.0, 2.0))
    monkeypatch.setattr(kernels, "median_seconds", lambda *_: next(seconds))
    assert kernels.by_heads_is_faster(torch.empty(1, 40), 4, 16) and not kernels.by_heads_is_faster(
        torch.empty(1, 40), 4, 16
    )


def test_no_direction_between_two_factors_is_lost_to_the_scale_of_another() -> None:
    torch.manual_seed(0)
    sizes = 0.5 ** torch.arange(20)
    weights = (torch.randn(64, 20) * sizes, torch.randn(20, 64) / sizes[:, None])
    product, x = kernels.Product(weights), torch.randn(100, 64)
    even = kernels.equalize_scales(product)
    assert close(even(x), product(x))
    small = slice(10, 20)  # directions with a small contribution
    expected = (x @ weights[0])[:, small] @ weights[1][small]
    rest = product(x) - expected
    assert (kernels.Int8Product(even)(x) - rest - expected).norm() < 0.05 * expected.norm()
    assert (kernels.Int8Product(product)(x) - rest - expected).norm() > 0.5 * expected.norm()


def test_it_follows_the_model_and_is_undone() -> None:
    model = every_layer()
    plain, state = encoded(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_int8 = encoded(model.optimize_for_inference(dtype="int8"))
    assert torch.equal(encoded(copy.deepcopy(model)), in_int8)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight1.mul_(1.5)
    changed = encoded(model)
    assert not close(changed, in_int8, 1e-2)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight1.copy_(state["model.encoder.layers.0.fc1.weight1"])
    assert torch.equal(encoded(model), in_int8)
    assert not isinstance(model.double().model.encoder.layers[0].inference.products["fc1"], kernels.Int8Product)
    assert close(encoded(model), plain)
    assert torch.equal(encoded(model.float()), in_int8)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(encoded(model.optimize_for_inference(False)), plain)


def test_unsupported_models_are_rejected(monkeypatch) -> None:
    model = every_layer()
    with pytest.raises(ValueError, match="'int4'"):
        model.optimize_for_inference(dtype="int4")
    with pytest.raises(ValueError, match="float32 model on the CPU"):
        every_layer().half().optimize_for_inference(dtype="int8")

    def missing(*_) -> None:
        raise AttributeError("no such operation")

    monkeypatch.setattr(kernels, "_pack", missing)
    kernels._int8_saturates.cache_clear()
    with pytest.raises(ValueError, match="quantized products"):
        model.optimize_for_inference(dtype="int8")
    monkeypatch.undo()
    kernels._int8_saturates.cache_clear()


def test_overflowing_sums_are_detected(monkeypatch) -> None:
    """As on x86 without VNNI, where sums of two int8 products saturate at 16 bits."""
    exact = torch.ops.quantized.linear_dynamic

    def saturating(x, packed, reduce_range):
        return exact(x, packed, reduce_range) if reduce_range else exact(x, packed, False).clamp(max=500)

    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", saturating)
    kernels._int8_saturates.cache_clear()
    assert kernels._int8_saturates()
    kernels._int8_saturates.cache_clear()


def test_the_report_describes_the_choices(by_heads: bool, monkeypatch) -> None:
    model = every_layer()
    assert model.inference_report().splitlines() == [f"layer {index}: plain" for index in range(len(LAYERS))]
    break_even = {(64, 64): 30, (64, 256): math.inf, (256, 64): 40}
    monkeypatch.setattr(inference, "break_even_ranks", lambda *_: break_even)
    report = model.optimize_for_inference(dtype="int8").inference_report().splitlines()
    assert report[:2] == [
        "64 -> 64: low-rank pairs of rank 30 or more are slower than the dense product",
        "64 -> 256: no rank in use is slower than the dense product",
    ]
    int8 = "int8; attention in bfloat16, head by head" if by_heads else "int8"
    assert report[3] == f"layer 0: {int8}; keys and values in 8 dimensions"
    assert report[5] == f"layer 2: {int8}; keys in 16 dimensions; v_proj merged"
    assert report[9] == f"layer 6: {int8}"
    assert model.optimize_for_inference().inference_report().splitlines()[9] == "layer 6: torch.float32"
