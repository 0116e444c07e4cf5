"""Both recipes at several sizes."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversions import MODEL, TEST_CLIPS, only_message, report

from lite_whisper.cli import convert
from lite_whisper.cli.sweep import main


@pytest.mark.long
def test_a_sweep_compares_both_recipes(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held-out"
    shutil.copytree(TEST_CLIPS, held_out, ignore=shutil.ignore_patterns("*_0[1-9]*", "*_1*"))
    listing = (held_out / "metadata.csv").read_text().splitlines(keepends=True)
    (held_out / "metadata.csv").write_text("".join(listing[:9]))
    command = ["--base-model", MODEL, "--dataset", speech, "--evaluate", held_out, "--num-windows", 2]
    command += ["--rank-multiple", 4, "--ratios", "0.15,0.3", "--output", tmp_path / "curve"]
    command = [str(option) for option in command]

    def interrupted(*more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lite_whisper.conversion.sweep._plot_pareto", interrupted)
        assert main(command) == 130
    assert not (tmp_path / "curve").exists()
    capsys.readouterr()
    with monkeypatch.context() as patch:  # all points are measured already
        patch.setattr("lite_whisper.conversion.sweep.measure", None)
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
    # A conversion to the same size gives the same model.
    single = [*command, "--output", str(tmp_path / "single"), "--ratio", "0.15"]
    del single[single.index("--ratios") : single.index("--ratios") + 2]
    assert convert.main(single) == 0
    after = report(tmp_path / "single")["after"]
    assert after["word_error_rate"] == pytest.approx(float(others[1]["word_error_rate"]))
    assert after["encoder_parameters"] == int(others[1]["encoder_parameters"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "audio with transcripts (--evaluate)"),
        (["--evaluate", "x", "--recipe", "liteasr"], "leave the recipe unset (--recipe)"),
        (["--evaluate", "x", "--recover", "1"], "(--recover)"),
        (["--evaluate", "x", "--constant-padding"], "(--constant-padding)"),
    ],
)
def test_settings_of_a_single_model_are_rejected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--base-model", str(MODEL), "--dataset", "x", "--ratios", "0.5", "--output", "curve"]
    with pytest.raises(SystemExit) as end:
        main([*command, *options])
    assert end.value.code == 2 and message in capsys.readouterr().err
