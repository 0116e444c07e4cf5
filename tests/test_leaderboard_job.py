"""The submission to the Open ASR leaderboard, with the miniature on datasets in their real layout."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leaderboard_stand_in import IGNORED_REFERENCE, digits, write_calls, write_parquet

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples/whisper-digits"
JOB = ROOT / "examples/leaderboard"
NORMALIZER = Path(__file__).parent / "normalizer_stand_in"
COMMIT = "0123456789" * 4

RunEval = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One dataset of each kind."""
    folder = tmp_path_factory.mktemp("sets")
    clips = digits(9)
    write_parquet(folder / "short", {"ami_cleaned": ["test"]}, [*clips[:5], (clips[5][0], IGNORED_REFERENCE)])
    write_calls(folder / "chunks", folder / "transcripts", [clips[6:]])
    return folder


@pytest.fixture
def run_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> RunEval:
    """Runs the program on a dataset and checks its figures; returns the manifest lines and the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(NORMALIZER)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*options: str) -> tuple[list[dict[str, Any]], str]:
        fixed = ["--model_id", str(MODEL), "--revision", "main", "--dtype", "float32", "--warmup_steps", "0"]
        monkeypatch.setattr(sys, "argv", ["run_eval.py", *fixed, *options])
        runpy.run_path(str(JOB / "run_eval.py"), run_name="__main__")
        output = capsys.readouterr().out
        (figures,) = re.findall(r"^WER: ([\d.]+) % RTFx: ([\d.]+)$", output, flags=re.MULTILINE)
        assert float(figures[0]) < 30 and float(figures[1]) > 0
        (manifest,) = Path("results").glob("MODEL_*.jsonl")
        return [json.loads(line) for line in manifest.read_text().splitlines()], output

    return run


def test_clips_in_batches_by_length(sets: Path, run_eval: RunEval) -> None:
    options = ["--dataset_path", str(sets / "short"), "--dataset", "ami_cleaned", "--batch_size", "3"]
    lines, output = run_eval(*options)
    lengths = [line["duration"] for line in lines]
    assert len(lines) == 5 and lengths == sorted(lengths, reverse=True)
    assert {line["text"] for line in lines} == {text for _, text in digits(5)}
    assert len({line["time"] for line in lines}) == 2  # a batch of three and one of two
    assert re.search(r"^Model size: 0.01B parameters$", output, flags=re.MULTILINE)
    assert re.search(r"^batch size 3, [\w-]+; .*'eager': .*'reduce-overhead': ", output, flags=re.MULTILINE)


def test_chunks_of_a_call(sets: Path, run_eval: RunEval) -> None:
    lines, output = run_eval(
        "--dataset_path", str(sets / "chunks"), "--dataset", "earnings22", "--torch_compile", "none"
    )
    assert [(line["parent_id"], line["chunk_index"]) for line in lines] == [("4460", place) for place in range(3)]
    assert {line["text"] for line in lines} == {" ".join(text for _, text in digits(9)[6:])}
    assert "reduce-overhead" not in output


STUB = """#!/bin/bash
printf '%s ' "$@" >"$(mktemp "$CALLS/XXXXXX")"
if [[ $1 = buckets ]]; then touch "$4/MODEL_x_DATASET_y.jsonl"; fi
[[ -z $FAILING || $* != *"$FAILING"* ]]
"""
ALL_SETS = {
    f"--dataset_path {path} --dataset {name} --split {split}"
    for name, split, path in map(str.split, (JOB / "sets.txt").read_text().splitlines())
}


def shell(script: str, stub: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script in a clone of the leaderboard, with a stub for one command; see `calls`."""
    shutil.copytree(NORMALIZER / "normalizer", folder / "normalizer")
    shutil.copytree(JOB, folder / "lite_whisper")
    for name in ("bin", "calls"):
        (folder / name).mkdir()
    (folder / "bin" / stub).write_text(STUB)
    (folder / "bin" / stub).chmod(0o755)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", folder / "lite_whisper" / script, *arguments],
        cwd=folder,
        env=os.environ | {"PATH": path, "CALLS": str(folder / "calls"), "FAILING": ""} | variables,
        capture_output=True,
        text=True,
    )


def calls(folder: Path) -> list[str]:
    """The command lines with which the stub was called."""
    return [path.read_text() for path in (folder / "calls").iterdir()]


def requested_sets(called: list[str]) -> set[str]:
    """The datasets named in the command lines."""
    return {match[0] for call in called if (match := re.search(r"--dataset_path \S+ --dataset \S+ --split \S+", call))}


def test_the_sets_in_turn(tmp_path: Path) -> None:
    result = shell("run_lite_whisper.sh", "python", tmp_path, "org/model", COMMIT, "--device", "0")
    assert result.returncode == 0, result.stderr
    programs = [call for call in calls(tmp_path) if "run_eval.py" in call]
    assert requested_sets(programs) == ALL_SETS and len(programs) == 7
    assert all(f"--model_id org/model --revision {COMMIT}" in call and "--device 0" in call for call in programs)
    assert "- org/model " in calls(tmp_path)  # the scorer, whose program is passed on standard input


@pytest.mark.parametrize(("revision", "failing", "code"), [(COMMIT, "", 0), (COMMIT, "spgispeech", 1), ("main", "", 2)])
def test_a_job_for_each_set(revision: str, failing: str, code: int, tmp_path: Path) -> None:
    given = {"SPACE": "org/space", "RESULTS_BUCKET": "org/bucket", "HF_TOKEN": "hf_secret", "FAILING": failing}
    result = shell("submit_jobs.sh", "hf", tmp_path, "org/model", revision, "256", **given)
    assert result.returncode == code, result.stderr
    jobs = [call for call in calls(tmp_path) if call.startswith("jobs run --flavor h200 ")]
    assert requested_sets(jobs) == (set() if code == 2 else ALL_SETS)
    assert all(f"--revision {COMMIT} --device 0 --batch_size 256" in job for job in jobs)
    assert "hf_secret" not in "".join(calls(tmp_path))
    assert ("scored org/model: 1 files" in result.stdout) == (code == 0)
    assert ("1 of 7 jobs failed" in result.stderr) == (code == 1)
