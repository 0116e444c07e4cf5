"""The submission to the Open ASR leaderboard, on its sets in their real form and the miniature."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from leaderboard_stand_in import NOT_SCORED, digits, write_calls, write_parquet

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples/whisper-digits"
JOB = ROOT / "examples/leaderboard"
NORMALIZER = Path(__file__).parent / "normalizer_stand_in"
BIN = Path(sys.executable).parent
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of each kind, and the list that names them."""
    folder = tmp_path_factory.mktemp("sets")
    clips = digits(9)
    write_parquet(folder / "short", {"ami_cleaned": ["test"]}, [*clips[:5], (clips[5][0], NOT_SCORED)])
    write_calls(folder / "chunks", folder / "transcripts", [clips[6:]])
    lines = [f"ami_cleaned test {folder / 'short'}", f"earnings22 test {folder / 'chunks'}"]
    (folder / "sets.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_the_sets_in_turn(sets: Path, tmp_path: Path) -> None:
    options = ["--dtype", "float32", "--batch_size", "3", "--warmup_steps", "0"]
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "SETS": str(sets / "sets.txt")}
    environment |= {
        "PYTHONPATH": f"{NORMALIZER}:{os.environ.get('PYTHONPATH', '')}",
        "HF_HOME": str(tmp_path / "cache"),
    }
    result = subprocess.run(
        ["bash", JOB / "run_lite_whisper.sh", MODEL, "main", *options],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Model size: 0.01B parameters" in result.stdout and "scored" in result.stdout
    reported = re.findall(r"WER: ([\d.]+) % RTFx: ([\d.]+)", result.stdout)
    assert len(reported) == 2 and all(float(rate) < 30 and float(speed) > 0 for rate, speed in reported)
    short, chunks = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "results").glob("*.jsonl"), key=lambda path: "chunks" in path.name)
    )
    lengths = [line["duration"] for line in short]
    assert len(short) == 5 and lengths == sorted(lengths, reverse=True)
    assert {line["text"] for line in short} == {text for _, text in digits(5)}
    assert len({line["time"] for line in short}) == 2  # a batch of three and one of two
    assert [(line["parent_id"], line["chunk_index"]) for line in chunks] == [("4460", place) for place in range(3)]
    assert {line["text"] for line in chunks} == {" ".join(text for _, text in digits(9)[6:])}


STUB = """#!/bin/bash
printf '%s ' "$@" >"$(mktemp "$CALLS/XXXXXX")"
if [[ $1 = buckets ]]; then touch "$4/MODEL_x_DATASET_y.jsonl"; fi
[[ -z $FAILING || $* != *"$FAILING"* ]]
"""


@pytest.mark.parametrize(("revision", "failing", "code"), [(COMMIT, "", 0), (COMMIT, "spgispeech", 1), ("main", "", 2)])
def test_a_job_for_each_set(revision: str, failing: str, code: int, tmp_path: Path) -> None:
    """What is asked of a stand-in for the command hf."""
    shutil.copytree(NORMALIZER / "normalizer", tmp_path / "normalizer")
    shutil.copytree(JOB, tmp_path / "lite_whisper")
    for name in ("bin", "calls"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/hf").write_text(STUB)
    (tmp_path / "bin/hf").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    environment |= {"SPACE": "org/space", "RESULTS_BUCKET": "org/bucket", "HF_TOKEN": "hf_secret", "FAILING": failing}
    result = subprocess.run(
        ["bash", tmp_path / "lite_whisper/submit_jobs.sh", "org/model", revision, "256"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    if code == 2:
        assert not list((tmp_path / "calls").iterdir())
        return
    calls = [path.read_text() for path in (tmp_path / "calls").iterdir()]
    jobs = [call for call in calls if call.startswith("jobs run --flavor h200 ")]
    asked = {re.search(r"--dataset_path (\S+ --dataset \S+ --split \S+)", job)[1] for job in jobs}
    every = [line.split() for line in (JOB / "sets.txt").read_text().splitlines()]
    assert asked == {f"{path} --dataset {name} --split {split}" for name, split, path in every} and len(asked) == 7
    assert all(f"--revision {COMMIT} --device 0 --batch_size 256" in job for job in jobs)
    assert "hf_secret" not in "".join(calls)
    assert ("scored org/model: 1 files" in result.stdout) == (code == 0)
    assert ("1 of 7 jobs failed" in result.stderr) == (code == 1)
