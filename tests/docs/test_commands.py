"""Every command and program in the README runs as it stands there, against a stand-in for the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hub_stand_in import TOKEN, HubStandIn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def librispeech(folder: Path) -> Path:
    """A dataset in the form of the one that the README names, holding the bundled calibration audio."""
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
    """The demo's model as the existing release would have published it: no processor, one Auto class."""
    folder.mkdir()
    config = json.loads((ROOT / "build/lite-whisper-digits/config.json").read_text())
    config["auto_map"] = {"AutoModel": config["auto_map"]["AutoModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "build/lite-whisper-digits/model.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder in which the commands can be typed: what a clone has, and recordings of one's own."""
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
    """What `make demo` prints."""
    result = subprocess.run(["make", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


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
    assert jiwer.wer("one two two one", " ".join(words)) < 0.5  # the miniature drops a digit at times


def test_programs(demo: str, workplace: Path) -> None:
    environment = os.environ | {"HF_HOME": str(workplace / "cache")}
    for program in blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=workplace, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


def test_commands(demo: str, workplace: Path, tmp_path: Path) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith("make ")]
    # A machine that is busy with other tests measures times by which more than a little speed is out of reach.
    for written, run, times in (
        ("--minutes 10", "--minutes 0.2", 2),
        ("--max_steps 60", "--max_steps 6", 1),
        ("--target-speedup 1.5", "--target-speedup 1.01", 1),
    ):
        assert sum(written in command for command in commands) == times
        commands = [command.replace(written, run) for command in commands]
    with HubStandIn(
        {
            "openai/whisper-small": ROOT / "examples/whisper-digits",
            "efficient-speech/lite-whisper-small-acc": published_checkpoint(tmp_path / "published"),
        },
        {"openslr/librispeech_asr": librispeech(tmp_path / "librispeech")},
        {TOKEN: "write"},
    ) as hub:
        script = "set -e\n" + "\n".join(commands)
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=workplace,
            env=os.environ | hub.environment(tmp_path / "cache", TOKEN),
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    outputs = [*re.findall(r"--output(?:_dir)? (\S+)", "\n".join(commands)), "lite-whisper-adapted"]
    assert len(outputs) == len(set(outputs)) == 22
    for output in ("transcripts.jsonl", "by-ray.jsonl", "by-three-nodes.jsonl", "meeting.srt", "subtitles"):
        outputs.remove(output)
    for transcripts in ("transcripts.jsonl", "by-ray.jsonl", "by-three-nodes.jsonl"):
        assert len((workplace / transcripts).read_text().splitlines()) == 6
    outputs.remove("results-by-two")
    assert (workplace / "results-by-two/summary.csv").exists()
    assert (workplace / "meeting.srt").read_text().startswith("1\n00:00:0")
    assert len(list((workplace / "subtitles").iterdir())) == 2
    outputs.remove("profile.json")
    assert (workplace / "profile.json").exists() and (workplace / "profile.png").exists()
    outputs.remove("curve")
    outputs.remove("family")
    family = {f"lite-whisper-small{end}" for end in ("-acc", "", "-fast")}
    assert {path.name for path in (workplace / "family").iterdir()} == family
    published = {name for _, name in hub.repositories if name.startswith("org/")}
    assert published == {"org/lite-whisper-digits", *(f"org/{name}" for name in family)}
    assert {path.name for path in (workplace / "curve").iterdir()} == {"sweep.csv", "pareto.png"}
    for output in outputs:
        assert (workplace / output / "model.safetensors").exists()
        assert (workplace / output / "tokenizer_config.json").exists()
    segments = re.findall(r"^ +[\d.]+ +[\d.]+  ([a-z ]+)$", result.stdout, flags=re.MULTILINE)
    assert len(segments) > 2, result.stdout
