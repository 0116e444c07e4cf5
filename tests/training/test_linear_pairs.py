"""Factors as ordinary linear layers: exact, reversible, and usable with PEFT."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from random_models import encode, random_model, train
from torch import nn

from lite_whisper import LiteWhisperForConditionalGeneration, LowRankLinear
from lite_whisper.training.linear_pairs import LinearPair, from_linear_pairs, to_linear_pairs

RANKS = [dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), 32)] * 2


@pytest.fixture
def lite() -> LiteWhisperForConditionalGeneration:
    """A model with a low-rank pair for every projection."""
    return random_model(RANKS)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_the_round_trip_is_exact(lite, features, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in lite.state_dict().items()}
    expected = encode(lite, features)
    lite.get_encoder().layers[0].fc1.weight1.requires_grad_(False)
    to_linear_pairs(lite)
    assert count(lite, LowRankLinear) == 0 and count(lite, LinearPair) == 12
    torch.testing.assert_close(encode(lite, features), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="from_linear_pairs"):
        lite.save_pretrained(tmp_path)
    from_linear_pairs(lite)
    after = lite.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not lite.get_encoder().layers[0].fc1.weight1.requires_grad
    assert lite.get_encoder().layers[0].fc1.weight2.requires_grad


def test_lora_on_the_factors_keeps_the_rank(lite, features, tmp_path: Path) -> None:
    to_linear_pairs(lite)
    config = LoraConfig(target_modules=r".*encoder\.layers\.\d+\..*\.(first|second)", r=4)
    model = get_peft_model(lite, config)
    train(model, features)
    expected = encode(model, features)
    with pytest.raises(ValueError, match="merge_and_unload"):
        from_linear_pairs(copy.deepcopy(model.base_model.model))
    merged = model.merge_and_unload()
    from_linear_pairs(merged)
    merged.save_pretrained(tmp_path)
    loaded = LiteWhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.config.low_rank_config == RANKS
    torch.testing.assert_close(encode(loaded, features), expected, rtol=1e-3, atol=1e-3)
