"""Figures on the leaderboard's sets go up in the form in which the Hub takes results."""

import json
from pathlib import Path

import pytest
import yaml
from hub_stand_in import Fault, HubStandIn, Repository, Snapshot, contents
from huggingface_hub import parse_eval_result_entries
from leaderboard_stand_in import write_tasks

from lite_whisper.cli.publish import main
from lite_whisper.evaluation.leaderboard import BENCHMARK, SHORT_FORM
from lite_whisper.evaluation.report import score

NAME = "org/lite-digits"
FILE = ".eval_results/open_asr_leaderboard.yaml"
TASKS = [*SHORT_FORM.values(), "mean_wer", "rtfx", "tedlium_wer"]


@pytest.fixture
def named(manifests: list[Path], tmp_path: Path) -> list[Path]:
    """Manifests of the compressed miniature, as if they were of the seven sets, each with another error rate."""
    of_lite = next(path for path in manifests if "lite" in path.name)
    lines = of_lite.read_text().splitlines(keepends=True)
    found = []
    for number, dataset in enumerate(SHORT_FORM):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(lines[: len(lines) - number]))
        settings = json.loads(of_lite.with_suffix(".settings.json").read_text())
        path.with_suffix(".settings.json").write_text(json.dumps(settings | {"dataset": dataset}))
        found.append(path)
    return found


@pytest.fixture
def benchmark(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """The Hub with the leaderboard's dataset, which has a task for each set but one."""
    tasks = [task for task in TASKS if task != "earnings22_cleaned_aa_chunked_wer"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    (tmp_path / "benchmark").mkdir()
    write_tasks(tmp_path / "benchmark", [(task, "default", "test") for task in tasks])
    hub.repositories["datasets", BENCHMARK] = Repository.of(Snapshot.scan(tmp_path / "benchmark"))
    return hub


def published(hub: HubStandIn) -> dict[str, object]:
    """The values on the Hub by task."""
    entries = parse_eval_result_entries(yaml.safe_load(contents(hub.repositories["models", NAME].main.files[FILE])))
    assert {entry.dataset_id for entry in entries} == {BENCHMARK}
    assert {entry.notes for entry in entries} == {
        "words scored with compounds merged (kaldialign), as the Open ASR leaderboard scores; "
        "normalizer of Whisper: basic"
    }
    return {entry.task_id: entry.value for entry in entries}


def test_all_sets_their_mean_and_the_speed(lite: Path, named: list[Path], benchmark: HubStandIn, caplog) -> None:
    assert main([str(lite), NAME, "--manifests", *map(str, named), "--scoring", "compounds"]) == 0
    results = [evaluation.result for evaluation in score(named, "compounds")]
    expected = {SHORT_FORM[result.dataset]: round(result.wer, 2) for result in results}
    assert len(set(expected.values())) > 3
    lines = [json.loads(line) for path in named for line in path.read_text().splitlines()]
    expected["mean_wer"] = pytest.approx(sum(expected.values()) / 7, abs=0.005)
    expected["rtfx"] = pytest.approx(sum(x["duration"] for x in lines) / sum(x["time"] for x in lines), abs=0.005)
    del expected["earnings22_cleaned_aa_chunked_wer"]
    assert published(benchmark) == expected
    assert "has no such tasks: earnings22_cleaned_aa_chunked_wer" in caplog.text
    assert "compounds merged by kaldialign" in (lite / "README.md").read_text()


def test_some_sets_have_no_mean(lite: Path, named: list[Path], benchmark: HubStandIn, capsys) -> None:
    arguments = [str(lite), NAME, "--manifests", str(named[0]), "--scoring", "compounds"]
    assert main([*arguments, "--dry-run"]) == 0
    assert f"new  {FILE}" in capsys.readouterr().out and not (lite / FILE).exists()
    assert main(arguments) == 0
    assert list(published(benchmark)) == ["ami_cleaned_wer"]


def test_other_sets_ask_nothing_and_files_of_ones_own_stay(lite: Path, manifests: list[Path], hub: HubStandIn) -> None:
    (lite / FILE).parent.mkdir()
    (lite / FILE).write_text("[]")
    (lite / FILE).with_suffix(".log").write_text("")
    assert main([str(lite), NAME, "--manifests", *map(str, manifests)]) == 0
    files = hub.repositories["models", NAME].main.files
    assert contents(files[FILE]) == b"[]" and FILE.replace("yaml", "log") not in files
    assert not any(BENCHMARK in target for _, target, _ in hub.requests)


def test_nothing_goes_up_where_the_tasks_are_not_known(
    lite: Path, named: list[Path], benchmark: HubStandIn, waits: list[float], capsys
) -> None:
    benchmark.faults = [Fault("GET .*/eval.yaml|HEAD .*/eval.yaml", 404)]
    assert main([str(lite), NAME, "--manifests", *map(str, named)]) == 1
    assert "the Hub does not say which tasks" in capsys.readouterr().err
    assert ("models", NAME) not in benchmark.repositories and not (lite / FILE).exists()


def test_a_folder_that_is_a_link_is_refused(lite: Path, tmp_path: Path, hub: HubStandIn, capsys) -> None:
    (tmp_path / "elsewhere").mkdir()
    (lite / ".eval_results").symlink_to(tmp_path / "elsewhere")
    assert main([str(lite), NAME]) == 1
    assert ".eval_results is a link" in capsys.readouterr().err
