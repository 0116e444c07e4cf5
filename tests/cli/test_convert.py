"""The command line of `convert.py`: its options and its report."""

import argparse
from pathlib import Path

import pytest
from conversions import CLIPS, MODEL, TEST_CLIPS, arguments, contents, only_message, report, run

from lite_whisper.cli import sweep
from lite_whisper.cli.convert import build_parser, main, parse_arguments


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


def test_the_result_is_refused_as_a_base_model(
    converted: Path, tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(tmp_path / "lite", speech, "--base-model", converted)) == 1
    assert "is already compressed" in only_message(capsys.readouterr().err)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "options",
    [
        ["--thresholds", "0.99"],
        ["--thresholds", "a:b"],
        ["--thresholds", "0.9:0.9:0.9"],
        ["--thresholds", "0:0.9"],
        ["--thresholds", "0.9:1"],
        ["--thresholds", "nan:0.9"],
        ["--num-windows", "0"],
        ["--num-windows", "-1"],
        ["--num-windows", "many"],
        ["--num-windows", "1.5"],
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


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--output", "x"], "(--dataset)"),
        (["--dataset", "x"], "--output is required"),
    ],
)
def test_a_model_needs_dataset_and_output(others: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--base-model", str(MODEL), *others) == 2
    assert message in capsys.readouterr().err


def parsed(options: list[str]) -> argparse.Namespace:
    return parse_arguments(build_parser("convert.py"), options)


def test_datasets_may_be_named_together_or_one_by_one() -> None:
    common = ["--base-model", "m", "--output", "o", "--dataset", "a", "b"]
    assert parsed([*common, "--dataset", "c"]).dataset == ["a", "b", "c"]
    assert parsed(common).num_windows == 64


def test_without_arguments_the_miniature_is_converted_and_evaluated() -> None:
    assumed = parsed([])
    assert [Path(name).resolve() for name in (assumed.base_model, *assumed.dataset, *assumed.evaluate)] == [
        MODEL,
        CLIPS,
        TEST_CLIPS,
    ]
    assert assumed.output == Path("build/lite-whisper-digits") and not assumed.overwrite


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "liteasr", "--ratio", "0.5"],
        ["--recipe", "loss-aware", "--thresholds", "0.9:0.9"],
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
        parsed(["--base-model", "x", "--dataset", "x", "--output", "y", *options])
    assert end.value.code == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--ratios", "0.5"],
        ["--evaluate", "x"],
        ["--ratios", "0.5,2", "--evaluate", "x"],
        ["--ratios", "0.5", "--evaluate", "x", "--recipe", "liteasr"],
        ["--ratios", "0.5", "--evaluate", "x", "--recover", "1"],
    ],
    ids=" ".join,
)
def test_bad_options_of_a_sweep(options: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        sweep.main(["--base-model", "x", "--dataset", "x", "--output", "y", *options])
    assert end.value.code == 2
