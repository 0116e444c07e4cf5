"""`lite-whisper convert-presets`: three checkpoints of one base model from one calibration."""

from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from safetensors.torch import load_file

from lite_whisper.cli import convert, convert_presets
from lite_whisper.conversion import calibration
from lite_whisper.lowrank.moments import collect_moments
from lite_whisper.publishing.card import card_data

OPTIONS = ["--num-windows", "2", "--rank-multiple", "4"]
NAMES = ["lite-whisper-digits-acc", "lite-whisper-digits", "lite-whisper-digits-fast"]


@pytest.mark.slow
def test_three_checkpoints_from_one_calibration(
    base: Path, digits: Path, hub: HubStandIn, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The checkpoints match single conversions, are published, and are not converted again."""
    calibrations = []

    def counted(*arguments):
        calibrations.append(arguments)
        return collect_moments(*arguments)

    monkeypatch.setattr(calibration, "collect_moments", counted)
    command = ["--base-model", str(base), "--output", str(tmp_path / "presets"), "--dataset", str(digits), *OPTIONS]
    assert convert_presets.main(command) == 0
    assert len(calibrations) == 1
    assert sorted(path.name for path in (tmp_path / "presets").iterdir()) == sorted(NAMES)
    sizes = [card_data(tmp_path / "presets" / name)[0]["after"]["encoder_parameters"] for name in NAMES]
    budgets = [card_data(tmp_path / "presets" / name)[0]["recipe"]["encoder_parameters"] for name in NAMES]
    assert sizes == sorted(sizes, reverse=True) and sizes == pytest.approx(budgets, rel=0.02)
    alone = ["--base-model", str(base), "--preset", "fast", "--dataset", str(digits), *OPTIONS]
    assert convert.main([*alone, "--output", str(tmp_path / "alone")]) == 0
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "presets" / NAMES[2], tmp_path / "alone")
    )
    assert all((ours[name] == theirs[name]).all() for name in ours) and ours.keys() == theirs.keys()

    calibrations.clear()
    assert convert_presets.main([*command, "--push-to-hub", "org"]) == 0
    assert not calibrations
    assert {name for _, name in hub.repositories} == {f"org/{name}" for name in NAMES}
    assert "already exists; skipped" in capsys.readouterr().out
    assert convert_presets.main([*command, "--seed", "1"]) == 1
    assert "seed was 0, now 1" in capsys.readouterr().err
