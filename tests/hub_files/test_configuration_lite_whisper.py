"""LiteWhisperConfig: validation, and what is saved."""

import json

import pytest
from transformers import WhisperConfig

from lite_whisper import LiteWhisperConfig

SIZES = {"d_model": 64, "encoder_layers": 2, "encoder_ffn_dim": 256, "encoder_attention_heads": 2}


@pytest.mark.parametrize(
    ("low_rank_config", "message"),
    [
        ([{}], "describes 1 layers, but the encoder has 2"),
        ([], "describes 0 layers, but the encoder has 2"),
        ([{}, {"q": 8}], "unknown projection 'q' in layer 1"),
        ([{"q_proj": 0}, {}], "rank 0 of layer 0 q_proj is not a positive integer"),
        ([{}, {"fc1": -4}], "rank -4 of layer 1 fc1 is not a positive integer"),
        ([{}, {"fc1": 8.0}], "rank 8.0 of layer 1 fc1 is not a positive integer"),
        ([{}, {"fc1": True}], "rank True of layer 1 fc1 is not a positive integer"),
        ([{"v_proj": 65}, {}], "rank 65 of layer 0 v_proj exceeds its 64 inputs"),
        ([{"fc1": 65}, {}], "rank 65 of layer 0 fc1 exceeds its 64 inputs"),
        ([{}, {"fc2": 65}], "rank 65 of layer 1 fc2 exceeds its 64 outputs"),
    ],
)
def test_validation(low_rank_config, message) -> None:
    with pytest.raises(ValueError, match=message):
        LiteWhisperConfig(low_rank_config=low_rank_config, **SIZES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_rank_config": {"fc1": 8}}, "must be a list of dicts"),
        ({"low_rank_config": [8, 8]}, "must be a list of dicts"),
        ({"low_rank_config": 8}, "must be a list of dicts"),
        ({"encoder_attention_heads": -2}, "encoder_attention_heads is -2, not a positive integer"),
        ({"decoder_layers": 10**9}, "decoder_layers is 1000000000"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
    ],
)
def test_invalid_settings_are_rejected(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        LiteWhisperConfig(**{**SIZES, **settings})


def test_the_largest_ranks_are_valid() -> None:
    ranks = [dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), 64), {}]
    assert LiteWhisperConfig(low_rank_config=ranks, **SIZES).low_rank_config == ranks


def test_saved_and_read_back(tmp_path) -> None:
    config = LiteWhisperConfig(low_rank_config=[{"fc1": 8}, {}], **SIZES)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "lite-whisper"
    assert saved["low_rank_config"] == [{"fc1": 8}, {}]
    assert saved["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForSpeechSeq2Seq"}
    assert (tmp_path / "configuration_lite_whisper.py").exists()
    assert LiteWhisperConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_without_ranks_it_is_whisper() -> None:
    ours = LiteWhisperConfig(**SIZES).to_dict()
    assert ours.pop("low_rank_config") is None and ours.pop("constant_padding") is None
    assert ours.pop("auto_map") and ours.pop("model_type") == "lite-whisper"
    whisper = WhisperConfig(**SIZES).to_dict()
    assert ours == {name: value for name, value in whisper.items() if name != "model_type"}


def test_code_in_another_repository_is_kept_while_loading_and_replaced_when_saving() -> None:
    """A repository may refer to the code of another; a saved model has its code in its own folder."""
    config = LiteWhisperConfig(auto_map={"AutoModel": "org/name--modeling_lite_whisper.X"}, **SIZES)
    assert config.auto_map["AutoModel"] == "org/name--modeling_lite_whisper.X"
    assert "--" not in json.dumps(config.to_dict()["auto_map"])
