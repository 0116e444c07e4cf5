"""What cannot come to a good end is refused before the calibration, or costs nothing but itself."""

import re
import shutil
from pathlib import Path

import pytest
from conversions import CLIPS, MODEL, TEST_CLIPS, only_message, report

from lite_whisper import convert
from lite_whisper.audio.calls import EARNINGS22
from lite_whisper.cli import evaluate, profile, score
from lite_whisper.conversion.recipes import check_feasible
from lite_whisper.conversion.settings import ConversionSettings
from lite_whisper.lowrank.time_cost import TimeTable
from lite_whisper.models.folders import load_base_model


def options(output: Path, *more: object) -> list[str]:
    common = ["--model", MODEL, "--dataset", CLIPS, "--output", output, "--num-samples", 2]
    return [str(word) for word in (*common, *more)]


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anything is calibrated."""
    monkeypatch.setattr("lite_whisper.conversion.calibration.collect_moments", None)


@pytest.mark.parametrize("size", [["--ratio", "0.01"], ["--encoder-params", "1K"]], ids=lambda size: size[0])
def test_a_size_that_cannot_be_reached(
    size: list[str], tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main(options(tmp_path / "lite", *size)) == 1
    said = only_message(capsys.readouterr().err)
    assert re.search(r"ranks of 16 allow: the smallest has [\d,]+, a ratio of 0\.\d+.*--rank-multiple", said)
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_that_the_message_names_can_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(options(tmp_path / "lite", "--ratio", "0.01")) == 1
    named = re.search(r"a ratio of (0\.\d+)", capsys.readouterr().err)
    assert named
    assert convert.main(options(tmp_path / "lite", "--ratio", named[1])) == 0
    said = report(tmp_path / "lite")
    assert said["after"]["encoder_parameters"] <= float(named[1]) * said["before"]["encoder_parameters"]


def test_a_sweep_is_refused_for_its_smallest_size(
    tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--sweep", "0.3,0.01", "--evaluate", TEST_CLIPS]
    assert convert.main(options(tmp_path / "curve", *sweep)) == 1
    assert "smaller than ranks of 16 allow" in only_message(capsys.readouterr().err)


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
    with pytest.raises(ValueError, match=r"cannot be reached with ranks of 16; ask for less than 1\.\d\d"):
        check_feasible(settings(4.0), model)


def test_a_place_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, no_calibration: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below.json"
    assert convert.main(options(tmp_path / "lite", "--moments", below)) == 1
    assert re.search(r"nothing can be written below .*file.*\(--moments\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr("lite_whisper.conversion.profile.measure_time_table", None)
    assert profile.main([str(MODEL), "--output", str(below)]) == 1
    assert re.search(r"nothing can be written below .*\(--output\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr(evaluate, "evaluate_models", None)
    for path in (below, tmp_path):
        command = [str(MODEL), "--dataset", str(TEST_CLIPS), "--output", str(tmp_path / "results"), "--json", str(path)]
        assert evaluate.main(command) == 1
        assert re.search(r"(written below|is a folder).*\(--json\)", only_message(capsys.readouterr().err))
    monkeypatch.setattr(score, "score", None)
    assert score.main(["manifest.jsonl", "--json", str(below)]) == 1
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
def test_a_base_models_card_that_cannot_be_read_costs_its_fields_alone(
    card: str, kept: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    (tmp_path / "base/README.md").write_text(card)
    command = options(tmp_path / "lite", "--model", tmp_path / "base", "--recipe", "liteasr")
    assert convert.main(command) == 0
    assert report(tmp_path / "lite")["base_card"] == kept


def test_an_evaluation_that_cannot_begin_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(MODEL), "--dataset", str(tmp_path / "missing"), "--output", str(tmp_path / "results")]
    assert evaluate.main(command) == 1
    assert "(--dataset)" in only_message(capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.json"))
