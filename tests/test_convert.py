"""`convert.py` as users run it: the folder it writes, moments kept for later, and how it fails."""

import csv
import errno
import filecmp
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from lite_whisper import LiteWhisperForConditionalGeneration, cli
from lite_whisper.common.errors import exit_code
from lite_whisper.convert import encoder_budget, main, parse_arguments
from lite_whisper.lowrank import sequential

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples/whisper-digits"
CLIPS = ROOT / "examples/digits/calibration"
TEST_CLIPS = ROOT / "examples/digits/test"
WINDOWS = 4
ENCODER = "model.encoder."
PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"]
COPIED = {
    "added_tokens.json",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
WRITTEN = {
    "README.md",
    "compression.json",
    "config.json",
    "configuration_lite_whisper.py",
    "inference_lite_whisper.py",
    "model.safetensors",
    "modeling_lite_whisper.py",
    "ranks.png",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices on many threads crawl where other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six clips, each shorter than a window."""
    folder = tmp_path_factory.mktemp("audio") / "speech"
    folder.mkdir()
    for index in range(6):
        shutil.copy(CLIPS / f"calibration_{index:03}.flac", folder)
    return folder


def arguments(output: Path, speech: Path, *more: str | Path) -> list[str]:
    """The command line of a small conversion by the published recipe; what `more` repeats counts."""
    options = ["--model", MODEL, "--output", output, "--num-samples", WINDOWS, "--seed", 3, "--recipe", "liteasr"]
    dataset = [] if "--dataset" in more else ["--dataset", speech]
    return [str(option) for option in (*options, *dataset, *more)]


@pytest.fixture(scope="module")
def moments_file(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    """What the conversion of `converted` kept of its calibration."""
    return tmp_path_factory.mktemp("moments") / "moments.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with its JSON files in a layout that transformers would not write."""
    folder = tmp_path_factory.mktemp("base") / MODEL.name
    shutil.copytree(MODEL, folder)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, base: Path, speech: Path, moments_file: Path) -> Path:
    """The result of a conversion; tests do not change it."""
    output = tmp_path_factory.mktemp("converted") / "lite"
    assert main(arguments(output, speech, "--model", base, "--moments", moments_file)) == 0
    return output


def report(folder: Path) -> dict[str, Any]:
    """The folder's `compression.json`."""
    return json.loads((folder / "compression.json").read_text())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too; folders are None."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def unnamed_contents(folder: Path) -> dict[str, bytes | None]:
    """The same of a model folder without its card, which tells the folder's name."""
    return {name: data for name, data in contents(folder).items() if name != "README.md"}


def run(*options: str) -> int:
    """Runs the command line in this process; returns the exit code."""
    try:
        return main(options)
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def only_message(stderr: str) -> str:
    """What stderr says besides progress bars and warnings of audio left out; fails unless that is one line."""
    lines = [line.strip("\x1b[A ") for line in re.split(r"[\r\n]+", stderr) if "%|" not in line]
    # torchao, which transformers imports where it is installed, complains of parts that this machine cannot load
    noise = ("skipped ", "left out ", "Failed to load ", "W1", "W0")
    messages = [line for line in lines if line and not line.startswith(noise)]
    assert len(messages) == 1, stderr
    return messages[0]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_the_result_folder_is_complete(converted: Path) -> None:
    assert {path.name for path in converted.iterdir()} == COPIED | WRITTEN
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]
    assert (converted / "ranks.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    # Whoever may read one of the files may read them all.
    assert len({path.stat().st_mode for path in converted.iterdir()}) == 1


def test_the_base_models_files_are_copied_unchanged(base: Path, converted: Path) -> None:
    assert filecmp.cmpfiles(base, converted, sorted(COPIED), shallow=False) == (sorted(COPIED), [], [])


def test_the_python_files_are_those_of_the_package(converted: Path) -> None:
    for name in ("configuration_lite_whisper.py", "inference_lite_whisper.py", "modeling_lite_whisper.py"):
        assert (converted / name).read_bytes() == (ROOT / name).read_bytes()


def test_config_names_type_ranks_and_auto_classes(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["model_type"] == "lite-whisper"
    assert config["architectures"] == ["LiteWhisperForConditionalGeneration"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
        "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
        "AutoModelForSpeechSeq2Seq": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    }
    assert config["low_rank_config"] == report(converted)["low_rank_config"]
    base = json.loads((MODEL / "config.json").read_text())
    changed = {name for name in base if base[name] != config.get(name)}
    assert changed - {"transformers_version"} == {"model_type", "architectures"}


def test_compression_json_says_what_was_done(converted: Path) -> None:
    said = report(converted)
    assert said["base_model"] == "whisper-digits"
    assert said["recipe"] == {"name": "liteasr", "thresholds": [0.99, 0.999], "rank_multiple": 16}
    calibration = said["calibration"]
    assert calibration["datasets"] == ["speech"]
    assert (calibration["seed"], calibration["num_samples"], calibration["frames"]) == (3, WINDOWS, WINDOWS * 300)
    assert calibration["skipped"] == []
    for name in ("lite-whisper", "torch", "transformers", "numpy"):
        assert said["versions"][name] == importlib.metadata.version(name)


def test_ranks_and_sizes_in_compression_json_are_those_of_the_weights(converted: Path) -> None:
    said, weights = report(converted), load_file(converted / "model.safetensors")
    assert [
        {
            projection.rpartition(".")[2]: weights[f"{ENCODER}layers.{layer}.{projection}.weight1"].shape[1]
            for projection in PROJECTIONS
            if f"{ENCODER}layers.{layer}.{projection}.weight1" in weights
        }
        for layer in range(6)
    ] == said["low_rank_config"]
    for tensors, figures in ((load_file(MODEL / "model.safetensors"), said["before"]), (weights, said["after"])):
        assert "proj_out.weight" not in tensors  # tied to the embedding, counted and stored once
        encoder = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(ENCODER))
        total = sum(tensor.numel() for tensor in tensors.values())
        assert figures == {"encoder_parameters": encoder, "total_parameters": total, "weight_bytes": 4 * total}
    assert said["after"]["encoder_parameters"] < said["before"]["encoder_parameters"] / 2


def test_variance_kept_is_that_of_the_outputs(converted: Path, tmp_path: Path, speech: Path) -> None:
    # The calibration saw four of the clips; with all six the order, which is the seed's, does not matter.
    assert main(arguments(tmp_path / "lite", speech, "--num-samples", "6")) == 0
    said = report(tmp_path / "lite")
    model = WhisperForConditionalGeneration.from_pretrained(MODEL).eval()
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    for layer, module in enumerate(model.get_encoder().layers):
        for name in PROJECTIONS:
            key = (layer, name.rpartition(".")[2])
            module.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, key=key: outputs.update({key: output.flatten(end_dim=1)})
            )
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(speech.iterdir())]
    extractor = WhisperProcessor.from_pretrained(MODEL).feature_extractor
    with torch.no_grad():
        model.get_encoder()(extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features)
    assert len(outputs) == 36
    for (layer, projection), output in outputs.items():
        variances = torch.linalg.svdvals((output - output.mean(dim=0)).double()).numpy() ** 2
        rank = said["low_rank_config"][layer].get(projection, len(variances))
        assert said["variance_kept"][layer][projection] == pytest.approx(variances[:rank].sum() / variances.sum(), 1e-5)


