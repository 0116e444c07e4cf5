"""Offloading, pickling, compiling and resizing models, and reading their hidden states."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor, WhisperProcessor, pipeline

DIGITS = Path(__file__).parents[2] / "examples/digits"
START = torch.tensor([[292, 293, 394, 398]])


@pytest.fixture
def lite(models):
    """A compressed miniature that tests may modify."""
    return AutoModelForSpeechSeq2Seq.from_pretrained(models / "compressed", trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def features(models) -> torch.Tensor:
    """Log-mel features of two strings of digits."""
    clips = [soundfile.read(DIGITS / f"test/test_00{index}.flac", dtype="float32")[0] for index in range(2)]
    extractor = WhisperFeatureExtractor.from_pretrained(models / "compressed")
    return extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features


@torch.no_grad()
def logits(model, features: torch.Tensor) -> torch.Tensor:
    return model(features[:1].to(model.dtype), decoder_input_ids=START).logits


def test_two_devices(models, lite, features, tmp_path) -> None:
    modules = ("conv1", "conv2", "embed_positions", "layer_norm")
    devices = {"model.decoder": "cpu", "proj_out": "cpu"} | {f"model.encoder.{name}": "cpu" for name in modules}
    devices |= {f"model.encoder.layers.{index}": "disk" for index in range(6)}
    split = AutoModelForSpeechSeq2Seq.from_pretrained(
        models / "compressed", trust_remote_code=True, device_map=devices, offload_folder=tmp_path / "offload"
    ).eval()
    assert split.get_encoder().layers[0].fc1.weight1.device.type == "meta"
    torch.testing.assert_close(logits(split, features), logits(lite, features))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(lite, features, copied) -> None:
    twin = copied(lite)
    assert torch.equal(logits(twin, features), logits(lite, features))
    assert twin.proj_out.weight is twin.model.decoder.embed_tokens.weight
    assert twin.config.to_dict() == lite.config.to_dict() and twin.config.model_type == lite.config.model_type


def test_optimised_inference(models, lite, features) -> None:
    plain = logits(lite, features)
    processor = WhisperProcessor.from_pretrained(models / "compressed")
    arguments = {"language": "en", "task": "transcribe", "num_beams": 1}
    tokens = lite.generate(features, **arguments)
    lite.optimize_for_inference()
    fast = logits(lite, features)
    assert not torch.equal(fast, plain)
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(pickle.loads(pickle.dumps(lite)), features), fast)
    assert torch.equal(lite.generate(features, **arguments), tokens)
    assert processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    assert torch.equal(logits(lite.optimize_for_inference(False), features), plain)


def test_generate_compiles_with_a_static_cache(lite, features) -> None:
    arguments = {"language": "en", "task": "transcribe", "num_beams": 1, "cache_implementation": "static"}
    expected = lite.generate(features, **arguments)
    lite.forward = torch.compile(lite.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(lite.generate(features, **arguments), expected)


def test_embeddings(lite, features) -> None:
    assert lite.get_input_embeddings() is lite.model.decoder.embed_tokens
    expected = logits(lite, features)
    lite.resize_token_embeddings(1910)
    assert lite.config.vocab_size == 1910
    assert lite.proj_out.weight is lite.model.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(lite, features)[..., :1900], expected)


def test_hidden_states_and_attentions(lite, features) -> None:
    stock = lite.to_whisper()
    outputs = []
    for model in (lite, stock):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs.append(
                model(
                    features[:1],
                    decoder_input_ids=START,
                    output_hidden_states=True,
                    output_attentions=True,
                )
            )
    for name, length in {
        "encoder_hidden_states": 7,
        "encoder_attentions": 6,
        "decoder_hidden_states": 3,
        "decoder_attentions": 2,
        "cross_attentions": 2,
    }.items():
        ours, theirs = (getattr(output, name) for output in outputs)
        assert len(ours) == len(theirs) == length, name
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(lite, features, dtype) -> None:
    expected = logits(lite, features)
    half = lite.half() if dtype == torch.float16 else lite.to(dtype)
    assert float((logits(half, features).float() - expected).norm() / expected.norm()) < 0.03


FRESH = """
import sys
import soundfile
from transformers import pipeline
recognizer = pipeline("automatic-speech-recognition", model=sys.argv[1], trust_remote_code=True)
arguments = {"language": "en", "task": "transcribe", "num_beams": 1}
print(recognizer(soundfile.read(sys.argv[2])[0], return_timestamps=True, generate_kwargs=arguments))
assert "lite_whisper" not in sys.modules
"""


def test_pipeline_in_a_fresh_process(models, lite, tmp_path) -> None:
    """A file of many windows, with remote code only and an empty cache, gives the text of stock Whisper."""
    file = DIGITS / "longform/longform_000.flac"
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(models / "compressed"), str(file)],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    processor = WhisperProcessor.from_pretrained(models / "compressed")
    recognizer = pipeline(
        "automatic-speech-recognition",
        model=lite.to_whisper(),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    arguments = {"language": "en", "task": "transcribe", "num_beams": 1}
    expected = recognizer(soundfile.read(file)[0], return_timestamps=True, generate_kwargs=arguments)
    assert result.stdout.strip() == str(expected)


REFUSED = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, pipeline
folder = sys.argv[1]
for load in (
    AutoConfig.from_pretrained,
    AutoModel.from_pretrained,
    AutoModelForSpeechSeq2Seq.from_pretrained,
    lambda folder: pipeline("automatic-speech-recognition", model=folder),
):
    try:
        load(folder)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit(f"{load} ran remote code without permission")
assert not any("modeling_lite_whisper" in name for name in sys.modules)
"""


def test_remote_code_requires_permission(models, tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", REFUSED, str(models / "compressed")],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
