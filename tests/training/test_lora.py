"""LoRA with PEFT and the usual target modules, on low-rank pairs and dense layers."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from random_models import encode, random_model, train

from lite_whisper import LiteWhisperForConditionalGeneration, LowRankLinear
from lite_whisper.training.lora import LoraLowRankLinear, low_rank_lora

RANKS = [{"q_proj": 24, "v_proj": 32}, {"v_proj": 8, "fc1": 16}]


@pytest.fixture
def lite() -> LiteWhisperForConditionalGeneration:
    """A partly compressed model."""
    return random_model(RANKS)


@pytest.fixture(params=[False, True], ids=["without bias", "with bias"])
def adapted(request, lite, features) -> PeftModel:
    """The same model with a LoRA adapter, trained for a few steps."""
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=16, lora_bias=request.param)
    model = get_peft_model(lite, low_rank_lora(config, lite))
    train(model, features)
    return model.eval()


def test_adapters_apply_to_pairs_and_dense_layers(adapted) -> None:
    layers = adapted.get_encoder().layers
    assert isinstance(layers[0].self_attn.q_proj, LoraLowRankLinear)
    assert not isinstance(layers[1].self_attn.q_proj, LoraLowRankLinear) and hasattr(
        layers[1].self_attn.q_proj, "lora_A"
    )
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    # definition of LoRA (Hu et al., 2021, eq. 3): W x + alpha / r B A x
    layer, x = layers[0].self_attn.q_proj, torch.randn(3, 64)
    expected = layer.base_layer(x) + 4 * layer.lora_B["default"](layer.lora_A["default"](x))
    torch.testing.assert_close(layer(x), expected)
    assert layer.lora_B["default"].weight.abs().max() > 0


def test_a_merged_model_is_saved_and_loaded(adapted, features, tmp_path: Path) -> None:
    expected = encode(adapted, features)
    merged = adapted.merge_and_unload()
    assert type(merged.get_encoder().layers[0].self_attn.q_proj) is LowRankLinear
    torch.testing.assert_close(encode(merged, features), expected, rtol=1e-3, atol=1e-3)
    merged.save_pretrained(tmp_path)
    loaded = LiteWhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected_ranks = [
        {name: rank + 4 * (name in ("q_proj", "v_proj")) for name, rank in ranks.items()} for ranks in RANKS
    ]
    assert loaded.config.low_rank_config == expected_ranks
    torch.testing.assert_close(encode(loaded, features), expected, rtol=1e-3, atol=1e-3)


def test_unmerging_restores_the_layer(adapted, features) -> None:
    before = adapted.get_encoder().layers[0].self_attn.q_proj.base_layer.weight1.clone()
    expected = encode(adapted, features)
    adapted.merge_adapter()
    torch.testing.assert_close(encode(adapted, features), expected, rtol=1e-3, atol=1e-3)
    adapted.unmerge_adapter()
    assert torch.equal(adapted.get_encoder().layers[0].self_attn.q_proj.base_layer.weight1, before)
    torch.testing.assert_close(encode(adapted, features), expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_alone_is_saved_and_loaded(adapted, features, tmp_path) -> None:
    expected = encode(adapted, features)
    adapted.save_pretrained(tmp_path)
    fresh = random_model(RANKS)
    config = low_rank_lora(LoraConfig.from_pretrained(tmp_path), fresh)
    loaded = PeftModel.from_pretrained(fresh, tmp_path, config=config).eval()
    torch.testing.assert_close(encode(loaded, features), expected, rtol=1e-4, atol=1e-4)


def test_merging_beyond_the_largest_rank_is_refused() -> None:
    lite = random_model([{"q_proj": 62}, {}])
    model = get_peft_model(lite, low_rank_lora(LoraConfig(target_modules=["q_proj"], r=4), lite))
    with pytest.raises(ValueError, match="rank to 66"):
        model.merge_and_unload()


def test_variants_that_need_a_dense_weight_are_refused(lite) -> None:
    config = LoraConfig(target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora|[Uu]nsupported"):
        get_peft_model(lite, low_rank_lora(config, lite))
