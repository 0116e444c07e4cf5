"""Initial, missing and changed weights. Runs under both major versions of transformers."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from random_models import SIZES, encode, random_model
from transformers import WhisperConfig, WhisperForConditionalGeneration

import lite_whisper.inference_lite_whisper as inference
import lite_whisper.modeling_lite_whisper as modeling
from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration, LiteWhisperModel

RANKS = [{"q_proj": 8, "k_proj": 4, "v_proj": 4, "fc1": 12}, {}]
FEATURES = torch.randn(2, 80, 2 * SIZES["max_source_positions"], generator=torch.Generator().manual_seed(1))
CLASSES = (LiteWhisperModel, LiteWhisperForConditionalGeneration)


@pytest.mark.parametrize("ranks", [None, RANKS], ids=["dense", "low-rank"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_position_embeddings_of_a_new_model_match_whisper(model_class: type, ranks) -> None:
    ours = model_class(LiteWhisperConfig(low_rank_config=ranks, **SIZES)).get_encoder()
    stock = WhisperForConditionalGeneration(WhisperConfig(**SIZES)).get_encoder()
    assert torch.equal(ours.embed_positions.weight, stock.embed_positions.weight)
    assert not ours.embed_positions.weight.requires_grad


def test_saved_position_embeddings_are_loaded(tmp_path: Path) -> None:
    model = random_model(RANKS)
    with torch.no_grad():
        model.model.encoder.embed_positions.weight.normal_()
    model.save_pretrained(tmp_path)
    for model_class in CLASSES:
        loaded = model_class.from_pretrained(tmp_path)
        assert torch.equal(loaded.get_encoder().embed_positions.weight, model.model.encoder.embed_positions.weight)


@pytest.mark.parametrize("saved_class", CLASSES)
@pytest.mark.parametrize("loaded_class", CLASSES)
def test_both_classes_reject_missing_weights(loaded_class: type, saved_class: type, tmp_path: Path) -> None:
    """The head is tied to the embeddings, so it cannot be missing."""
    model = saved_class(LiteWhisperConfig(low_rank_config=RANKS, **SIZES))
    model.save_pretrained(tmp_path / "whole")
    loaded, info = loaded_class.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert type(loaded) is loaded_class and not info["missing_keys"]
    assert torch.equal(encode(loaded.eval(), FEATURES), encode(model.eval(), FEATURES))

    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("layers.0.fc1.weight2")}
    model.save_pretrained(tmp_path / "partial", state_dict=state)
    with pytest.raises(ValueError, match=r"weights are missing from the file: 1, .*encoder\.layers\.0\.fc1\.weight2"):
        loaded_class.from_pretrained(tmp_path / "partial")


def test_a_missing_untied_head_is_rejected(tmp_path: Path) -> None:
    config = LiteWhisperConfig(low_rank_config=RANKS, tie_word_embeddings=False, **SIZES)
    LiteWhisperModel(config).save_pretrained(tmp_path)
    LiteWhisperModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the first being proj_out"):
        LiteWhisperForConditionalGeneration.from_pretrained(tmp_path)


def test_an_encoder_is_loaded_only_from_an_encoder_file(tmp_path: Path) -> None:
    model = random_model(RANKS)
    model.save_pretrained(tmp_path / "model")
    model.get_encoder().save_pretrained(tmp_path / "encoder")
    loaded = modeling.LiteWhisperEncoder.from_pretrained(tmp_path / "encoder").eval()
    assert torch.equal(loaded(FEATURES)[0], model.get_encoder()(FEATURES)[0])
    with pytest.raises(ValueError, match="weights are missing"):
        modeling.LiteWhisperEncoder.from_pretrained(tmp_path / "model")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiteWhisperForConditionalGeneration]:
    """A model optimised for inference, without merging the pairs that are slow at this size."""
    monkeypatch.setattr(inference, "break_even_ranks", lambda shapes, *_: {(i, o): 99 for i, _, o in shapes})
    model = random_model(RANKS).optimize_for_inference()
    encode(model, FEATURES)
    yield model
    assert all(layer.inference is not None for layer in model.model.encoder.layers)


def scaled(weight: torch.Tensor) -> None:
    weight.mul_(1.5)


def scaled_in_inference_mode(weight: torch.Tensor) -> None:
    with torch.inference_mode():
        weight.mul_(1.5)


def one_entry(weight: torch.Tensor) -> None:
    weight[0, 0] += 3


def by_an_optimizer(weight: torch.Tensor) -> None:
    weight.grad = torch.randn_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()
    weight.grad = None


@pytest.mark.parametrize("change", [scaled, scaled_in_inference_mode, one_entry, by_an_optimizer])
@pytest.mark.parametrize("name", ["0.self_attn.k_proj.weight2", "0.self_attn.q_proj.weight1", "1.fc2.weight"])
def test_follows_in_place_changes(fast: LiteWhisperForConditionalGeneration, name: str, change: Callable) -> None:
    before = encode(fast, FEATURES)
    with torch.no_grad():
        change(fast.model.encoder.layers.get_parameter(name))
    after = encode(fast, FEATURES)
    torch.testing.assert_close(after, encode(fast.to_whisper(), FEATURES), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)


def test_only_changed_layers_are_rebuilt(fast, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt = []
    rebuild = inference.InferenceLayer.rebuilt
    monkeypatch.setattr(inference.InferenceLayer, "rebuilt", lambda *args: rebuilt.append(args[1]) or rebuild(*args))
    layers = fast.model.encoder.layers
    encode(fast, FEATURES)
    assert not rebuilt
    fast.train()
    for _ in range(2):  # training, which changes weights at every step, does not use them
        with torch.no_grad():
            layers[0].fc1.weight1.mul_(2)
        encode(fast, FEATURES)
    assert not rebuilt
    fast.eval()
    rebuilt.clear()
    with torch.no_grad():
        layers[1].fc1.weight.mul_(2)
    for _ in range(2):
        encode(fast, FEATURES)
    assert rebuilt == [layers[1]]


def test_copies_follow_their_own_weights(fast) -> None:
    copied = copy.deepcopy(fast)
    with torch.no_grad():
        copied.model.encoder.layers[0].self_attn.v_proj.weight2.mul_(2)
    for model in (fast, copied):
        expected = encode(model.to_whisper(), FEATURES)
        torch.testing.assert_close(encode(model, FEATURES), expected, rtol=1e-4, atol=1e-4)


def test_weights_made_in_inference_mode_work_without_a_change_count() -> None:
    with torch.inference_mode():
        model = random_model(RANKS)
        expected = model.get_encoder()(FEATURES)[0].clone()
        for _ in range(2):
            actual = model.optimize_for_inference().get_encoder()(FEATURES)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encode(model, FEATURES), expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_encoder_follows_a_new_optimisation(fast) -> None:
    """A compiled encoder does not notice in-place changes; optimising again updates it without a new graph."""
    compiled = torch.compile(fast.get_encoder(), fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        compiled(FEATURES)
        fast.model.encoder.layers[0].fc1.weight1.mul_(2)
        fast.optimize_for_inference()
        actual = compiled(FEATURES)[0]
    torch.testing.assert_close(actual, encode(fast.to_whisper(), FEATURES), rtol=1e-4, atol=1e-4)
