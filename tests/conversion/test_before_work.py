"""Errors that can be detected early are reported before the calibration."""

import re
import shutil
from pathlib import Path

import pytest
from conversions import CLIPS, MODEL, TEST_CLIPS, only_message, report

from lite_whisper.audio.calls import EARNINGS22
from lite_whisper.cli import convert, evaluate, profile, sweep
from lite_whisper.cli import report as report_command
from lite_whisper.conversion.recipes import check_feasible
from lite_whisper.conversion.settings import ConversionSettings
from lite_whisper.lowrank.time_cost import TimeTable
from lite_whisper.models.folders import load_base_model


def options(output: Path, *more: object) -> list[str]:
    common = ["--base-model", MODEL, "--dataset", CLIPS, "--output", output, "--num-windows", 2]
    return [str(word) for word in (*common, *more)]


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every calibration fail."""
    monkeypatch.setattr("lite_whisper.conversion.calibration.collect_moments", None)


@pytest.mark.parametrize("size", [["--ratio", "0.01"], ["--encoder-params", "1K"]], ids=lambda size: size[0])
def test_a_size_that_cannot_be_reached(
    size: list[str], tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main(options(tmp_path / "lite", *size)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(
        r"below the minimum of [\d,]+ \(ratio 0\.\d+\) for ranks in multiples of 16.*--rank-multiple", said
    )
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_that_the_message_names_can_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(options(tmp_path / "lite", "--ratio", "0.01")) == 1
    named = re.search(r"\(ratio (0\.\d+)\)", capsys.readouterr().err)
    assert named
    assert convert.main(options(tmp_path / "lite", "--ratio", named[1])) == 0
    said = report(tmp_path / "lite")
    assert said["after"]["encoder_parameters"] <= float(named[1]) * said["before"]["encoder_parameters"]


def test_a_sweep_is_rejected_for_its_smallest_size(
    tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = options(tmp_path / "curve", "--ratios", "0.3,0.01", "--evaluate", TEST_CLIPS)
    assert sweep.main(command) == 1
    assert "below the minimum" in only_message(capsys.readouterr().err)


def test_calls_are_scored_by_evaluate(tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(options(tmp_path / "lite", "--evaluate", EARNINGS22)) == 1
    assert "lite-whisper evaluate" in only_message(capsys.readouterr().err)


def test_a_speed_up_that_cannot_be_reached(tmp_path: Path) -> None:
    times: dict[int | str, float] = {1: 5.0, 256: 10.0, "dense": 10.0}
    products = {(256, 256): times, (256, 1024): times, (1024, 256): times}
    TimeTable({}, 500.0, 100.0, products).save(tmp_path / "profile.json")
    model, _ = load_base_model(str(MODEL))

    def settings(speedup: float) -> ConversionSettings:
        return ConversionSettings(
            str(MODEL), tmp_path / "lite", [str(CLIPS)], target_speedup=speedup, profile=tmp_path / "profile.json"
        )

    check_feasible(settings(1.5), model)
    with pytest.raises(ValueError, match=r"with ranks in multiples of 16; the maximum is 1\.\d\d"):
        check_feasible(settings(4.0), model)


def test_an_unwritable_output_is_reported_before_the_work(
    tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below.json"
    assert convert.main(options(tmp_path / "lite", "--calibration-file", below)) == 1
    assert re.search(r"cannot create files in .*file.*\(--calibration-file\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr("lite_whisper.conversion.profile.measure_time_table", None)
    assert profile.main([str(MODEL), "--output", str(below)]) == 1
    assert re.search(r"cannot create files in .*\(--output\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr(evaluate, "evaluate_models", None)
    for path in (below, tmp_path):
        command = [str(MODEL), "--dataset", str(TEST_CLIPS), "--output", str(tmp_path / "results"), "--json", str(path)]
        assert evaluate.main(command) == 1
        assert re.search(r"(cannot create files|is a folder).*\(--json\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr(report_command, "score", None)
    assert report_command.main(["manifest.jsonl", "--json", str(below)]) == 1
    assert "(--json)" in only_message(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        ("---\nlicense: [unclosed\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: {a: b}\nlanguage: en\n---\n", {"language": "en"}),
    ],
    ids=["malformed", "list", "wrong type"],
)
def test_an_unreadable_card_of_the_base_model_only_loses_its_fields(
    card: str, kept: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    (tmp_path / "base/README.md").write_text(card)
    command = options(tmp_path / "lite", "--base-model", tmp_path / "base", "--recipe", "liteasr")
    assert convert.main(command) == 0
    assert report(tmp_path / "lite")["base_card"] == kept


def test_an_evaluation_that_cannot_begin_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(MODEL), "--dataset", str(tmp_path / "missing"), "--output", str(tmp_path / "results")]
    assert evaluate.main(command) == 1
    assert "(--dataset)" in only_message(capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.json"))
