"""Full disks, damaged checkpoints, datasets that break off, other arguments: told, and made good by a rerun."""

import os
import random
import re
import resource
import shutil
import subprocess
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from kills import CALIBRATION, MODEL, TEST, contents, differences

from lite_whisper.audio import sources
from lite_whisper.cli.exit_codes import run as exit_code
from lite_whisper.common.errors import InputError
from lite_whisper.common.files import check_output_folder, remove_leftovers, temporary_name, working_folder
from lite_whisper.common.json_lines import append_lines, truncate_torn_line
from lite_whisper.evaluation.manifest import Utterance, read_manifest
from lite_whisper.lowrank.storage import load_calibration, save_calibration
from lite_whisper.training.trainer import last_checkpoint
from lite_whisper.transcription.formats import Segment, Transcript
from lite_whisper.transcription.transcriber import finished_recordings, read_transcripts
from lite_whisper_commands import load

pytestmark = pytest.mark.long

# Every stage writes into the folder in which it runs.
STAGES = {
    "convert": "convert --base-model {model} --dataset {inputs}/speech --ratio 0.3 --num-windows 2 --output lite",
    "evaluate": "evaluate {model} --dataset {inputs}/test --batch-size 2 --output results --json figures.json",
    "recover": "recover {inputs}/lite-digits --base-model {model} --dataset {inputs}/speech --steps 2 "
    "--learning-rate 1e-4 --num-windows 2 --output recovered",
    "transcribe": "transcribe {inputs}/test --model {model} --batch-size 2 --output out.jsonl",
}
# What is called when nothing is left to do but to write the result.
LAST = {
    "convert": ("lite_whisper.conversion.convert", "save_model_folder"),
    "evaluate": ("lite_whisper.cli.evaluate", "report"),
    "recover": ("lite_whisper.conversion.recover", "save_model_folder"),
    "transcribe": ("lite_whisper.transcription.transcribe", "read_transcripts"),
}
CHUNKED = ("evaluation.evaluate", "transcription.transcriber")
OUTPUTS = {"convert": "lite", "recover": "recovered", "transcribe": "out.jsonl"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    for module in CHUNKED:
        monkeypatch.setattr(f"lite_whisper.{module}.BLOCK_SIZE", 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Two folders of recordings and a compressed miniature."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, source, count in (("speech", CALIBRATION, 2), ("test", TEST, 5)):
        (folder / name).mkdir()
        for path in sorted(source.glob("*.flac"))[:count]:
            shutil.copy(path, folder / name)
    rows = (TEST / "metadata.csv").read_text().splitlines(keepends=True)
    (folder / "test/metadata.csv").write_text("".join(rows[:6]))
    options = f"--dataset {folder}/speech --recipe liteasr --thresholds 0.9:0.95 --num-windows 2"
    assert run(f"convert --base-model {MODEL} {options} --output {folder}/lite-digits") == 0
    return folder


@pytest.fixture(scope="module")
def stages(inputs: Path, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of each stage what a run leaves that is interrupted before its end, and what the next one makes of it."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in CHUNKED:
            patch.setattr(f"lite_whisper.{module}.BLOCK_SIZE", 2)
        for stage in STAGES:
            folder = tmp_path_factory.mktemp(stage)
            patch.chdir(folder)
            with patch.context() as interrupting:
                module, name = LAST[stage]
                interrupting.setattr(import_module(module), name, interrupt)
                assert run(command(stage, inputs)) == 130
            left = shutil.copytree(folder, tmp_path_factory.mktemp("left") / stage)
            assert run(command(stage, inputs)) == 0
            found[stage] = left, contents(folder)
    recovered = found["recover"][1]["recovered/compression.json"]["recovery"]
    assert recovered["loss_after"] < recovered["loss_before"]  # or else the model would be as it was
    return found


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def command(stage: str, inputs: Path) -> str:
    return STAGES[stage].format(model=MODEL, inputs=inputs)


def run(line: str) -> int:
    """Runs a command line in this process; returns the exit code."""
    name, *options = line.split()
    return load(name)(options, f"lite-whisper {name}")


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a command ended."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = re.findall(r"^error: .*$", said, re.MULTILINE)
    return line


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """To a program it looks much like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        ("convert", [1_000_000]),  # moments
        ("evaluate", [1_000, 20_000]),  # the manifest, plots
        ("recover", [100_000, 2_000_000]),  # distillation data, the weights of a checkpoint
        ("transcribe", [600]),
    ],
)
def test_a_full_disk(stage: str, sizes: list[int], inputs: Path, stages, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for size in sizes:
        with no_file_beyond(size):
            assert run(command(stage, inputs)) == 1
        assert "free some space or choose another disk" in error_of(capsys)
        assert stage not in OUTPUTS or not Path(OUTPUTS[stage]).exists()
    assert run(command(stage, inputs)) == 0
    assert not differences(stages[stage][1], contents(tmp_path))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(torch.zeros(1_000_000), path),
        lambda path: torch.from_file(str(path), shared=True, size=1_000_000),
    ],
    ids=["save", "from_file"],
)
def test_a_disk_that_is_full_for_torch(write: Callable[[Path], Any], tmp_path: Path, capsys) -> None:
    """Its exceptions do not say so by their type."""
    with no_file_beyond(1_000_000):
        assert exit_code(ArgumentParser(), lambda: write(tmp_path / "tensor")) == 1
    assert "free some space or choose another disk" in error_of(capsys)


def damages(data: bytes) -> dict[str, bytes]:
    """What may become of a file, the same every time."""
    place = random.Random(len(data)).randrange(len(data))
    return {"empty": b"", "cut off": data[: len(data) // 2], f"byte {place} changed": flip(data, place)}


def flip(data: bytes, place: int, bit: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("convert", "lite.unfinished/moments.safetensors"),
        ("evaluate", "results/MODEL_whisper-digits_DATASET_test.jsonl"),
        ("evaluate", "results/MODEL_whisper-digits_DATASET_test.settings.json"),
        ("transcribe", "out.jsonl.unfinished/origin.json"),
        ("transcribe", "out.jsonl.unfinished/transcripts.jsonl"),
        ("recover", "recovered.unfinished/training/origin.json"),
        ("recover", "recovered.unfinished/train/origin.json"),
    ],
)
def test_a_damaged_file_is_named_or_made_anew(
    stage: str, name: str, inputs: Path, stages, tmp_path: Path, monkeypatch, capsys
) -> None:
    left, undisturbed = stages[stage]
    whole = (left / name).read_bytes()
    for number, (kind, damaged) in enumerate(damages(whole).items()):
        folder = shutil.copytree(left, tmp_path / str(number))
        (folder / name).write_bytes(damaged)
        monkeypatch.chdir(folder)
        code = run(command(stage, inputs))
        if not code:
            assert not differences(undisturbed, contents(folder)), kind
            continue
        message = error_of(capsys)
        assert Path(name).name in message or Path(name).parent.name in message, kind
        assert "remove" in message, kind
        assert stage not in OUTPUTS or not Path(OUTPUTS[stage]).exists()
        # What the message says helps.
        if "settings" in name or "origin" in name:
            shutil.rmtree(folder / Path(name).parent)
        else:
            (folder / name).unlink()
        assert run(command(stage, inputs)) == 0
        assert not differences(undisturbed, contents(folder))


def test_damaged_distillation_data_and_checkpoints_are_recomputed(
    inputs: Path, stages, tmp_path: Path, monkeypatch, caplog
) -> None:
    left, undisturbed = stages["recover"]
    folder = shutil.copytree(left, tmp_path / "work")
    monkeypatch.chdir(folder)
    lesson = Path("recovered.unfinished/train/03_00000.safetensors")
    checkpoints = sorted(Path("recovered.unfinished/training").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    for path in (lesson, checkpoints[0] / "model.safetensors"):
        path.write_bytes(flip(path.read_bytes(), path.stat().st_size - 100))
    assert run(command("recover", inputs)) == 0
    assert "03_00000.safetensors is damaged" in caplog.text
    assert not differences(undisturbed, contents(folder))


def test_no_damage_to_a_checkpoint_goes_unnoticed(stages, tmp_path: Path, monkeypatch) -> None:
    left, _ = stages["recover"]
    monkeypatch.chdir(left)
    (whole,) = {last_checkpoint(Path("recovered.unfinished/training"))}
    assert whole is not None
    names = sorted(path.name for path in whole.iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "digests.json"} <= set(names)
    for name in names:
        data = (whole / name).read_bytes()
        for damaged in damages(data).values():
            folder = tmp_path / "folder"
            shutil.copytree(whole, folder / whole.name, copy_function=os.link)
            (folder / whole.name / name).unlink()
            (folder / whole.name / name).write_bytes(damaged)
            assert last_checkpoint(folder) is None and not any(folder.iterdir())
            folder.rmdir()


def test_no_flipped_bit_in_tensors_goes_unnoticed(tmp_path: Path, moments) -> None:
    save_calibration(moments[:1], tmp_path / "moments.safetensors", {"seed": 1})
    generator, damaged = random.Random(0), tmp_path / "damaged.safetensors"
    data = (tmp_path / "moments.safetensors").read_bytes()
    digest = data.find(b'"sha256"')  # by another name it is as if there were none
    places = set(range(len(data))) - set(range(digest, digest + 8))
    for place in generator.sample(sorted(places), 40):
        damaged.write_bytes(flip(data, place, generator.randrange(8)))
        with pytest.raises(InputError, match="remove"):
            load_calibration(damaged)


def test_no_flipped_bit_in_lines_goes_unnoticed(tmp_path: Path) -> None:
    """Each read is refused, or gives whole lines as they were written; those that are not there are done again."""
    generator, path = random.Random(0), tmp_path / "lines.jsonl"
    utterances = [Utterance(i, f"clip {i}", 1.5, 0.25, 0.125, 0.0625, "fünf", "six", "Fünf!", "Six.") for i in range(3)]
    transcripts = [Transcript(i, f"clip {i}", 1.5, "fünf six", [Segment(0.0, None, "fünf six")]) for i in range(3)]

    def read_kept() -> list[Transcript]:
        finished_recordings(path)
        return list(read_transcripts(path))

    written: list[tuple[list[Any], Callable[[], list[Any]]]] = [
        (utterances, lambda: read_manifest(path)),
        (transcripts, read_kept),
    ]
    refused = 0
    for lines, read in written:
        path.unlink(missing_ok=True)
        append_lines(path, lines)
        data = path.read_bytes()
        assert read() == lines
        for _ in range(300):
            path.write_bytes(flip(data, generator.randrange(len(data)), generator.randrange(8)))
            truncate_torn_line(path)
            try:
                assert all(line in lines for line in read())
            except InputError as error:
                refused += 1
                assert "remove the line" in str(error)
    assert refused > 550


@pytest.fixture
def stream(monkeypatch) -> Iterator[dict[str, Any]]:
    """A dataset of the Hub that may break off: at `row`, with `error`."""
    faults: dict[str, Any] = {}
    names = [line.split(",")[:2] for line in (TEST / "metadata.csv").read_text().splitlines()[1:7]]

    def rows() -> Iterator[dict[str, Any]]:
        for index, (name, text) in enumerate(names):
            if index == faults.get("row"):
                raise faults["error"]
            yield {"audio": {"bytes": (TEST / name).read_bytes(), "path": name}, "text": text}

    class Builder:
        config = type("Config", (), {})()
        repo_id = "org/set"

        def as_streaming_dataset(self, split: str) -> datasets.IterableDataset:
            features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
            plain = datasets.Features({"audio": sources._StoredAudio(decode=False), "text": datasets.Value("string")})
            made = datasets.IterableDataset.from_generator(rows, features=plain)
            made._info.features = features
            return made

    monkeypatch.setattr(sources, "_check_reachable", lambda name: None)
    monkeypatch.setattr(sources.datasets, "get_dataset_split_names", lambda *_: ["test"])
    monkeypatch.setattr(sources.datasets, "load_dataset_builder", lambda *_: Builder())
    yield faults


@pytest.mark.parametrize(
    "line",
    [
        f"convert --base-model {MODEL} --dataset org/set --recipe liteasr --moments moments.safetensors --output lite",
        f"evaluate {MODEL} --dataset org/set --batch-size 2 --output results",
        f"transcribe org/set --model {MODEL} --batch-size 2 --output out.jsonl",
    ],
    ids=["convert", "evaluate", "transcribe"],
)
def test_a_dataset_that_breaks_off(line: str, stream: dict[str, Any], tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "disturbed").mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    assert run(line) == 0
    monkeypatch.chdir(tmp_path / "disturbed")
    for error in (OSError("connection reset"), RuntimeError("a shard is damaged")):
        stream |= {"row": 4, "error": error}
        assert run(line) == 1
        assert re.search(rf"reading org/set failed after \d rows \({type(error).__name__}: {error}\)", error_of(capsys))
    assert not (tmp_path / "disturbed/lite").exists() and not (tmp_path / "disturbed/out.jsonl").exists()
    stream.clear()
    assert run(line) == 0
    assert not differences(contents(tmp_path / "undisturbed"), contents(tmp_path / "disturbed"))


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("recover", "--steps 6", "steps was 2, now 6"),
        ("recover", "--dtype bfloat16", "dtype was float32, now bfloat16"),
        ("recover", "--learning-rate 0.5", "learning_rate was 0.0001, now 0.5"),
        ("recover", "--num-windows 3", "num_windows was 2, now 3"),
        ("transcribe", "--batch-size 3", "batch_size was 2, now 3"),
        ("transcribe", "--language de", "language was None, now de"),
        ("evaluate", "--num-clips 3", "num_clips was None, now 3"),
        ("evaluate", "--dtype bfloat16", "dtype was float32, now bfloat16"),
    ],
)
def test_another_argument_is_refused(
    stage: str, options: str, message: str, inputs: Path, stages, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = shutil.copytree(stages[stage][0], tmp_path / "work")
    before = contents(folder)
    monkeypatch.chdir(folder)
    assert run(f"{command(stage, inputs)} {options}") == 1
    said = error_of(capsys)
    assert message in said and said.count(", now ") == 1
    assert not differences(before, contents(folder))


def test_other_recordings_are_refused(inputs: Path, stages, tmp_path: Path, monkeypatch, capsys) -> None:
    """One more at the beginning would shift the others: one lost, one doubled."""
    for stage in ("evaluate", "transcribe"):
        shutil.copytree(stages[stage][0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    first = inputs / "test/a_new_one.flac"
    last = sorted((inputs / "test").glob("*.flac"))[-1]
    metadata = inputs / "test/metadata.csv"
    rows = metadata.read_text()
    try:
        shutil.copy(CALIBRATION / "calibration_000.flac", first)
        metadata.write_text(rows.replace("\n", f"\n{first.name},one\n", 1))
        for stage in ("evaluate", "transcribe"):
            assert run(command(stage, inputs)) == 1
            assert re.search(r"test_000\.flac .*a_new_one\.flac", error_of(capsys))
        metadata.write_text("".join(line for line in rows.splitlines(keepends=True) if last.name not in line))
        assert run(command("transcribe", inputs)) == 1
        assert re.search(rf"contains .*{last.name}, which is no longer among the recordings", error_of(capsys))
    finally:
        metadata.write_text(rows)
        first.unlink()


def dead_process() -> int:
    """The number of a process that is there no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_put_back(tmp_path: Path) -> None:
    path, dead, alive = tmp_path / "lite", dead_process(), os.getppid()
    for kind in (dead, alive, os.getpid(), "x", "json"):
        name = f".lite.{kind}.tmp"
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("half of it")
    (tmp_path / f".lite.{dead}.old").mkdir()
    (tmp_path / f".lite.{dead}.old/config.json").write_text("{}")
    with pytest.raises(InputError, match="exists"):
        check_output_folder(path, False)
    kept = [f".lite.{alive}.tmp", ".lite.json.tmp", ".lite.x.tmp"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [*kept, "lite"]
    (tmp_path / f".lite.{dead}.old").mkdir()
    with temporary_name(path) as temporary:
        assert not temporary.exists() and not (tmp_path / f".lite.{dead}.old").exists()
        temporary.mkdir()
    assert list(path.iterdir()) == [] and sorted(entry.name for entry in tmp_path.iterdir()) == [*kept, "lite"]
    remove_leftovers(tmp_path / "there is none/lite")


def test_what_is_kept_goes_as_a_whole(tmp_path: Path, monkeypatch) -> None:
    """A process that is killed meanwhile leaves nothing that the next one would go on from."""
    with pytest.raises(KeyboardInterrupt), working_folder(tmp_path / "out") as work:
        work.mkdir()
        (work / "settings.json").write_text("{}")
        (work / "transcripts.jsonl").write_text("")
        monkeypatch.setattr(shutil, "rmtree", interrupt)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == [f".out.{os.getpid()}.tmp"]
    with working_folder(tmp_path / "out"):
        assert not any(tmp_path.iterdir())
