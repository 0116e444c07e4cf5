"""The stand-in for the Hub, used by the real clients in separate processes."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hub_stand_in import HubStandIn

MODEL = Path(__file__).parents[2] / "examples/whisper-digits"

DOWNLOAD = """
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except huggingface_hub.errors.HfHubHTTPError as error:
        return type(error).__name__

folder = snapshot_download("org/model", allow_patterns=["*.json", "*.safetensors"])
result = {
    "folder": folder,
    "sha": huggingface_hub.model_info("org/model").sha,
    "again": hf_hub_download("org/model", "config.json", revision=folder.rpartition("/")[2]),
    "files": HfApi().list_repo_files("org/model"),
    "info": [info.size for info in HfApi().get_paths_info("org/model", ["config.json", "none"])],
    "mismatches": HfApi().verify_repo_checksums("org/model").mismatches,
    "errors": [
        error(hf_hub_download, "org/model", "missing.json"),
        error(hf_hub_download, "org/model", "config.json", revision="v2"),
        error(hf_hub_download, "org/missing", "config.json"),
        error(snapshot_download, "org/missing"),
        error(snapshot_download, "org/model", repo_type="dataset"),
    ],
}
"""

CONFIGURATION = """
from transformers import WhisperConfig

class OwnConfig(WhisperConfig):
    model_type = "own"
"""

MODELING = """
from transformers import WhisperForConditionalGeneration
from .configuration_own import OwnConfig

class OwnModel(WhisperForConditionalGeneration):
    config_class = OwnConfig
"""

LOAD = """
from transformers import AutoConfig, AutoProcessor, WhisperForConditionalGeneration, pipeline

plain = WhisperForConditionalGeneration.from_pretrained("org/model")
remote = pipeline("automatic-speech-recognition", "org/remote", trust_remote_code=True).model
config = AutoConfig.from_pretrained("org/remote", revision="main", trust_remote_code=True)
result = {
    "processor": type(AutoProcessor.from_pretrained("org/model")).__name__,
    "parameters": [plain.num_parameters(), remote.num_parameters()],
    "remote": [type(remote).__name__, config.model_type],
}
"""

# `StoredAudio` and `decode_num_threads` spare a folder of audio the torchcodec `datasets` 5 wants.
STREAM = """
import hashlib
import datasets
import fsspec

class StoredAudio(datasets.Audio):
    def encode_example(self, value):
        return {"bytes": None, "path": value} if isinstance(value, str) else value

def rows(name):
    [split] = datasets.get_dataset_split_names(name)
    builder = datasets.load_dataset_builder(name)
    builder.config.decode_num_threads = 0
    stream = builder.as_streaming_dataset(split=split)
    for row in stream.cast_column("audio", StoredAudio(decode=False)):
        audio = row["audio"]
        remote = audio["bytes"] is None
        data = fsspec.open(audio["path"], "rb").open().read() if remote else audio["bytes"]
        yield [split, remote, hashlib.sha1(data).hexdigest(), row["text"]]

table = next(iter(datasets.load_dataset("org/table", split="test", streaming=True).decode(False)))
with fsspec.open("hf://datasets/org/folder/train/0.flac", "rb") as file:
    file.seek(4)
    part = file.read(4).hex()
try:
    datasets.load_dataset("org/missing", streaming=True)
except datasets.exceptions.DatasetNotFoundError as error:
    missing = str(error)
