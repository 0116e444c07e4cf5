"""Bad input ends in one line that says what is wrong and what to do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conversions import MODEL, NOT_A_NUMBER, SILENCE, TEST_CLIPS, arguments, contents, only_message, run
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration


def without(*names: str) -> Callable[[Path], list[str | Path]]:
    """Arguments with a copy of the model's folder that lacks these files (and the weights)."""

    def make(folder: Path) -> list[str | Path]:
        shutil.copytree(MODEL, folder / "base", ignore=shutil.ignore_patterns("*.safetensors", *names))
        return ["--base-model", folder / "base"]

    return make


def with_config(config: dict[str, Any]) -> Callable[[Path], list[str | Path]]:
    """Arguments with a model folder of this config."""

    def make(folder: Path) -> list[str | Path]:
        options = without("config.json")(folder)
        (folder / "base" / "config.json").write_text(json.dumps(config))
        return options

    return make


def with_nan(name: str) -> Callable[[Path], list[str | Path]]:
    """Arguments with a copy of the model in which one element of this tensor is NaN."""

    def make(folder: Path) -> list[str | Path]:
        options = without()(folder)
        weights = load_file(MODEL / "model.safetensors")
        weights[name].view(-1)[7] = torch.nan
        save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
        return options

    return make


def with_audio(*recordings: np.ndarray | bytes | None) -> Callable[[Path], list[str | Path]]:
    """Arguments with a folder of these recordings; bytes are written as they are."""

    def make(folder: Path) -> list[str | Path]:
        (folder / "recordings").mkdir()
        for index, recording in enumerate(recordings):
            path = folder / "recordings" / f"{index}.wav"
            if isinstance(recording, bytes):
                path.write_bytes(recording)
            else:
                soundfile.write(path, recording, 16_000, subtype="FLOAT")
        return ["--dataset", folder / "recordings"]

    return make


def with_one_second_window(folder: Path) -> list[str | Path]:
    """Arguments with a model that sees 50 frames of one window, and ranks that start at 64."""
    without("config.json", "generation_config.json", "preprocessor_config.json")(folder)
    extractor = json.loads((MODEL / "preprocessor_config.json").read_text())
    extractor |= {"chunk_length": 1, "n_samples": 16_000, "nb_max_frames": 100}
    (folder / "base" / "preprocessor_config.json").write_text(json.dumps(extractor))
    config = WhisperConfig(
        **{name: json.loads((MODEL / "config.json").read_text())[name] for name in ("vocab_size", "eos_token_id")},
        d_model=128,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=512,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=512,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=0,
        decoder_start_token_id=0,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder / "base")
    return ["--base-model", folder / "base", "--num-windows", "1", "--rank-multiple", "64"]


def without_transcripts(folder: Path) -> list[str | Path]:
    shutil.copy(TEST_CLIPS / "test_000.flac", folder)
    return ["--evaluate", folder / "test_000.flac"]


def with_broken_calibration_file(folder: Path) -> list[str | Path]:
    (folder / "moments.safetensors").write_bytes(b"broken")
    return ["--calibration-file", folder / "moments.safetensors"]


def with_output_below_a_file(folder: Path) -> list[str | Path]:
    (folder / "recording.wav").touch()
    return ["--output", folder / "recording.wav" / "lite"]


def always(*options: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: list(options)


BAD_INPUT: dict[str, tuple[Callable[[Path], list[str | Path]], str]] = {
    "missing dataset": (always("--dataset", "/no/such/folder"), r"/no/such/folder.*check the path.*--dataset"),
    "empty dataset": (with_audio(), r"recordings contains no audio.*\.wav.*metadata"),
    "broken audio only": (with_audio(b"broken", b""), r"none of the 2 clips in .*recordings.*\d\.wav"),
    "silent audio": (with_audio(SILENCE, SILENCE), r"silent.*check the recordings"),
    "NaN in audio": (with_audio(NOT_A_NUMBER), r"none of the 1 clips in .*recordings.*0\.wav.*NaN"),
    "NaN in attention": (
        with_nan("model.encoder.layers.2.self_attn.v_proj.weight"),
        r"the weights of .* contain NaN or infinity in model\.encoder\.layers\.2\.self_attn\.v_proj\.weight; give",
    ),
    "NaN in the MLP": (
        with_nan("model.encoder.layers.4.fc1.bias"),
        r"contain NaN or infinity in .*layers\.4\.fc1\.bias",
    ),
    "fewer frames than a rank needs": (
        with_one_second_window,
        r"rank 64 of layer 0 q_proj needs at least 65 frames.*got 50; add at least 15 more",
    ),
    "no model": (always("--base-model", "/no/such/model"), r"/no/such/model.*check the path"),
    "relative path of no model": (
        always("--base-model", "no/such/model"),
        r"no/such/model.*Give a folder, or a Hub id",
    ),
    "BERT": (with_config({"model_type": "bert"}), r"base is a bert, not a Whisper; give a Whisper"),
    "unknown type": (with_config({}), r"base is a model of unknown type, not a Whisper; give a Whisper"),
    "compressed model": (
        with_config({"model_type": "lite-whisper"}),
        r"base is already compressed; give its base model",
    ),
    "no config": (without("config.json"), r"base is a model of unknown type, not a Whisper; give a Whisper"),
    "no feature extractor": (without("preprocessor_config.json"), r"base has no preprocessor_config\.json; copy it"),
    "no tokenizer": (without("tokenizer*", "vocab.json"), r"base has no tokenizer; copy its files"),
    "no weights": (without(), r"base has no model\.safetensors or shards of it"),
    "no transcripts": (
        without_transcripts,
        r"the evaluation requires transcripts: give a folder with metadata\.csv, or a dataset .*\(--evaluate\)$",
    ),
    "missing test set": (always("--evaluate", "/no/such/folder"), r"/no/such/folder"),
    "broken calibration file": (
        with_broken_calibration_file,
        r"moments\.safetensors is not a file of calibration statistics.*delete it",
    ),
    "thresholds": (always("--thresholds", "0.99:1.5"), r"1\.5.*between 0 and 1"),
    "output below a file": (with_output_below_a_file, r"recording\.wav.*--output"),
    "unknown device": (always("--device", "nonsense"), r"nonsense"),
    "absent device": (always("--device", "cuda:99"), r"cuda:99"),
}


@pytest.mark.parametrize("make_options, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_in_one_message(
    make_options: Callable[[Path], list[str | Path]],
    message: str,
    tmp_path: Path,
    speech: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = make_options(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    assert run(*arguments(tmp_path / "lite", speech, *options)) in (1, 2)
    said = capsys.readouterr().err.partition("lite-whisper convert: ")  # after argparse's usage
    said = only_message(said[2] or said[0])
    assert said.startswith("error: ")
    assert re.search(message, said)
    assert contents(tmp_path) == before
