"""The model folder written by a conversion: complete, documented and without local paths."""

import filecmp
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import jiwer
import pytest
import soundfile
import torch
from conversions import (
    COPIED,
    ENCODER,
    MODEL,
    NOT_A_NUMBER,
    PROJECTIONS,
    ROOT,
    SILENCE,
    TEST_CLIPS,
    WINDOWS,
    WRITTEN,
    arguments,
    report,
)
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.cli.convert import main


def test_the_result_folder_is_complete(converted: Path) -> None:
    assert {path.name for path in converted.iterdir()} == COPIED | WRITTEN
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]
    assert (converted / "ranks.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    # Whoever may read one of the files may read them all.
    assert len({path.stat().st_mode for path in converted.iterdir()}) == 1


def test_the_base_models_files_are_copied_unchanged(base: Path, converted: Path) -> None:
    assert filecmp.cmpfiles(base, converted, sorted(COPIED), shallow=False) == (sorted(COPIED), [], [])


def test_the_python_files_are_those_of_the_package(converted: Path) -> None:
    for name in (f"{part}_lite_whisper.py" for part in ("configuration", "inference", "kernels", "modeling")):
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
    assert (calibration["seed"], calibration["num_windows"], calibration["frames"]) == (3, WINDOWS, WINDOWS * 300)
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


@pytest.mark.slow
def test_variance_kept_is_that_of_the_outputs(converted: Path, tmp_path: Path, speech: Path) -> None:
    # The calibration saw four of the clips; with all six the order, which is the seed's, does not matter.
    assert main(arguments(tmp_path / "lite", speech, "--num-windows", "6")) == 0
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
    assert main(arguments(output, speech, "--base-model", base, *options)) == 0
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
    options = ["--calibration-file", moments_file, *harsh, "--evaluate", tmp_path / "test", "--batch-size", "3"]
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


def test_broken_files_among_good_ones_are_skipped_named_and_counted(
    tmp_path: Path, speech: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio = tmp_path / "audio"
    shutil.copytree(speech, audio)
    (audio / "broken.wav").write_bytes(b"broken")
    soundfile.write(audio / "nan.wav", NOT_A_NUMBER, 16_000, subtype="FLOAT")
    soundfile.write(audio / "silent.wav", SILENCE, 16_000)  # two windows long
    assert main(arguments(tmp_path / "lite", audio, "--num-windows", "100")) == 0
    for message in ("skipped audio/broken.wav", "skipped audio/nan.wav", "skipped 2 clips", "2 silent windows"):
        assert message in caplog.text
    calibration = report(tmp_path / "lite")["calibration"]
    assert calibration["frames"] == 6 * 300
    assert sorted(entry.partition(": ")[0] for entry in calibration["skipped"]) == ["audio/broken.wav", "audio/nan.wav"]
    assert str(tmp_path) not in (tmp_path / "lite" / "compression.json").read_text()