result = {
    "table": list(rows("org/table")),
    "folder": list(rows("org/folder")),
    "path": table["audio"]["path"],
    "part": part,
    "missing": missing,
}
"""


def run(script: str, hub: HubStandIn, cache: Path) -> dict:
    """Run a script in a process whose Hub is the stand-in, and return its `result`."""
    command = [sys.executable, "-c", f"{script}\nimport json\nprint(json.dumps(result))"]
    environment = os.environ | hub.environment(cache)
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_downloads(tmp_path):
    with HubStandIn({"org/model": MODEL}) as hub:
        result = run(DOWNLOAD, hub, tmp_path)
    folder = Path(result["folder"])
    wanted = {path.name for path in MODEL.iterdir() if path.suffix in (".json", ".safetensors")}
    assert {path.name for path in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == (MODEL / name).read_bytes() for name in wanted)
    assert folder.name == result["sha"] == hub.repositories["models", "org/model"].main.sha
    assert Path(result["again"]) == folder / "config.json"
    assert set(result["files"]) == {path.name for path in MODEL.iterdir()}
    assert result["info"] == [(MODEL / "config.json").stat().st_size]
    assert result["mismatches"] == []
    expected = ["RemoteEntryNotFoundError", "RevisionNotFoundError"]
    assert result["errors"] == [*expected, *["RepositoryNotFoundError"] * 3]


@pytest.mark.slow
def test_loading_with_transformers(tmp_path):
    remote = shutil.copytree(MODEL, tmp_path / "remote")
    remote.joinpath("configuration_own.py").write_text(CONFIGURATION)
    remote.joinpath("modeling_own.py").write_text(MODELING)
    config = json.loads(remote.joinpath("config.json").read_text())
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForSpeechSeq2Seq": "modeling_own.OwnModel",
    }
    config |= {"model_type": "own", "auto_map": classes}
    remote.joinpath("config.json").write_text(json.dumps(config))
    with HubStandIn({"org/model": MODEL, "org/remote": remote}) as hub:
        result = run(LOAD, hub, tmp_path / "cache")
    assert result["processor"] == "WhisperProcessor"
    assert result["parameters"][0] == result["parameters"][1] > 1e6
    assert result["remote"] == ["OwnModel", "own"]


@pytest.mark.slow
def test_streaming_datasets(tmp_path):
    audio = []
    for seed in range(3):
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 1600)
        soundfile.write(buffer, noise, 16000, format="FLAC")
        audio.append(buffer.getvalue())
    texts = ["nought", "one", "two"]

    table, folder = tmp_path / "table", tmp_path / "folder"
    stored = [{"bytes": data, "path": f"{index}.flac"} for index, data in enumerate(audio)]
    features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = pyarrow.table({"audio": stored, "text": texts}).replace_schema_metadata(metadata)
    table.joinpath("data").mkdir(parents=True)
    pyarrow.parquet.write_table(rows, table / "data/test-00000-of-00001.parquet")

    folder.joinpath("train").mkdir(parents=True)
    for index, data in enumerate(audio):
        folder.joinpath(f"train/{index}.flac").write_bytes(data)
    lines = ["file_name,text", *(f"{index}.flac,{text}" for index, text in enumerate(texts))]
    folder.joinpath("train/metadata.csv").write_text("\n".join(lines))

    with HubStandIn({}, {"org/table": table, "org/folder": folder}) as hub:
        result = run(STREAM, hub, tmp_path / "cache")

    digests = [hashlib.sha1(data).hexdigest() for data in audio]
    assert result["table"] == [["test", False, *row] for row in zip(digests, texts, strict=True)]
    assert result["folder"] == [["train", True, *row] for row in zip(digests, texts, strict=True)]
    assert result["path"] == "0.flac"
    assert result["part"] == audio[0][4:8].hex()
    assert "org/missing" in result["missing"]


def test_ranges_and_unknown_routes(tmp_path):
    tmp_path.joinpath("digits.txt").write_text("0123456789")

    def get(path: str, **headers: str) -> tuple[int, bytes, str | None]:
        request = urllib.request.Request(hub.endpoint + path, headers=headers)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read(), response.headers["Content-Range"]
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers["Content-Range"]

    with HubStandIn({"digits": tmp_path}) as hub:
        file = "/digits/resolve/main/digits.txt"
        assert get(file) == (200, b"0123456789", None)
        assert get(file, Range="bytes=2-4") == (206, b"234", "bytes 2-4/10")
        assert get(file, Range="bytes=7-") == (206, b"789", "bytes 7-9/10")
        assert get(file, Range="bytes=-2") == (206, b"89", "bytes 8-9/10")
        assert get(file, Range="bytes=10-") == (416, b"", "bytes */10")
        assert get("/api/unknown")[0] == 404
    assert hub.requests[-1] == ("GET", "/api/unknown", 404)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(hub.endpoint + file)
