"""The inference mode in 8 bits against its definition, and against the model in fp32."""

import copy
import math

import numpy as np
import pytest
import torch
from encoder_layers import LAYERS, close, encoded, every_layer, random_model

import lite_whisper.inference_lite_whisper as inference
import lite_whisper.modeling_lite_whisper as modeling


@pytest.fixture(autouse=True)
def no_pair_is_slower(monkeypatch) -> None:
    monkeypatch.setattr(modeling, "break_even_ranks", lambda shapes, *_: {(i, o): math.inf for i, _, o in shapes})


def rounded_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x times a weight: 8 bits signed with a scale for each output, times 8 bits unsigned with one scale for all."""
    scales = np.abs(weight).max(axis=0) / 127
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    return (codes @ np.rint(weight / scales)) * step * scales


def test_a_product_is_that_of_the_rounded_numbers() -> None:
    generator = np.random.default_rng(0)
    x, first, second = (generator.standard_normal(shape) for shape in ((50, 64), (64, 24), (24, 96)))
    bias = generator.standard_normal(96)
    weights = tuple(torch.from_numpy(weight).float() for weight in (first, second))
    actual = inference.Int8Product(inference.Product(weights, torch.from_numpy(bias).float()))(
        torch.from_numpy(x).float(), gelu=True
    )
    expected = torch.nn.functional.gelu(torch.from_numpy(rounded_product(rounded_product(x, first), second) + bias))
    assert close(actual.double(), expected, 1e-3 if not inference._int8_saturates() else 3e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_close_to_those_of_fp32(name: str) -> None:
    model = random_model(LAYERS[name][0], init_std=0.05)
    expected = encoded(model)
    actual = encoded(model.optimize_for_inference(dtype="int8"))
    products = model.model.encoder.layers[0].inference.products.values()
    assert all(isinstance(product, inference.Int8Product) for product in products)
    assert not torch.equal(actual, encoded(model.optimize_for_inference()))
    assert (actual - expected).norm() < 0.03 * expected.norm()


def test_no_direction_between_two_factors_is_lost_in_the_scale_of_another() -> None:
    torch.manual_seed(0)
    sizes = 0.5 ** torch.arange(20)
    weights = (torch.randn(64, 20) * sizes, torch.randn(20, 64) / sizes[:, None])
    product, x = inference.Product(weights), torch.randn(100, 64)
    even = inference.balanced(product)
    assert close(even(x), product(x))
    of_small = slice(10, 20)  # what these directions contribute
    expected = (x @ weights[0])[:, of_small] @ weights[1][of_small]
    rest = product(x) - expected
    assert (inference.Int8Product(even)(x) - rest - expected).norm() < 0.05 * expected.norm()
    assert (inference.Int8Product(product)(x) - rest - expected).norm() > 0.5 * expected.norm()


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
    assert not isinstance(model.double().model.encoder.layers[0].inference.products["fc1"], inference.Int8Product)
    assert close(encoded(model), plain)
    assert torch.equal(encoded(model.float()), in_int8)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(encoded(model.optimize_for_inference(False)), plain)


def test_what_cannot_be_is_refused(monkeypatch) -> None:
    model = every_layer()
    with pytest.raises(ValueError, match="'int4'"):
        model.optimize_for_inference(dtype="int4")
    with pytest.raises(ValueError, match="float32 on the CPU"):
        every_layer().half().optimize_for_inference(dtype="int8")

    def gone(*_) -> None:
        raise AttributeError("no such operation")

    monkeypatch.setattr(inference, "_packed", gone)
    inference._int8_saturates.cache_clear()
    with pytest.raises(ValueError, match="quantized products"):
        model.optimize_for_inference(dtype="int8")
    monkeypatch.undo()
    inference._int8_saturates.cache_clear()


def test_sums_that_overflow_are_noticed(monkeypatch) -> None:
    """As on x86 without VNNI, where two products of 8 bits are added in 16."""
    exact = torch.ops.quantized.linear_dynamic

    def saturating(x, packed, reduce_range):
        return exact(x, packed, reduce_range) if reduce_range else exact(x, packed, False).clamp(max=500)

    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", saturating)
    inference._int8_saturates.cache_clear()
    assert inference._int8_saturates()
    inference._int8_saturates.cache_clear()


def test_the_report_says_what_was_chosen(monkeypatch) -> None:
    model = every_layer()
    assert model.inference_report().splitlines() == [f"layer {index}: plain" for index in range(len(LAYERS))]
    break_even = {(64, 64): 30, (64, 256): math.inf, (256, 64): 40}
    monkeypatch.setattr(modeling, "break_even_ranks", lambda *_: break_even)
    report = model.optimize_for_inference(dtype="int8").inference_report().splitlines()
    assert report[:2] == [
        "64 -> 64: pairs of rank 30 and more take longer than the dense product",
        "64 -> 256: pairs of no rank that is there take longer than the dense product",
    ]
    assert report[3] == "layer 0: int8; keys and values in 8 dimensions"
    assert report[5] == "layer 2: int8; keys in 16 dimensions; v_proj multiplied out"
    assert report[9] == "layer 6: int8"
    assert model.optimize_for_inference().inference_report().splitlines()[9] == "layer 6: torch.float32"
