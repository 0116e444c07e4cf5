"""The encoder of a LiteWhisper in faster-whisper, against transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from conversions import MODEL, arguments, contents, only_message
from conversions import main as convert
from faster_whisper import BatchedInferencePipeline
from hub_stand_in import HubStandIn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import Clip
from lite_whisper.cli import export as command
from lite_whisper.common.errors import InputError
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.integrations.faster_whisper import LiteWhisperModel, replace_zero_padding
from lite_whisper.models.folders import load_model

GREEDY = {"beam_size": 1, "temperature": 0, "language": "en", "without_timestamps": True}


@pytest.fixture(scope="module")
def lite(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as low-rank pairs that knows its padding."""
    folder = tmp_path_factory.mktemp("lite") / "lite"
    assert convert(arguments(folder, speech, "--constant-padding")) == 0
    return folder


def exported(model: Path, output: Path, *options: str) -> Path:
    assert command.main([str(model), "--format", "faster-whisper", "--output", str(output), *options]) == 0
    return output


@pytest.fixture(scope="module")
def folder(lite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(lite, tmp_path_factory.mktemp("exported") / "lite")


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> LiteWhisperModel:
    return LiteWhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)


def text_of(recognizer: LiteWhisperModel | BatchedInferencePipeline, clip: Clip, **options) -> str:
    segments, _ = recognizer.transcribe(clip.samples, **GREEDY | options)
    return "".join(segment.text for segment in segments).strip()


def test_it_encodes_what_the_model_does(
    recognizer: LiteWhisperModel, lite: Path, processor: WhisperProcessor, test_clips: list[Clip]
) -> None:
    """On features that end as faster-whisper's do, one clip and a batch."""
    samples = [clip.samples for clip in test_clips[:3]]
    features = processor.feature_extractor(samples, sampling_rate=16000, return_tensors="np").input_features
    ends = [len(each) // 160 + 2 for each in samples]
    padded = np.zeros((3, 80, 3000), np.float32)
    for clip, of, end in zip(padded, features, ends, strict=True):
        clip[:, :end] = of[:, :end]
    with torch.no_grad():
        wanted = load_model(str(lite))[0].get_encoder()(torch.from_numpy(features))[0].numpy()
    np.testing.assert_allclose(np.array(recognizer.encode(padded)), wanted, atol=1e-4)
    np.testing.assert_allclose(np.array(recognizer.encode(padded[1])), wanted[1:2], atol=1e-4)


def test_padding_is_not_computed(recognizer: LiteWhisperModel, test_clips: list[Clip]) -> None:
    lengths = []
    hook = recognizer.encoder.layers[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    text_of(recognizer, test_clips[0])
    hook.remove()
    assert lengths and max(lengths) < recognizer.encoder.config.max_source_positions


def test_transcripts_are_those_of_transformers(
    recognizer: LiteWhisperModel, lite: Path, test_clips: list[Clip]
) -> None:
    """faster-whisper leaves out the last frame, so a doubtful last digit may be another."""
    wanted = [text.strip() for text in transcribe(*load_model(str(lite)), test_clips, 4).texts]
    found = [text_of(recognizer, clip) for clip in test_clips]
    assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= len(wanted) - 3


def test_a_stock_whisper_with_an_int8_decoder(base_model, processor, test_clips: list[Clip], tmp_path: Path) -> None:
    folder = exported(MODEL, tmp_path / "stock", "--dtype", "int8")
    recognizer = LiteWhisperModel(str(folder), device="cpu", compute_type="int8", optimize_for_inference=False)
    assert recognizer.model.compute_type == "int8_float32" and recognizer.encoder.dtype == torch.float32
    wanted = [text.strip() for text in transcribe(base_model, processor, test_clips, 4).texts]
    found = [text_of(recognizer, clip) for clip in test_clips]
    assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= len(wanted) - 3


def test_all_that_faster_whisper_does(recognizer: LiteWhisperModel, test_clips: list[Clip]) -> None:
    """Beams, voice activity detection, word timestamps, languages; batches give what one clip at a time does."""
    clip = test_clips[1]
    segments, info = recognizer.transcribe(
        clip.samples, beam_size=3, vad_filter=True, word_timestamps=True, vad_parameters={"threshold": 0.2}
    )
    words = [word for segment in segments for word in segment.words or []]
    assert info.language == "en" and words
    assert all(0 <= word.start <= word.end <= len(clip.samples) / 16000 + 0.1 for word in words)
    batched = BatchedInferencePipeline(recognizer)
    whole = [{"start": 0.0, "end": len(clip.samples) / 16000}]
    assert text_of(batched, clip, clip_timestamps=whole, batch_size=2) == text_of(recognizer, clip)


def test_silence_follows_the_sound() -> None:
    features = np.random.default_rng(0).normal(size=(2, 4, 10)).astype(np.float32)
    features[0, :, 6:] = 0
    features[1] = 0
    found = replace_zero_padding(features)
    np.testing.assert_array_equal(found[0, :, :6], features[0, :, :6])
    np.testing.assert_array_equal(found[0, :, 6:], features[0].max() - 2)
    np.testing.assert_array_equal(found[1], 0)


def test_the_folder(folder: Path, base_model: WhisperForConditionalGeneration) -> None:
    """The encoder is there once: CTranslate2's model has one layer of it, without which it does not load."""
    files = set(contents(folder))
    assert {"model.bin", "config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json"} < files
    assert {"encoder/config.json", "encoder/model.safetensors"} < files
    assert not [name for name in files if name.endswith(".py")]
    heads = json.loads((MODEL / "generation_config.json").read_text()).get("alignment_heads")
    assert heads is None or json.loads((folder / "config.json").read_text())["alignment_heads"] == heads
    others = sum(parameter.numel() for parameter in base_model.get_encoder().layers[1:].parameters())
    parameters = sum(parameter.numel() for parameter in base_model.parameters()) - others
    assert (folder / "model.bin").stat().st_size == pytest.approx(4 * parameters, rel=0.03)


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no encoder; run lite-whisper export"):
        LiteWhisperModel(str(MODEL))
    with pytest.raises(InputError, match="cannot find nobody/nothing"):
        LiteWhisperModel("nobody/nothing")


def test_options_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="revision is not supported"):
        LiteWhisperModel(str(folder), "cpu", revision="main")


def test_a_repository_on_the_hub(folder: Path, tmp_path: Path) -> None:
    program = (
        "from lite_whisper.integrations.faster_whisper import LiteWhisperModel as Model\n"
        "print(Model('org/lite', device='cpu', optimize_for_inference=False).encoder.config.d_model)"
    )
    with HubStandIn({"org/lite": folder}) as hub:
        environment = os.environ | hub.environment(tmp_path / "cache")
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == json.loads((MODEL / "config.json").read_text())["d_model"]


def test_unsupported_dtypes_are_rejected(lite: Path, tmp_path: Path, capsys) -> None:
    for wrong in ("float32,int8", "int4"):
        options = [str(lite), "--format", "faster-whisper", "--output", str(tmp_path / "x"), "--dtype", wrong]
        assert command.main(options) == 1
        assert "dtype" in only_message(capsys.readouterr().err)


def test_states_outlive_the_call(recognizer: LiteWhisperModel) -> None:
    """CTranslate2 reads them where torch has put them."""
    features = np.random.default_rng(0).normal(size=(80, 3000)).astype(np.float32)
    states = recognizer.encode(features)
    before = np.array(states)
    for _ in range(3):
        recognizer.encode(features + 1)
    assert isinstance(states, ctranslate2.StorageView)
    np.testing.assert_array_equal(np.array(states), before)
