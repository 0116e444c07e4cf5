"""Every command and program in the README and the documentation runs unchanged, against a stand-in for the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from documents import ROOT, Step, steps
from hub_stand_in import TOKEN, HubStandIn

# (as documented, as run here, number of occurrences): less work, and a speed-up within reach of timings taken on a
# machine that is busy with other tests.
SHORTER = (
    ("--minutes 10", "--minutes 0.2", 2),
    ("--max_steps 60", "--max_steps 6", 1),
    ("--target-speedup 1.5", "--target-speedup 1.01", 1),
    ("num_windows=40", "num_windows=8", 1),
)

LONG = "examples/ray_cluster.py"  # starts three nodes; `make test-long` runs it

# Ray lowers the priority of its workers by default; beside the other tests they would starve.
SETTINGS = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def librispeech(folder: Path) -> Path:
    """A stand-in for the dataset in the README, with the bundled calibration audio in the same format."""
    audio = [
        {"bytes": path.read_bytes(), "path": path.name}
        for path in sorted((ROOT / "examples/digits/calibration").glob("*.flac"))[:8]
    ]
    columns = pyarrow.table({"audio": audio, "text": [""] * len(audio), "id": np.arange(len(audio))})
    features = '{"info": {"features": {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}, '
    features += '"id": {"dtype": "int64", "_type": "Value"}}}}'
    (folder / "clean").mkdir(parents=True)
    pyarrow.parquet.write_table(
        columns.replace_schema_metadata({"huggingface": features}), folder / "clean/train.100-00000-of-00001.parquet"
    )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: clean\n  data_files:\n  - split: train.100\n    path: clean/train.100-*\n---\n"
    )
    return folder


def published_checkpoint(folder: Path) -> Path:
    """The model of `make demo` in the format of the published checkpoints: no processor, one Auto class."""
    folder.mkdir()
    config = json.loads((ROOT / "build/lite-whisper-digits/config.json").read_text())
    config["auto_map"] = {"AutoModel": config["auto_map"]["AutoModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "build/lite-whisper-digits/model.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the commands in: the contents of a clone, and some recordings."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("convert.py", "examples", "build", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in (("recordings", "calibration"), ("held-out", "test")):
        shutil.copytree(ROOT / "examples/digits" / source, folder / name)
        listing = (folder / name / "metadata.csv").read_text().splitlines(keepends=True)
        (folder / name / "metadata.csv").write_text("".join(listing[:7]))
    return folder


@pytest.fixture(scope="module")
def demo() -> str:
    """The output of `make demo`."""
    result = subprocess.run(["make", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def steps_of_the_gate() -> list[Step]:
    """The steps, except those left to `make test-long`."""
    return [step for step in steps() if LONG not in step.text]


def shorter(written: list[Step]) -> list[Step]:
    """The same steps with less work."""
    for long, short, times in SHORTER:
        assert sum(long in step.text for step in written) == times
        written = [replace(step, text=step.text.replace(long, short)) for step in written]
    return written


def lanes(written: list[Step]) -> list[list[Step]]:
    """Two lanes of similar duration; the second one needs the model of `make demo` and no other result."""
    results = ("digits-onnx", "digits-openvino", "digits-faster-whisper", "whisper-base-padded")
    programs = [
        step for step in written if step.language == "python" and not any(name in step.text for name in results)
    ]
    second = [step for step in written if step in programs or step.page == "docs/guide/large-jobs.md"]
    return [[step for step in written if step not in second], second]


@pytest.fixture(scope="module")
def published(demo: str, workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Hub after all steps have run, and the steps with their output."""
    folder = tmp_path_factory.mktemp("hub")
    with HubStandIn(
        {
            "openai/whisper-base": ROOT / "examples/whisper-digits",
            "openai/whisper-small": ROOT / "examples/whisper-digits",
            "efficient-speech/lite-whisper-small-acc": published_checkpoint(folder / "published"),
        },
        {"openslr/librispeech_asr": librispeech(folder / "librispeech")},
        {TOKEN: "write"},
    ) as hub:
        result = subprocess.run(
            [sys.executable, Path(__file__).with_name("forked.py")],
            input=json.dumps([[asdict(step) for step in lane] for lane in lanes(shorter(steps_of_the_gate()))]),
            cwd=workplace,
            env=os.environ | hub.environment(folder / "cache", TOKEN) | SETTINGS,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 0
    return hub, [step for lane in json.loads(result.stdout) for step in lane]


@pytest.fixture(scope="module")
def executed(published: Any) -> list[dict[str, Any]]:
    """Every step with its exit code and output."""
    return published[1]


def test_demo(demo: str) -> None:
    rows = dict(re.findall(r"^(\w[\w ,]+?) {2,}.* ([\d.]+)%$", demo, flags=re.MULTILINE))
    assert rows.keys() == {
        "encoder parameters",
        "total parameters",
        "weights on disk",
        "word error rate",
        "encoder, per window",
    }
    assert float(rows["encoder parameters"]) < 50
    start, end, *words = demo.splitlines()[-1].split()
    assert 0 <= float(start) < float(end) <= 6
    assert jiwer.wer("one two two one", " ".join(words)) < 0.5  # the miniature sometimes drops a digit


def test_every_step_succeeds(executed: list[dict[str, Any]]) -> None:
    print(*(f"{step['seconds']:6.1f} s  {step['page']}: {step['text'][:90]!r}" for step in executed), sep="\n")
    failed = [step for step in executed if step["code"]]
    assert not failed, "\n".join(f"{step['page']}: {step['text']}\n{step['output']}" for step in failed)
    assert len(executed) == len(steps_of_the_gate())


def test_every_output_is_complete(executed: list[dict[str, Any]], published: Any, workplace: Path) -> None:
    commands = "\n".join(step["text"] for step in executed if step["language"] == "bash")
    outputs = [*re.findall(r"--output(?:_dir)? (\S+)", commands), "lite-whisper-adapted", "lite-from-settings"]
    assert len(outputs) == len(set(outputs)) == 29
    for transcripts in ("transcripts.jsonl", "quick-start.jsonl", "quick.jsonl", "by-ray.jsonl"):
        outputs.remove(transcripts)
        assert len((workplace / transcripts).read_text().splitlines()) == 6
    outputs.remove("meeting.srt")
    outputs.remove("subtitles")
    outputs.remove("digits-onnx")
    assert {path.name for path in (workplace / "digits-onnx/onnx").iterdir()} == {
        f"{part}{suffix}.onnx" for part in ("encoder_model", "decoder_model_merged") for suffix in ("", "_quantized")
    }
    for output, model in (("digits-openvino", "openvino_decoder_model.xml"), ("digits-faster-whisper", "model.bin")):
        outputs.remove(output)
        assert (workplace / output / model).exists()
    outputs.remove("results-by-two")
    assert (workplace / "results-by-two/summary.csv").exists()
    assert (workplace / "meeting.srt").read_text().startswith("1\n00:00:0")
    assert len(list((workplace / "subtitles").iterdir())) == 2
    outputs.remove("profile.json")
    assert (workplace / "profile.json").exists() and (workplace / "profile.png").exists()
    outputs.remove("curve")
    assert {path.name for path in (workplace / "curve").iterdir()} == {"sweep.csv", "pareto.png"}
    outputs.remove("presets")
    presets = {f"lite-whisper-small{end}" for end in ("-acc", "", "-fast")}
    assert {path.name for path in (workplace / "presets").iterdir()} == presets
    uploaded = {name for _, name in published[0].repositories if name.startswith("org/")}
    assert uploaded == {"org/lite-whisper-digits", *(f"org/{name}" for name in presets)}
    for output in outputs:
        assert (workplace / output / "model.safetensors").exists()
        assert (workplace / output / "tokenizer_config.json").exists()


def test_a_long_recording_is_transcribed_with_times(executed: list[dict[str, Any]]) -> None:
    (output,) = (step["output"] for step in executed if step["text"].startswith("python examples/transcribe.py"))
    assert len(re.findall(r"^ +[\d.]+ +[\d.]+  ([a-z ]+)$", output, flags=re.MULTILINE)) > 2, output


@pytest.mark.long
def test_a_cluster_of_three_nodes(demo: str, workplace: Path) -> None:
    (step,) = (step for step in steps() if LONG in step.text)
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", step.text],
        cwd=workplace,
        env=os.environ | SETTINGS | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len((workplace / "by-three-nodes.jsonl").read_text().splitlines()) == 6
