"""Conversion and evaluation by three processes, which `accelerate launch` starts, against one."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from accelerate import PartialState
from hub_stand_in import HubStandIn
from launch import launch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import AudioDataset, Entry
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.evaluation.manifest import Utterance, read_manifest
from lite_whisper.lowrank.compression import encoder_spectra
from lite_whisper.lowrank.storage import load_calibration
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"
AUDIO = ROOT / "examples/digits/calibration"
TEST = ROOT / "examples/digits/test"

CONVERT = ["--base-model", MODEL, "--dataset", AUDIO, "--num-windows", 5, "--batch-size", 1, "--ratio", 0.2]
CONVERT += ["--rank-multiple", 4, "--device", "cpu", "--calibration-file", "moments.safetensors", "--output", "lite"]
EVALUATE = [MODEL, "--dataset", "recordings", "org/strings", "--batch-size", 2, "--device", "cpu", "--language", "en"]

PROGRAM = f"""
import os, signal, sys
from accelerate import PartialState
from lite_whisper.cli import convert
from lite_whisper.cli import evaluate
from lite_whisper.evaluation import evaluate as runner
from lite_whisper.lowrank import compression

if "--break" in sys.argv:
    solve, calls = compression.factorize, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 3 and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return solve(*arguments)

    compression.factorize = broken
