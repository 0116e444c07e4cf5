"""Optimised inference against stock Whisper with merged factors, and against the plain layers."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from encoder_layers import D_MODEL, HEADS, LAYERS, POSITIONS, close, encoded, every_layer, features, random_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lite_whisper.inference_lite_whisper as inference
import lite_whisper.kernels_lite_whisper as kernels
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.lowrank.compression import compress
from lite_whisper.training.linear_pairs import to_linear_pairs
from lite_whisper.training.lora import low_rank_lora


@pytest.fixture(autouse=True)
def no_pair_is_slower(monkeypatch) -> None:
    """At these sizes most pairs would be slower, and merged."""
    monkeypatch.setattr(inference, "break_even_ranks", lambda shapes, *_: {(i, o): math.inf for i, _, o in shapes})


@pytest.fixture
def inference_calls(monkeypatch) -> list[nn.Module]:
    """The layers that ran optimised, in order."""
    calls = []
    forward = inference.InferenceLayer.forward

    def recorded(self, layer, *args):
        calls.append(layer)
        return forward(self, layer, *args)

    monkeypatch.setattr(inference.InferenceLayer, "forward", recorded)
    return calls


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_match_stock_whisper(name: str, inference_calls) -> None:
    ranks, reduction = LAYERS[name]
    model = random_model(ranks)
    expected, plain = encoded(model.to_whisper()), encoded(model)
    model.optimize_for_inference()
    assert model.model.encoder.layers[0].inference.reduction == reduction
    actual = encoded(model)
    assert len(inference_calls) == 1
    assert close(actual, expected)
    # Another order of operations changes the last bits; with the same order, they depend on the kernels.
    assert not torch.equal(actual, plain) or not any(reduction[:2])


@pytest.fixture
def onednn(monkeypatch) -> Iterator[Callable[[Any], None]]:
    """Replaces or removes torch's private operation, on any processor."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")

    def replace(operation: Callable[..., torch.Tensor] | None) -> None:
        operations = SimpleNamespace() if operation is None else SimpleNamespace(_linear_pointwise=operation)
        monkeypatch.setattr(torch.ops, "mkldnn", operations)
        kernels._has_onednn.cache_clear()

    yield replace
    kernels._has_onednn.cache_clear()


def computed(x, weight, bias, activation, *_) -> torch.Tensor:
    """Computes what torch's private operation does today."""
    y = nn.functional.linear(x, weight, bias)
    return nn.functional.gelu(y) if activation == "gelu" else y


def raising(error: Exception) -> Callable[..., torch.Tensor]:
    def operation(*arguments):
        raise error

    return operation


UNUSABLE = {
    "missing": None,
    "with another signature": lambda x, weight, bias: computed(x, weight, bias, "none"),
    "raising": raising(RuntimeError("Fusion behavior undefined.")),
    "without the activation": lambda x, weight, bias, *_: computed(x, weight, bias, "none"),
    "with another shape": lambda *arguments: computed(*arguments)[0, 0],
}


@pytest.mark.parametrize("operation", UNUSABLE.values(), ids=UNUSABLE)
def test_falls_back_to_the_public_operation_of_torch(operation, onednn, inference_calls) -> None:
    onednn(operation)
    model = every_layer()
    expected = encoded(model.to_whisper())
    assert close(encoded(model.optimize_for_inference()), expected)
    assert len(inference_calls) == len(LAYERS)
    assert not kernels._has_onednn()


@pytest.mark.parametrize("error", [RuntimeError("no primitive"), TypeError("no such argument")])
def test_falls_back_when_the_private_operation_rejects_a_product(error, onednn) -> None:
    rejected = []

    def operation(x, *rest):
        if x.shape[-1] > 3:  # accepts the three numbers of the trial product
            rejected.append(x.shape)
            raise error
        return computed(x, *rest)

    onednn(operation)
    model = every_layer().optimize_for_inference()
    assert close(encoded(model), encoded(model.to_whisper()))
    assert kernels._has_onednn() and rejected


