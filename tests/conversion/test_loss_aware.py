"""The default recipe: its budget, and a run that goes on where it was interrupted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conversions import COPIED, WINDOWS, WRITTEN, arguments, only_message, unnamed_contents
from safetensors.torch import load_file

from lite_whisper.cli.convert import main
from lite_whisper.conversion import recipes


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


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--recipe", "loss-aware", "--ratio", "0.3", "--rank-multiple", "4", "--num-windows", "2"]
    assert main(arguments(tmp_path / "undisturbed", speech, *options)) == 0

    def stop(*more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recipes, "compress", stop)
        assert main(arguments(tmp_path / "lite", speech, *options)) == 130
    assert re.search("interrupted; run the same command again", only_message(capsys.readouterr().err))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lite.unfinished", "undisturbed"]
    # With other settings it is refused, and what was done stays.
    assert main(arguments(tmp_path / "lite", speech, *options, "--seed", "4")) == 1
    assert "seed was 3, now 4" in only_message(capsys.readouterr().err)
    for name in ("collect_moments", "collect_sensitivities"):
        monkeypatch.setattr(f"lite_whisper.conversion.calibration.{name}", None)
    assert main(arguments(tmp_path / "lite", speech, *options)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lite", "undisturbed"]
    assert unnamed_contents(tmp_path / "lite") == unnamed_contents(tmp_path / "undisturbed")


def test_a_budget_that_is_too_small(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "loss-aware", "--ratio", "0.05"]
    assert main(arguments(tmp_path / "lite", speech, *options)) == 1
    said = only_message(capsys.readouterr().err)
    assert "is below the minimum of 798,208 (ratio 0.158) for ranks in multiples of 16" in said
    assert said.endswith("(--rank-multiple)")
    assert not (tmp_path / "lite").exists()