runner.BLOCK_SIZE = 3
code = convert.main({[str(word) for word in CONVERT]})
sys.exit(code or evaluate.main({[str(word) for word in EVALUATE]}))
"""


def strings(folder: Path) -> Path:
    """A dataset of ten strings in three files."""
    texts = dict(line.split(",", 1) for line in (TEST / "metadata.csv").read_text().splitlines()[1:])
    features = '{"info": {"features": {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}}}'
    names = sorted(texts)[20:30]
    for file, part in enumerate((names[:4], names[4:5], names[5:])):
        rows = {
            "audio": [{"bytes": (TEST / name).read_bytes(), "path": name} for name in part],
            "text": [texts[name] for name in part],
        }
        table = pyarrow.table(rows).replace_schema_metadata({"huggingface": features})
        folder.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, folder / f"test-{file:05}-of-00003.parquet")
    return folder


def assert_same_calibration(one: Path, three: Path) -> None:
    """Eigenvalues within 1e-6 of the largest, in units of the loss and as variances."""
    model = WhisperForConditionalGeneration.from_pretrained(MODEL)
    (moments, sensitivities, origin), (by_three, sensitivities_by_three, origin_by_three) = map(
        load_calibration, (one, three)
    )
    assert origin_by_three == origin and origin["frames"] == 5 * 300
    assert sensitivities.languages == sensitivities_by_three.languages
    for ours, theirs in (
        (encoder_spectra(model, by_three), encoder_spectra(model, moments)),
        (encoder_spectra(model, by_three, sensitivities_by_three), encoder_spectra(model, moments, sensitivities)),
    ):
        for layer, expected in zip(ours, theirs, strict=True):
            for projection, spectrum in expected.items():
                difference = (layer[projection].eigenvalues - spectrum.eigenvalues).abs().max()
                assert difference <= 1e-6 * spectrum.eigenvalues.max(), projection


def assert_same_outputs(one: Path, three: Path) -> None:
    """The same encoder up to rounding, and the same transcripts."""
    models = [LiteWhisperForConditionalGeneration.from_pretrained(folder) for folder in (one, three)]
    processor = WhisperProcessor.from_pretrained(MODEL)
    clips = list(AudioDataset([str(TEST)]))[:12]
    audio = [clip.samples for clip in clips]
    features = processor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected, found = (model.get_encoder()(features)[0] for model in models)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert transcribe(models[1], processor, clips).texts == transcribe(models[0], processor, clips).texts


def spoken(line: Utterance) -> dict:
    """All of a line but the times."""
    return {name: value for name, value in asdict(line).items() if not name.endswith("time")}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight strings, of which one cannot be read and one has no transcript."""
    folder = tmp_path_factory.mktemp("recordings") / "recordings"
    folder.mkdir()
    lines = (TEST / "metadata.csv").read_text().splitlines()[:9]
    for line in lines[1:]:
        shutil.copy(TEST / line.split(",")[0], folder)
    (folder / lines[3].split(",")[0]).write_bytes(b"broken")
    lines[6] = lines[6].split(",")[0] + ","
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.long
def test_three_processes_do_what_one_does(recordings: Path, tmp_path: Path, monkeypatch) -> None:
    """The same eigenvalues, ranks, transcripts and figures; after one process was killed as well."""
    with HubStandIn({}, {"org/strings": strings(tmp_path / "strings")}) as hub:
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        folders = {processes: tmp_path / str(processes) for processes in (1, 3)}
        for folder in folders.values():
            shutil.copytree(recordings, folder / "recordings")
            (folder / "program.py").write_text(PROGRAM)
        broken = launch(3, folders[3], "program.py", "--break")
        assert broken.returncode != 0 and "SIGKILL" in broken.stderr
        assert not (folders[3] / "lite").exists() and (folders[3] / "moments.safetensors").exists()
        results = [launch(processes, folder, "program.py") for processes, folder in folders.items()]
    for result, folder in zip(results, folders.values(), strict=True):
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("written to lite") == result.stdout.count("written to results") == 1
        left = {"program.py", "recordings", "moments.safetensors", "lite", "results"}
        assert {path.name for path in folder.iterdir()} == left
    assert_same_calibration(*(folder / "moments.safetensors" for folder in folders.values()))
    reports = [json.loads((folder / "lite/compression.json").read_text()) for folder in folders.values()]
    assert reports[0]["low_rank_config"] == reports[1]["low_rank_config"]
    assert_same_outputs(*(folder / "lite" for folder in folders.values()))
    manifests = [sorted((folder / "results").glob("*.jsonl")) for folder in folders.values()]
    assert len(manifests[0]) == 2
    for one, three in zip(*manifests, strict=True):
        assert [spoken(line) for line in read_manifest(three)] == [spoken(line) for line in read_manifest(one)]
    assert [line.index for line in read_manifest(manifests[1][0])] == [
        *range(4),
        1_000_000,
        *range(2_000_000, 2_000_005),
    ]
    assert [line.index for line in read_manifest(manifests[1][1])] == [0, 1, 3, 4, 6, 7]
    settings = json.loads(manifests[1][1].with_suffix(".settings.json").read_text())
    assert settings["left_out"] == 1 and len(settings["skipped"]) == 1


@pytest.mark.parametrize("num_windows", [None, 7])
@pytest.mark.parametrize("processes", [2, 3, 4, 5])
def test_every_clip_is_read_by_one_process(processes: int, num_windows: int | None, monkeypatch) -> None:
    """The same blocks, however many processes; of a dataset in three parts each process opens its own alone."""
    opened: list[int] = []

    def part(number: int, clips: int) -> Iterator[Entry]:
        opened.append(number)
        yield from (Entry(f"{number}-{clip}", Path, None, "") for clip in range(clips))

    dataset = AudioDataset([])
    dataset._sources = [[partial(part, 0, 5), partial(part, 1, 0), partial(part, 2, 4)]]
    whole = list(dataset.blocks(2, num_windows))
    assert sum(map(len, whole)) == (num_windows or 9)
    found = []
    for process in range(processes):
        monkeypatch.setitem(PartialState._shared_state, "num_processes", processes)
        monkeypatch.setitem(PartialState._shared_state, "process_index", process)
        opened.clear()
        found += dataset.blocks(2, num_windows)
        if processes <= 3 and num_windows is None:
            assert opened == list(range(process, 3, processes))
    assert sorted(found, key=lambda block: block[0][0]) == whole