def test_the_private_operation_is_used_if_it_works(onednn) -> None:
    calls = []

    def operation(x, *rest):
        calls.append(x.shape)
        return computed(x, *rest)

    onednn(operation)
    encoded(every_layer().optimize_for_inference())
    assert calls[0] == (1, 3) and len(calls) > 1


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
def test_slower_pairs_are_merged(projection: str, monkeypatch) -> None:
    model = random_model({"q_proj": 21, "k_proj": 22, "v_proj": 23, "out_proj": 24, "fc1": 25, "fc2": 26})
    pair = inference.projections(model.model.encoder.layers[0])[projection]
    expected, shape = encoded(model.to_whisper()), (pair.in_features, pair.out_features)

    def break_even(shapes, *_):
        return {(i, o): pair.rank if (i, o) == shape else math.inf for i, _, o in shapes}

    monkeypatch.setattr(inference, "break_even_ranks", break_even)
    model.optimize_for_inference()
    chain = model.model.encoder.layers[0].inference.products[projection].weights
    assert [weight.shape for weight in chain] == [shape]
    assert close(encoded(model), expected)


def test_break_even_rank(monkeypatch) -> None:
    class Timer:
        """Counts multiply-adds, with a surcharge for pairs, which are two products."""

        def __init__(self, stmt: str, globals: dict, num_threads: int) -> None:
            self.weights, (self.x,) = globals["function"].weights, globals["arguments"]
            assert stmt == "function(*arguments)" and self.x.shape == (3, POSITIONS, self.weights[0].shape[0])

        def blocked_autorange(self, min_run_time: float) -> "Timer":
            self.median = sum(weight.numel() for weight in self.weights) + 1000 * (len(self.weights) - 1)
            return self

    monkeypatch.setattr(kernels, "Timer", Timer)
    ranks = range(1, 64)
    x = torch.empty(3, POSITIONS)
    shapes = {(64, rank, out) for rank in ranks for out in (64, 256)} | {(256, 8, 64)}
    slower = {out: next(rank for rank in ranks if rank * (64 + out) + 1000 >= 64 * out) for out in (64, 256)}
    expected = {(64, 64): slower[64], (64, 256): slower[256], (256, 64): math.inf}
    assert kernels.break_even_ranks(shapes, x) == expected


@pytest.mark.parametrize("name", LAYERS)
def test_fewest_multiply_adds(name: str, monkeypatch) -> None:
    ranks, reduction = LAYERS[name]
    layer = random_model(ranks).double().model.encoder.layers[0]  # the counter does not know oneDNN's float32 products
    counted = {}
    key_rank, value_rank = ranks.get("k_proj", D_MODEL), ranks.get("v_proj", D_MODEL)
    for keys, values in itertools.product((False, key_rank <= 16), (False, value_rank <= 16)):
        width = 8 if keys and values and max(key_rank, value_rank) <= 8 else 16
        form = inference.Reduction(keys, values, width)
        monkeypatch.setattr(inference, "choose_reduction", lambda *_, form=form: form)
        fast = inference.InferenceLayer(layer, (), POSITIONS)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            fast.forward(layer, torch.randn(1, POSITIONS, D_MODEL, dtype=torch.float64), None)
        counted[form] = counter.get_total_flops()
    assert min(counted, key=counted.__getitem__) == reduction


def test_bfloat16(inference_calls) -> None:
    model = random_model(*(ranks for ranks, _ in LAYERS.values()), init_std=0.05)
    expected = encoded(model.to_whisper())
    model.to(torch.bfloat16)
    plain = encoded(model)
    actual = encoded(model.optimize_for_inference())
    assert len(inference_calls) == len(LAYERS)
    assert close(actual, expected, 2e-2)
    assert (actual - expected).norm() < 1.5 * (plain - expected).norm()


def test_float16_is_clamped_as_in_whisper() -> None:
    model = random_model({"fc1": 8}).half()
    with torch.no_grad():
        model.model.encoder.layers[0].fc2.bias.fill_(65500)
    plain = encoded(model)
    assert torch.allclose(encoded(model.optimize_for_inference()), plain, atol=2e-2)


def test_saved_files_stay_the_same_and_it_is_reversible(tmp_path) -> None:
    model = every_layer()
    plain, state = encoded(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "plain")
    model.optimize_for_inference()
    assert not torch.equal(encoded(model), plain)
    optimized = model.state_dict()
    assert optimized.keys() == state.keys() and all(torch.equal(optimized[name], state[name]) for name in state)
    model.save_pretrained(tmp_path / "optimized")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "optimized" / name).read_bytes()
    assert torch.equal(encoded(model.optimize_for_inference(False)), plain)


def changed_by_loading(model: nn.Module) -> None:
    other = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(other)


def changed_by_assigning(model: nn.Module) -> None:
    other = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    model.tie_weights()


def changed_by_training(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.get_encoder().parameters(), lr=0.1)
    model.train()
    model.get_encoder()(features(model))[0].square().mean().backward()
    optimizer.step()
    model.eval()


