"""`lite-whisper profile`, and conversions under a time budget."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processor_time import measure_processor_time
from transformers import WhisperConfig

from lite_whisper.cli import convert
from lite_whisper.cli import profile as command
from lite_whisper.conversion import profile as time_table
from lite_whisper.lowrank.time_cost import load_time_table

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "examples/whisper-digits"
CALIBRATION = ROOT / "examples/digits/calibration"


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    with pytest.MonkeyPatch.context() as patch:
        measure_processor_time(patch.setattr)
        assert command.main([str(MINIATURE), "--output", str(path)]) == 0
    return path


def test_profile(profile: Path) -> None:
    config = json.loads((MINIATURE / "config.json").read_text())
    wide, narrow = config["encoder_ffn_dim"], config["d_model"]
    table = load_time_table(profile)
    assert table.products.keys() == {(narrow, narrow), (narrow, wide), (wide, narrow)}
    assert all({"dense", narrow} <= times.keys() and len(times) == 10 for times in table.products.values())
    assert all(time > 0 for times in table.products.values() for time in times.values())
    assert 0 <= table.rest < table.stock
    assert profile.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured(monkeypatch) -> None:
    """The table holds the time of each product per window."""
    monkeypatch.setattr(
        time_table, "product_seconds", lambda x, *widths: 1e-6 * x.shape[0] * np.prod(widths, dtype=float)
    )
    config = WhisperConfig.from_pretrained(MINIATURE)
    config.encoder_layers = 1
    table = time_table.measure_time_table(config, 2, "cpu", torch.float32)
    for (inputs, outputs), times in table.products.items():
        expected = {rank: inputs * outputs * (1 if rank == "dense" else rank) for rank in times}
        assert times == pytest.approx(expected)
    assert table.machine["batch_size"] == 2 and table.machine["dtype"] == "float32"


def test_errors(tmp_path: Path, capsys) -> None:
    assert command.main([str(MINIATURE), "--output", str(tmp_path)]) == 1
    assert "is a folder; give a file name (--output)" in capsys.readouterr().err
    assert command.main([str(tmp_path), "--output", str(tmp_path / "profile.json")]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [["--target-speedup", "1.6"], ["--cost", "time", "--ratio", "0.4"]])
def test_conversion(size: list[str], tmp_path: Path, capsys) -> None:
    wide, narrow = 1024, 256
    config = json.loads((MINIATURE / "config.json").read_text())
    assert (config["encoder_ffn_dim"], config["d_model"]) == (wide, narrow)
    entry = {"1": 5.0, "64": 100.0, "256": 400.0}
    products = [
        {"in_features": i, "out_features": o, "microseconds": entry | {"dense": 300.0}}
        for i, o in ((narrow, narrow), (narrow, wide), (wide, narrow))
    ]
    stock = 1_000 + 300 * 6 * config["encoder_layers"]
    table = {"machine": {"device": "a phone"}, "stock": stock, "rest": 1_000, "products": products}
    (tmp_path / "profile.json").write_text(json.dumps(table))
    speech = tmp_path / "speech"
    speech.mkdir()
    for index in range(2):
        shutil.copy(CALIBRATION / f"calibration_{index:03}.flac", speech)
    arguments = ["--base-model", str(MINIATURE), "--dataset", str(speech), "--num-windows", "2", "--rank-multiple", "4"]
    arguments += ["--output", str(tmp_path / "lite"), *size]
    assert convert.main([*arguments, "--profile", str(tmp_path / "elsewhere.json")]) == 1
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "lite").exists()
    assert convert.main([*arguments, "--profile", str(tmp_path / "profile.json")]) == 0
    report = json.loads((tmp_path / "lite/compression.json").read_text())
    time = 1_000 + sum(
        np.interp(layer_ranks[name], [1, 64, 256], [5, 100, 400]) if name in layer_ranks else 300
        for layer_ranks in report["low_rank_config"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    )
    recipe = report["recipe"]
    assert recipe["predicted_speedup"] == pytest.approx(stock / time, abs=1e-3)
    assert f"from the profile: {stock / time:.2f}" in capsys.readouterr().out
    if "--target-speedup" in size:
        assert stock / time == pytest.approx(1.6, rel=0.02) and stock / time >= 1.6
        assert recipe["encoder_parameters"] == report["after"]["encoder_parameters"]
        assert "--target-speedup 1.6 --cost time --profile profile.json" in (tmp_path / "lite/README.md").read_text()
