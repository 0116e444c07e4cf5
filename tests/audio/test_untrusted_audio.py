"""Untrusted audio: a dataset can only read its own files, and a malicious clip only affects itself."""

import io
import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hub_stand_in import HubStandIn

from lite_whisper.audio import AudioDataset, decode
from lite_whisper.audio.clips import Entry
from lite_whisper.common.errors import InputError

READ = """
import sys, json
from lite_whisper.audio import AudioDataset
dataset = AudioDataset(sys.argv[1:])
read = [clip.name.rpartition("/")[2] for clip in dataset]
print(json.dumps([read, dataset.skipped]))
"""
AUDIO = '{"info": {"features": {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}}}'


def tone() -> bytes:
    """A short flac."""
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(1600) / 5), 16_000, format="flac")
    return file.getvalue()


def read_from_hub(folder: Path, cache: Path) -> tuple[list[str], list[str], list[str]]:
    """Reads a Hub dataset; returns the clips that were read, those skipped, and the requests to the Hub."""
    with HubStandIn({}, {"org/set": folder}) as hub:
        result = subprocess.run(
            [sys.executable, "-c", READ, "org/set"],
            env=os.environ | hub.environment(cache),
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert result.returncode == 0, result.stderr
    read, skipped = json.loads(result.stdout)
    return read, skipped, [target for _, target, _ in hub.requests]


def test_a_hub_dataset_cannot_read_local_files_or_other_hosts(tmp_path: Path) -> None:
    (tmp_path / "private.flac").write_bytes(tone())
    folder = tmp_path / "set"
    folder.mkdir()
    with HubStandIn({}) as internal:
        elsewhere = [
            "/dev/zero",
            str(tmp_path / "private.flac"),
            f"file://{tmp_path}/private.flac",
            f"{internal.endpoint}/secret.flac",
            "private.flac",
            "hf://datasets/org/set/../other/private.flac",
            "hf://datasets/org/set-of-others/private.flac",
            f"filecache://private.flac::file://{tmp_path}/private.flac",
            f"zip://private.flac::{internal.endpoint}/secret.zip",
            f"reference://private.flac::hf://datasets/org/set@main/private.json::file://{tmp_path}/x",
        ]
        rows = [{"bytes": None, "path": path} for path in elsewhere]
        rows += [{"bytes": tone(), "path": "inside.flac"}, {"bytes": None, "path": None}, None]
        table = pyarrow.table({"audio": rows, "text": ["one"] * len(rows)})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": AUDIO}), folder / "train.parquet")
        read, skipped, _ = read_from_hub(folder, tmp_path / "cache")
        assert internal.requests == []
    assert read == ["inside.flac"]
    assert len(skipped) == len(elsewhere) + 2
    for path, reason in zip(elsewhere, skipped, strict=False):
        assert reason == f"{path}: lies outside the dataset that lists it; a dataset may only list its own files"
    assert all(reason.endswith("contains no audio") for reason in skipped[len(elsewhere) :])


@pytest.mark.parametrize("kind", ["files", "zip"])
def test_a_hub_dataset_can_read_its_own_files_and_archives(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    files = {"a.flac": tone(), "b.flac": tone(), "metadata.csv": b"file_name,text\na.flac,one\nb.flac,two\n"}
    if kind == "files":
        for name, content in files.items():
            (folder / name).write_bytes(content)
    else:
        with zipfile.ZipFile(folder / "train.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    read, skipped, _ = read_from_hub(tmp_path / "set", tmp_path / "cache")
    assert (sorted({name.partition("::")[0] for name in read}), skipped) == (
        ["a.flac", "b.flac"] if kind == "files" else ["train.zip"],
        [],
    )


@pytest.mark.parametrize("name", ["../private.flac", "deep/../../private.flac", "{}/private.flac", "/dev/zero"])
def test_metadata_cannot_read_files_outside_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for path in (tmp_path / "private.flac", tmp_path / "set/a.flac"):
        path.write_bytes(tone())
    rows = [{"file_name": name.format(tmp_path)}, {"file_name": "a.flac"}]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = AudioDataset([str(tmp_path / "set")])
    assert [clip.name for clip in dataset] == ["set/a.flac"]
    assert len(dataset.skipped) == 1 and "lies outside" in dataset.skipped[0]


def test_deeply_nested_metadata_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"metadata\.jsonl is malformed"):
        AudioDataset([str(tmp_path)])


def test_a_small_file_of_many_hours_is_skipped_during_decoding(tmp_path: Path) -> None:
    """Five hours of silence at 1 kHz take 50 kB; resampled to 16 kHz they would take 1.2 GB of memory."""
    with soundfile.SoundFile(tmp_path / "b.flac", "w", 1000, 1, "PCM_16") as sound:
        for _ in range(5):
            sound.write(np.zeros(3_600_000, np.int16))
    (tmp_path / "a.flac").write_bytes(tone())
    dataset = AudioDataset([str(tmp_path)])
    assert [clip.name.rpartition("/")[2] for clip in dataset] == ["a.flac"]
    assert dataset.skipped == [f"{tmp_path.name}/b.flac: is longer than 4 hours; split it"]


def test_decoding_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = itertools.count()

    def endless(_: object) -> object:
        for _ in blocks:
            yield np.zeros(1 << 20, np.float32)

    monkeypatch.setattr("lite_whisper.audio.decoding._resampled_blocks", endless)
    with pytest.raises(InputError, match="longer than 4 hours"):
        decode(io.BytesIO(tone()))
    assert next(blocks) == 4 * 3600 * 16_000 // (1 << 20) + 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("from a library"), RecursionError()])
def test_any_error_while_loading_is_reported_for_the_clip(error: Exception, tmp_path: Path) -> None:
    def load() -> Path:
        raise error

    with pytest.raises(InputError, match=f"cannot be read .{type(error).__name__}"):
        Entry("clip", load, None, "clip").read()