def test_no_file_tells_of_folders_on_this_machine(converted: Path) -> None:
    for name in WRITTEN - {"ranks.png"}:
        text = (converted / name).read_bytes()
        assert not [place for place in (ROOT, converted.parents[1], Path.home()) if str(place).encode() + b"/" in text]
    assert not re.search(r'"[~/]', (converted / "compression.json").read_text())


def test_what_is_not_compressed_is_the_base_models(converted: Path) -> None:
    before, after = load_file(MODEL / "model.safetensors"), load_file(converted / "model.safetensors")
    kept = before.keys() & after.keys()
    assert {name for name in before if not name.startswith(f"{ENCODER}layers")} <= kept
    assert all(torch.equal(before[name], after[name]) for name in kept if not name.endswith("bias"))


def convert_stored_in(dtype: torch.dtype, folder: Path, speech: Path, *options: str) -> tuple[Path, Path]:
    """Converts a copy of the miniature whose weights are stored in this dtype; returns its folder and the result's."""
    base, output = folder / "base", folder / "lite"
    shutil.copytree(MODEL, base, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {name: tensor.to(dtype) for name, tensor in load_file(MODEL / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    (base / "config.json").write_text(json.dumps(config))
    assert main(arguments(output, speech, "--model", base, *options)) == 0
    return base, output


STORED_AND_COMPUTED = [(torch.float32, "bfloat16"), (torch.float16, "float32"), (torch.bfloat16, "float32")]


@pytest.mark.parametrize(("stored", "computed"), STORED_AND_COMPUTED)
def test_the_model_is_saved_in_the_base_models_dtype_without_loss(
    stored: torch.dtype, computed: str, tmp_path: Path, speech: Path
) -> None:
    base, output = convert_stored_in(stored, tmp_path, speech, "--dtype", computed)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, output))
    assert {tensor.dtype for tensor in after.values()} == {stored}
    assert json.loads((output / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    decoder = [name for name in before if name.startswith("model.decoder.")]
    assert decoder and all(torch.equal(before[name], after[name]) for name in decoder)


@pytest.mark.parametrize(("stored", "computed"), STORED_AND_COMPUTED[:2])
def test_sizes_are_those_on_disk_whatever_the_calibration_computed_in(
    stored: torch.dtype, computed: str, tmp_path: Path, speech: Path
) -> None:
    folders = convert_stored_in(stored, tmp_path, speech, "--dtype", computed)
    for when, folder in zip(("before", "after"), folders, strict=True):
        stored_bytes = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
        assert report(folders[1])[when]["weight_bytes"] == stored_bytes


def test_the_table_compares_before_and_after(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "lite", speech)) == 0
    lines = capsys.readouterr().out.splitlines()
    before, after = report(tmp_path / "lite")["before"], report(tmp_path / "lite")["after"]
    for label, key in (("encoder parameters", "encoder_parameters"), ("weights on disk", "weight_bytes")):
        [line] = [line for line in lines if line.startswith(label)]
        expected = (f"{before[key] / 1e6:.2f}", f"{after[key] / 1e6:.2f}", f"{after[key] / before[key]:.1%}")
        assert all(figure in line for figure in expected)
    assert str(tmp_path / "lite") in lines[-1]
    assert not [line for line in lines if "word error rate" in line]


@pytest.mark.parametrize(
    ("names", "content", "options", "message"),
    [
        (["config.json", "notes.txt"], "{}", [], "--overwrite"),
        (["notes.txt"], "mine", ["--overwrite"], "not a folder with config"),
        (["notes.txt"], "mine", [], "not a folder with config"),
        ([], "mine", ["--overwrite"], "not a folder with config"),
    ],
    ids=["model without --overwrite", "no model", "no model, without --overwrite", "a file"],
)
def test_what_exists_is_refused_and_untouched(
    names: list[str],
    content: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    speech: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "old"
    if names:
        output.mkdir()
    for path in [output / name for name in names] or [output]:
        path.write_text(content)
    before = contents(tmp_path)
    assert run(*arguments(output, speech, *options)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(message, said) and str(output) in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("old", ["nothing", "empty folder", "model"])
def test_the_result_takes_the_place_of_what_may_be_replaced(
    old: str, tmp_path: Path, speech: Path, moments_file: Path, converted: Path
) -> None:
    output = tmp_path / "new" / "lite"
    if old != "nothing":
        output.mkdir(parents=True)
    if old == "model":
        for name in ("config.json", "stale.bin"):
            (output / name).write_text("{}")
    options = ["--overwrite"] if old == "model" else []
    assert main(arguments(output, speech, "--moments", moments_file, *options)) == 0
    assert {path.name for path in output.iterdir()} == COPIED | WRITTEN
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_kept_moments_spare_the_audio(tmp_path: Path, speech: Path) -> None:
    audio, moments = tmp_path / "audio", tmp_path / "new" / "moments.safetensors"
    shutil.copytree(speech, audio)
    other = ["--thresholds", "0.9:0.99", "--rank-multiple", "8"]
    assert main(arguments(tmp_path / "direct", audio, *other)) == 0
    assert main(arguments(tmp_path / "first", audio, "--moments", moments)) == 0
    assert [path.name for path in moments.parent.iterdir()] == [moments.name]
    shutil.rmtree(audio)
    assert main(arguments(tmp_path / "again", audio, "--moments", moments, *other)) == 0
    # Nor need the dataset, or how much of it was used, be told again.
    unnamed = ["--model", str(MODEL), "--output", str(tmp_path / "unnamed"), "--moments", str(moments), *other]
    assert main(unnamed) == 0
    direct = unnamed_contents(tmp_path / "direct")
    assert json.loads(direct["compression.json"] or b"")["recipe"]["thresholds"] == [0.9, 0.99]
    for name in ("again", "unnamed"):
        folder = unnamed_contents(tmp_path / name)
        assert folder.keys() == direct.keys()
        assert json.loads(folder["compression.json"] or b"") == json.loads(direct["compression.json"] or b"")
        assert [file for file in direct if folder[file] != direct[file]] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "4"], r"seed 3 there, 4 here"),
        (["--noise", "0:40"], r"noise \[\] there, \[0.0, 40.0\] here"),
        (["--num-samples", "5"], r"num_samples 4 there, 5 here"),
        (["--dtype", "bfloat16"], r"dtype float32 there, bfloat16 here"),
        (["--dataset", str(CLIPS)], rf"datasets .*speech.* there, .*{CLIPS}.* here"),
    ],
)
def test_moments_of_something_else_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    speech: Path,
    converted: Path,
    moments_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = moments_file.read_bytes()
    assert run(*arguments(tmp_path / "lite", speech, "--moments", moments_file, *options)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(message, said) and said.count(" there,") == 1 and str(moments_file) in said
    assert contents(tmp_path) == {} and moments_file.read_bytes() == kept


def without(*names: str) -> Callable[[Path], list[str | Path]]:
    """Arguments with a copy of the model's folder that lacks these files (and the weights)."""

    def make(folder: Path) -> list[str | Path]:
        shutil.copytree(MODEL, folder / "base", ignore=shutil.ignore_patterns("*.safetensors", *names))
        return ["--model", folder / "base"]

    return make


def of_type(config: dict[str, Any]) -> Callable[[Path], list[str | Path]]:
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
    return ["--model", folder / "base", "--num-samples", "1", "--rank-multiple", "64"]


def without_transcripts(folder: Path) -> list[str | Path]:
    shutil.copy(TEST_CLIPS / "test_000.flac", folder)
    return ["--evaluate", folder / "test_000.flac"]


def with_broken_moments(folder: Path) -> list[str | Path]:
    (folder / "moments.safetensors").write_bytes(b"broken")
    return ["--moments", folder / "moments.safetensors"]


def with_output_below_a_file(folder: Path) -> list[str | Path]:
    (folder / "recording.wav").touch()
    return ["--output", folder / "recording.wav" / "lite"]


def always(*options: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: list(options)


SILENCE = np.zeros(100_000)
NOT_A_NUMBER = np.full(100_000, np.nan)

BAD_INPUT: dict[str, tuple[Callable[[Path], list[str | Path]], str]] = {
    "missing dataset": (always("--dataset", "/no/such/folder"), r"/no/such/folder.*check the path.*--dataset"),
    "empty dataset": (with_audio(), r"recordings holds no audio.*\.wav.*metadata"),
    "broken audio only": (with_audio(b"broken", b""), r"none of the 2 clips in .*recordings.*\d\.wav.*give wav"),
    "silent audio": (with_audio(SILENCE, SILENCE), r"silent.*check the recordings"),
    "NaN in audio": (with_audio(NOT_A_NUMBER), r"none of the 1 clips in .*recordings.*0\.wav.*NaN"),
    "NaN in attention": (
        with_nan("model.encoder.layers.2.self_attn.v_proj.weight"),
        r"the weights of .* hold NaN or infinity in model\.encoder\.layers\.2\.self_attn\.v_proj\.weight; give",
    ),
    "NaN in the MLP": (with_nan("model.encoder.layers.4.fc1.bias"), r"hold NaN or infinity in .*layers\.4\.fc1\.bias"),
    "fewer frames than a rank needs": (
        with_one_second_window,
        r"rank 64 of layer 0 q_proj needs 65 frames.*there are 50.*15 more",
    ),
    "no model": (always("--model", "/no/such/model"), r"/no/such/model.*check the path"),
    "relative path of no model": (always("--model", "no/such/model"), r"no/such/model.*Give a folder, or a Hub id"),
    "BERT": (of_type({"model_type": "bert"}), r"base is a bert, not a Whisper; give a Whisper"),
    "unknown type": (of_type({}), r"base is a model of unknown type, not a Whisper; give a Whisper"),
    "compressed model": (
        of_type({"model_type": "lite-whisper"}),
        r"base is compressed already; give the Whisper",
    ),
    "no config": (without("config.json"), r"base is a model of unknown type, not a Whisper; give a Whisper"),
    "no feature extractor": (without("preprocessor_config.json"), r"base has no preprocessor_config\.json; copy it"),
    "no tokenizer": (without("tokenizer*", "vocab.json"), r"base has no tokenizer; copy its files"),
    "no weights": (without(), r"model\.safetensors.*base"),
    "no transcripts": (without_transcripts, r"--evaluate needs transcripts"),
    "missing test set": (always("--evaluate", "/no/such/folder"), r"/no/such/folder"),
    "broken moments": (with_broken_moments, r"moments\.safetensors is not a file of moments.*remove it"),
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
    said = capsys.readouterr().err.partition("convert.py: ")  # after argparse's usage
    said = only_message(said[2] or said[0])
    assert said.startswith("error: ")
    assert re.search(message, said)
    assert contents(tmp_path) == before


def test_the_result_is_refused_as_a_base_model(
    converted: Path, tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(tmp_path / "lite", speech, "--model", converted)) == 1
    assert "is compressed already" in only_message(capsys.readouterr().err)
    assert contents(tmp_path) == {}


def test_broken_files_among_good_ones_are_skipped_named_and_counted(
    tmp_path: Path, speech: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio = tmp_path / "audio"
    shutil.copytree(speech, audio)
    (audio / "broken.wav").write_bytes(b"broken")
    soundfile.write(audio / "nan.wav", NOT_A_NUMBER, 16_000, subtype="FLOAT")
    soundfile.write(audio / "silent.wav", SILENCE, 16_000)  # two windows long
    assert main(arguments(tmp_path / "lite", audio, "--num-samples", "100")) == 0
    for message in ("skipped audio/broken.wav", "skipped audio/nan.wav", "skipped 2 clips", "2 silent windows"):
        assert message in caplog.text
    calibration = report(tmp_path / "lite")["calibration"]
    assert calibration["frames"] == 6 * 300
    assert sorted(entry.partition(": ")[0] for entry in calibration["skipped"]) == ["audio/broken.wav", "audio/nan.wav"]
    assert str(tmp_path) not in (tmp_path / "lite" / "compression.json").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--thresholds", "0.99"],
        ["--thresholds", "a:b"],
        ["--thresholds", "0.9:0.9:0.9"],
        ["--thresholds", "0:0.9"],
        ["--thresholds", "0.9:1"],
        ["--thresholds", "nan:0.9"],
        ["--num-samples", "0"],
        ["--num-samples", "-1"],
        ["--num-samples", "many"],
        ["--num-samples", "1.5"],
        ["--batch-size", "0"],
        ["--rank-multiple", "0"],
        ["--rank-multiple", "-16"],
        ["--dtype", "int8"],
        ["--normalizer", "french"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_bad_options_end_before_any_work(
    options: list[str], tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(tmp_path / "lite", speech, *options)) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("usage: ") and options[0] in stderr.splitlines()[-1]
    assert "calibration:" not in stderr and contents(tmp_path) == {}


@pytest.mark.parametrize(("option", "others"), [("--dataset", ["--output", "x"]), ("--output", ["--dataset", "x"])])
def test_a_model_needs_dataset_and_output(option: str, others: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", str(MODEL), *others) == 2
    assert f"{option} is needed" in capsys.readouterr().err


def test_datasets_may_be_named_together_or_one_by_one() -> None:
    common = ["--model", "m", "--output", "o", "--dataset", "a", "b"]
    assert parse_arguments([*common, "--dataset", "c"]).dataset == ["a", "b", "c"]
    assert parse_arguments(common).num_samples == 100


def test_without_arguments_the_miniature_is_converted_and_evaluated() -> None:
    assumed = parse_arguments([])
    assert [Path(name).resolve() for name in (assumed.model, *assumed.dataset, *assumed.evaluate)] == [
        MODEL,
        CLIPS,
        TEST_CLIPS,
    ]
    assert assumed.output == Path("build/lite-whisper-digits") and not assumed.overwrite


def test_evaluation_adds_word_error_rate_and_encoder_time(
    tmp_path: Path, speech: Path, moments_file: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two of the four transcripts are wrong, so that the rate of the base model is not zero.
    rows = [line.split(",")[:2] for line in (TEST_CLIPS / "metadata.csv").read_text().splitlines()[1:5]]
    references = [text if index % 2 else f"Nine, {text}!" for index, (_, text) in enumerate(rows)]
    (tmp_path / "test").mkdir()
    lines = [json.dumps({"file_name": name, "text": text}) for (name, _), text in zip(rows, references, strict=True)]
    (tmp_path / "test" / "metadata.jsonl").write_text("\n".join(lines))
    for name, _ in rows:
        shutil.copy(TEST_CLIPS / name, tmp_path / "test")
    output, harsh = tmp_path / "lite", ["--thresholds", "0.3:0.3", "--rank-multiple", "1"]
    options = ["--moments", moments_file, *harsh, "--evaluate", tmp_path / "test", "--batch-size", "3"]
    assert main(arguments(output, speech, *options)) == 0
    table, said = capsys.readouterr().out, report(output)
    assert re.search(r"^word error rate .*%", table, re.M) and re.search(r"^encoder, per window .* ms ", table, re.M)

    processor, normalize = WhisperProcessor.from_pretrained(MODEL), BasicTextNormalizer()
    models = {
        "before": WhisperForConditionalGeneration.from_pretrained(MODEL),
        "after": LiteWhisperForConditionalGeneration.from_pretrained(output),
    }
    for when, model in models.items():
        texts = []
        for name, _ in rows:
            samples, rate = soundfile.read(TEST_CLIPS / name)
            features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
            texts += processor.batch_decode(
                model.generate(features, num_beams=1, task="transcribe"), skip_special_tokens=True
            )
        expected = 100 * jiwer.wer([normalize(text) for text in references], [normalize(text) for text in texts])
        assert said[when]["word_error_rate"] == pytest.approx(expected)
        assert said[when]["encoder_milliseconds"] > 0
        assert f"{expected:.2f} %" in table
    assert 0 < said["before"]["word_error_rate"] < said["after"]["word_error_rate"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted.*run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
    ],
    ids=["Ctrl-C", "full disk"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_failing_while_writing_leaves_everything_as_it_was(
    error: BaseException,
    code: int,
    message: str,
    overwrite: bool,
    tmp_path: Path,
    speech: Path,
    moments_file: Path,
    converted: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        # By now the rest of the folder has been written, under another name.
        assert [path.name for path in tmp_path.rglob("model.safetensors")]
        raise error

    monkeypatch.setattr("lite_whisper.conversion.saving.plot_ranks", fail)
    if overwrite:
        (tmp_path / "lite").mkdir()
        (tmp_path / "lite" / "config.json").write_text("{}")
    before = contents(tmp_path)
    options = ["--moments", moments_file, *(["--overwrite"] if overwrite else [])]
    assert run(*arguments(tmp_path / "lite", speech, *options)) == code
    assert re.search(message, only_message(capsys.readouterr().err))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
    ],
    ids=str,
)
def test_a_full_disk_is_told_with_what_to_do(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_code(fail) == 1
    assert re.search(r"^error: .*; free some space or choose another disk", capsys.readouterr().err)


def test_a_really_full_disk(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite" / "config.json").write_text("{}")
    before = contents(tmp_path)
    process = subprocess.run(
        [sys.executable, ROOT / "convert.py", *arguments(tmp_path / "lite", speech, "--overwrite")],
        # No file may grow beyond 2 MB: the tokenizer can be written, the weights cannot.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert re.search(r"^error: .*; free some space or choose another disk", only_message(process.stderr))
    assert contents(tmp_path) == before


def test_ctrl_c_while_calibrating(tmp_path: Path) -> None:
    many = ["--dataset", *[str(CLIPS)] * 20, "--num-samples", "1200", "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "convert.py", *arguments(tmp_path / "new" / "lite", CLIPS, *many)],
        # Where pytest runs in the background of a shell, its children would inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr and process.stdout
        said = ""
        for line in process.stderr:  # a progress bar ends in a carriage return, which is a line's end here
            said += line
            if re.search(r"calibration: .* [1-9]\d*/1200", line):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert re.search("interrupted.*run the same command again", only_message(said))
    assert "1200/1200" not in said and contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("command", "code", "stream", "message"),
    [
        ([str(Path(sys.executable).with_name("lite-whisper")), "convert", "--help"], 0, "stdout", "--thresholds"),
        ([sys.executable, "convert.py", "nonsense"], 2, "stderr", "unrecognized arguments: nonsense"),
    ],
    ids=["lite-whisper convert --help", "python convert.py nonsense"],
)
def test_commands(command: list[str], code: int, stream: str, message: str) -> None:
    process = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert process.returncode == code
    assert message in getattr(process, stream) and "Traceback" not in process.stderr


@pytest.mark.parametrize("words", [[], ["nonsense"]], ids=str)
def test_the_console_script_names_its_commands(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lite-whisper", *words])
    assert cli.main() == 2
    assert re.match("usage: lite-whisper .*convert", only_message(capsys.readouterr().err))


@pytest.fixture(scope="module")
def loss_aware(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    """The result of the default recipe with a budget."""
    folder = tmp_path_factory.mktemp("loss-aware") / "lite"
    options = ["--recipe", "loss-aware", "--encoder-params", "1.5M", "--rank-multiple", "4"]
    assert main(arguments(folder, speech, *options)) == 0
    return folder


def test_the_default_recipe_meets_its_budget(loss_aware: Path) -> None:
    tensors = load_file(loss_aware / "model.safetensors")
    encoder = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("model.encoder."))
    assert 0.995 * 1.5e6 < encoder <= 1.5e6
    said = json.loads((loss_aware / "compression.json").read_text())
    assert said["recipe"] == {"name": "loss-aware", "encoder_parameters": 1_500_000, "rank_multiple": 4}
    assert said["calibration"]["languages"] == {"en": WINDOWS} and said["calibration"]["noise"] == [0.0, 40.0]
    assert [path.name for path in loss_aware.parent.iterdir()] == ["lite"]
    assert said["after"]["encoder_parameters"] == encoder
    for ranks, losses in zip(said["low_rank_config"], said["predicted_loss"], strict=True):
        assert all(rank % 4 == 0 for rank in ranks.values())
        assert all((loss > 0) == (name in ranks) for name, loss in losses.items())
    assert {path.name for path in loss_aware.iterdir()} == COPIED | WRITTEN


@pytest.mark.parametrize(
    ("options", "name", "parameters", "expected"),
    [
        (["--encoder-params", "313M"], "whisper-large-v3-turbo", 635_000_000, 313_000_000),
        (["--encoder-params", "2000"], "mine", 5_000, 2_000),
        (["--ratio", "0.5"], "mine", 5_001, 2_500),
        (["--preset", "fast"], "whisper-large-v3-turbo", 635_000_000, 313_001_000),
        (["--preset", "acc"], "whisper-base", 19_820_000, 18_641_000),
        (["--preset", "fast"], "mine", 636_000, 309_000),
        ([], "whisper-large-v3", 635_000_000, 377_001_000),
        ([], "mine", 636_000, 378_000),
    ],
)
def test_sizes_that_may_be_asked_for(options: list[str], name: str, parameters: int, expected: int) -> None:
    parsed = parse_arguments(["--model", f"org/{name}", "--dataset", "x", "--output", "y", *options])
    assert parsed.recipe == "loss-aware"
    assert encoder_budget(parsed, parameters, 1_000) == expected


def test_kept_moments_serve_both_recipes(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensitivities join the moments in their file; neither is computed twice."""
    kept = ["--moments", tmp_path / "moments.safetensors"]
    default = ["--recipe", "loss-aware", "--ratio", "0.3", "--rank-multiple", "4", "--noise", "none"]
    assert main(arguments(tmp_path / "published", speech, *kept)) == 0
    monkeypatch.setattr("lite_whisper.convert.collect_moments", None)
    assert main(arguments(tmp_path / "first", speech, *kept, *default)) == 0
    monkeypatch.setattr("lite_whisper.convert.collect_sensitivities", None)
    assert main(arguments(tmp_path / "again", speech, *kept, *default)) == 0
    first, again = (unnamed_contents(tmp_path / name) for name in ("first", "again"))
    assert first == again
    assert main(arguments(tmp_path / "published-again", speech, *kept)) == 0
    assert unnamed_contents(tmp_path / "published-again") == unnamed_contents(tmp_path / "published")


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--recipe", "loss-aware", "--ratio", "0.3", "--rank-multiple", "4"]
    assert main(arguments(tmp_path / "undisturbed", speech, *options)) == 0
    fit, calls = sequential._fit, 0

    def stop(*more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return fit(*more)

    monkeypatch.setattr(sequential, "_fit", stop)
    assert main(arguments(tmp_path / "lite", speech, *options)) == 130
    assert re.search("interrupted; run the same command again", only_message(capsys.readouterr().err))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lite.unfinished", "undisturbed"]
    layers = [path.name for path in (tmp_path / "lite.unfinished" / "layers").iterdir()]
    assert sorted(layers) == ["layer_00.safetensors", "layer_01.safetensors"]
    # With other settings it is refused, and what was done stays.
    assert main(arguments(tmp_path / "lite", speech, *options, "--seed", "4")) == 1
    assert "seed 3 there, 4 here" in only_message(capsys.readouterr().err)
    assert main(arguments(tmp_path / "lite", speech, *options, "--ratio", "0.4")) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(r"layers was made from something else: ranks 0 \w+ \d+ there, \d+ here", said)
    for name in ("collect_moments", "collect_sensitivities"):
        monkeypatch.setattr(f"lite_whisper.convert.{name}", None)
    calls = 100
    assert main(arguments(tmp_path / "lite", speech, *options)) == 0
    assert calls == 100 + 4 * 4  # four layers with four stages each
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lite", "undisturbed"]
    assert unnamed_contents(tmp_path / "lite") == unnamed_contents(tmp_path / "undisturbed")


def test_a_sweep_compares_both_recipes(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held-out"
    shutil.copytree(TEST_CLIPS, held_out, ignore=shutil.ignore_patterns("*_0[1-9]*", "*_1*"))
    listing = (held_out / "metadata.csv").read_text().splitlines(keepends=True)
    (held_out / "metadata.csv").write_text("".join(listing[:9]))
    command = ["--model", MODEL, "--dataset", speech, "--evaluate", held_out, "--num-samples", WINDOWS]
    command += ["--rank-multiple", 4, "--sweep", "0.15,0.3", "--output", tmp_path / "curve"]
    command = [str(option) for option in command]

    def interrupted(*more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lite_whisper.convert.plot_pareto", interrupted)
        assert main(command) == 130
    assert not (tmp_path / "curve").exists()
    capsys.readouterr()
    with monkeypatch.context() as patch:  # all points are measured already
        patch.setattr("lite_whisper.convert.measure", None)
        assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve", "held-out"]
    assert {path.name for path in (tmp_path / "curve").iterdir()} == {"sweep.csv", "pareto.png"}
    with (tmp_path / "curve" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    base, *others = rows
    assert [(row["recipe"], float(row["ratio"])) for row in rows] == [
        ("uncompressed", 1.0),
        ("liteasr", 0.15),
        ("loss-aware", 0.15),
        ("liteasr", 0.3),
        ("loss-aware", 0.3),
    ]
    for row in others:
        share = int(row["encoder_parameters"]) / int(base["encoder_parameters"])
        assert share <= float(row["ratio"]) and share > float(row["ratio"]) - (
            0.002 if "loss" in row["recipe"] else 0.02
        )
    table = capsys.readouterr().out
    assert all(f"{float(row['word_error_rate']):.2f} %" in table for row in rows)
    assert main(command) == 1
    assert "--overwrite" in only_message(capsys.readouterr().err)
    # One point is the model that the recipe gives by itself.
    alone = [*command, "--output", str(tmp_path / "alone"), "--ratio", "0.15"]
    del alone[alone.index("--sweep") : alone.index("--sweep") + 2]
    assert main(alone) == 0
    after = report(tmp_path / "alone")["after"]
    assert after["word_error_rate"] == pytest.approx(float(others[1]["word_error_rate"]))
    assert after["encoder_parameters"] == int(others[1]["encoder_parameters"])


def test_a_budget_that_is_too_small(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "loss-aware", "--ratio", "0.05"]
    assert main(arguments(tmp_path / "lite", speech, *options)) == 1
    assert "the smallest ranks cost" in only_message(capsys.readouterr().err)
    assert not (tmp_path / "lite").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "liteasr", "--ratio", "0.5"],
        ["--recipe", "loss-aware", "--thresholds", "0.9:0.9"],
        ["--recipe", "liteasr", "--sweep", "0.5", "--evaluate", "x"],
        ["--sweep", "0.5"],
        ["--sweep", "0.5,2", "--evaluate", "x"],
        ["--sweep", "0.5", "--ratio", "0.5", "--evaluate", "x"],
        ["--noise", "40:0"],
        ["--noise", "nan:3"],
        ["--noise", "loud"],
        ["--ratio", "0.5", "--preset", "fast"],
        ["--ratio", "1.5"],
        ["--target-speedup", "1.5"],
        ["--cost", "time"],
        ["--profile", "profile.json"],
        ["--profile", "profile.json", "--target-speedup", "1.5", "--cost", "parameters"],
        ["--profile", "profile.json", "--target-speedup", "-1"],
        ["--profile", "profile.json", "--target-speedup", "1.5", "--ratio", "0.5"],
        ["--profile", "profile.json", "--cost", "time", "--recipe", "liteasr"],
        ["--encoder-params", "many"],
        ["--encoder-params", "0M"],
    ],
)
def test_sizes_and_recipes_that_do_not_go_together(options: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--model", "x", "--dataset", "x", "--output", "y", *options])
    assert end.value.code == 2