def changed_in_dtype(model: nn.Module) -> None:
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.float()


@pytest.mark.parametrize("change", [changed_by_loading, changed_by_assigning, changed_by_training, changed_in_dtype])
def test_follows_the_weights(change: Callable[[nn.Module], None], inference_calls) -> None:
    model = every_layer().optimize_for_inference()
    before = encoded(model)
    change(model)
    inference_calls.clear()
    actual = encoded(model)
    assert len(inference_calls) == len(LAYERS)
    assert not close(actual, before, 1e-3)
    assert close(actual, encoded(model.to_whisper()))


def test_copies_are_independent(inference_calls) -> None:
    model = every_layer().optimize_for_inference()
    before = encoded(model)
    copied = copy.deepcopy(model)
    changed_by_loading(model)
    inference_calls.clear()
    assert torch.equal(encoded(copied), before)
    assert inference_calls == list(copied.model.encoder.layers)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_match_the_plain_layers(training: bool) -> None:
    model, plain = every_layer().optimize_for_inference(), every_layer()
    for each in (model, plain):
        each.train(training).get_encoder()(features(each))[0].square().sum().backward()
    for (name, actual), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (actual.grad is None) == (expected.grad is None), name
        assert expected.grad is None or torch.equal(actual.grad, expected.grad), name


def test_adapters(inference_calls) -> None:
    model = every_layer().optimize_for_inference()
    before = encoded(model)
    config = LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], r=2, init_lora_weights=False)
    adapted = get_peft_model(model, low_rank_lora(config, model)).eval()
    inference_calls.clear()
    unmerged = encoded(adapted)
    assert not inference_calls and not close(unmerged, before, 1e-3)
    with pytest.raises(ValueError, match="merge adapters first"):
        model.optimize_for_inference()
    merged = adapted.merge_and_unload()
    assert close(encoded(merged), unmerged)
    assert close(encoded(merged.optimize_for_inference()), unmerged)
    assert len(inference_calls) == len(LAYERS)


def test_replaced_layers_run_plain(inference_calls) -> None:
    model = every_layer()
    expected = encoded(model)
    model.optimize_for_inference()
    to_linear_pairs(model)
    assert close(encoded(model), expected)
    assert len(inference_calls) == 1  # the dense layer
    model.to(torch.float64).float()  # does not rebuild them
    assert close(encoded(model), expected)


def test_offloaded_weights_are_rejected() -> None:
    model = random_model({"fc1": 8}).to("meta")
    with pytest.raises(ValueError, match="without offloading"):
        model.optimize_for_inference()


def test_attention_weights_are_returned_on_request(inference_calls) -> None:
    model = every_layer().optimize_for_inference()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model.get_encoder()(features(model), output_attentions=True)
    assert not inference_calls
    assert [a.shape for a in outputs.attentions] == [(2, HEADS, POSITIONS, POSITIONS)] * len(LAYERS)


def test_compiles_once_for_all_windows() -> None:
    model = every_layer().optimize_for_inference()
    expected = encoded(model)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model.get_encoder(), backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for window in (torch.zeros_like(features(model)), features(model)):
            actual = compiled(window)[0]
    assert close(actual, expected)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_transcripts_and_likelihoods_of_the_miniature(base_model, processor, moments, test_clips) -> None:
    ranks = [
        {"q_proj": 40, "k_proj": 40, "v_proj": 24 * (layer + 1), "out_proj": 40, "fc1": 48, "fc2": 48}
        for layer in range(base_model.config.encoder_layers)
    ]
    lite = compress(base_model, moments, ranks).eval()
    window = processor(test_clips[0].samples, sampling_rate=16_000, return_tensors="pt").input_features
    tokens = torch.tensor([processor.tokenizer(test_clips[0].text).input_ids])

    def log_likelihood(model: nn.Module) -> float:
        with torch.no_grad():
            return -model(window, labels=tokens).loss.item() * tokens.shape[1]

    transcripts, likelihood = transcribe(lite, processor, test_clips, 4).texts, log_likelihood(lite)
    lite.optimize_for_inference()
    assert any(layer.inference.reduction.values for layer in lite.model.encoder.layers)
    assert transcribe(lite, processor, test_clips, 4).texts == transcripts
    assert log_likelihood(lite) == pytest.approx(likelihood, rel=1e-3)
    assert log_likelihood(lite.to(torch.bfloat16).float()) == pytest.approx(likelihood, rel=2e-2)
