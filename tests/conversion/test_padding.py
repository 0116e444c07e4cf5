"""Padding tables precomputed by `precompute-padding` or a conversion, and recomputed after recovery."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conversions import MODEL, arguments, report
from safetensors.torch import load_file

from lite_whisper.cli import precompute_padding, recover
from lite_whisper.cli.convert import main
from lite_whisper.lowrank import padding
from lite_whisper.models.folders import load_model

KNOWN = "model.encoder.padding_states.states"


@pytest.fixture(autouse=True)
def few_clips(monkeypatch) -> None:
    monkeypatch.setattr(padding, "MIN_CLIPS", 12)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_ratio_1_gives_the_dense_encoder_with_its_padding(speech: Path, tmp_path: Path) -> None:
    output = tmp_path / "whole"
    options = ["--base-model", MODEL, "--ratio", 1, "--num-windows", 4, "--dataset", speech, "--output", output]
    assert main(list(map(str, options))) == 0
    found, base = weights(output), load_file(MODEL / "model.safetensors")
    for name, tensor in base.items():
        torch.testing.assert_close(found.pop(name), tensor, rtol=0, atol=0)
    assert {name.rpartition("padding_states.")[1] for name in found} == {"padding_states."} and KNOWN in found
    config = json.loads((output / "config.json").read_text())
    assert config["constant_padding"]["enabled"] and not any(config["low_rank_config"] or [])
    added = sum(tensor.numel() for tensor in found.values())
    sizes = report(output)
    assert sizes["after"]["encoder_parameters"] - sizes["before"]["encoder_parameters"] == added


def test_padding_of_a_compressed_model_is_recomputed_after_recovery(speech: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "lite", speech, "--constant-padding")) == 0
    model, _ = load_model(str(tmp_path / "lite"))
    assert model.get_encoder().uses_constant_padding
    assert main(arguments(tmp_path / "without", speech)) == 0
    assert KNOWN not in weights(tmp_path / "without")
    assert [report(tmp_path / name)["constant_padding"] for name in ("lite", "without")] == [True, False]
    options = ["--dataset", speech, "--output", tmp_path / "padded", "--num-windows", 4]
    assert (
        precompute_padding.main(list(map(str, [tmp_path / "without", *options]))) == 0
        and report(tmp_path / "padded")["constant_padding"]
    )
    options = ["--dataset", speech, "--output", tmp_path / "recovered", "--steps", 5, "--num-windows", 4]
    assert recover.main(list(map(str, [tmp_path / "lite", "--base-model", MODEL, *options]))) == 0
    before, after = weights(tmp_path / "lite"), weights(tmp_path / "recovered")
    assert not torch.equal(before["model.encoder.layers.0.fc1.weight1"], after["model.encoder.layers.0.fc1.weight1"])
    assert not torch.equal(before[KNOWN], after[KNOWN])


def test_existing_padding_tables_are_replaced(padded: Path, speech: Path, tmp_path: Path, capsys) -> None:
    options = ["--dataset", str(speech), "--output", str(tmp_path / "again"), "--num-windows", "4"]
    assert precompute_padding.main([str(padded), *options]) == 0
    assert "(adds 0.00 M parameters to the encoder)" in capsys.readouterr().out
    assert not torch.equal(weights(padded)[KNOWN], weights(tmp_path / "again")[KNOWN])


def test_errors_are_reported_before_any_work(padded: Path, speech: Path, tmp_path: Path, capsys) -> None:
    target = shutil.copytree(padded, tmp_path / "there")
    assert precompute_padding.main([str(padded), "--dataset", str(speech), "--output", str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    (target / "tokenizer_config.json").unlink()
    assert precompute_padding.main([str(target), "--dataset", str(speech), "--output", str(tmp_path / "new")]) == 1
    assert "lite-whisper upgrade" in capsys.readouterr().err
    assert (
        precompute_padding.main(
            [str(padded), "--dataset", str(tmp_path / "nowhere"), "--output", str(tmp_path / "new")]
        )
        == 1
    )
    assert "nowhere" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
