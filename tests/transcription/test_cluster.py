"""`lite-whisper transcribe --ray` on a cluster of two nodes against the same command without Ray; dying actors."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from lite_whisper.cli.transcribe import main
from lite_whisper.transcription import transcriber
from lite_whisper.transcription.formats import Transcript

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"
ACTOR = "ray::MapWorker"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven short files, one long and one broken."""
    folder = tmp_path_factory.mktemp("workplace") / "recordings"
    folder.mkdir()
    for path in sorted((EXAMPLES / "digits/test").glob("*.flac"))[:11]:
        shutil.copy(path, folder)
    shutil.copy(EXAMPLES / "digits/longform/longform_000.flac", folder)
    (folder / "a_broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster(recordings: Path) -> Iterator[None]:
    """Two nodes with one CPU each and working directories where relative paths do not resolve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcriber, "BLOCK_SIZE", 2)
        patch.setenv("RAY_worker_niceness", "0")  # by default, workers yield to all other processes
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", nodes.address)
        patch.chdir(recordings.parent)
        yield
        nodes.shutdown()


def transcribe(output: Path, *options: str) -> int:
    command = ["recordings", "--model", str(EXAMPLES / "whisper-digits"), "--output", str(output), "--language", "en"]
    return main([*command, "--batch-size", "2", *options])


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the command without a cluster."""
    output = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    assert transcribe(output) == 0
    return output


def test_a_cluster_resumes_a_local_run_even_if_an_actor_is_killed(
    undisturbed: Path, tmp_path: Path, monkeypatch
) -> None:
    append_lines, calls = transcriber.append_lines, []

    def interrupted(path: Path, found: list) -> None:
        calls.append(len(found))
        if len(calls) > 2:
            raise KeyboardInterrupt
        append_lines(path, found)

    monkeypatch.setattr(transcriber, "append_lines", interrupted)
    assert transcribe(tmp_path / "out.jsonl") == 130
    monkeypatch.setattr(transcriber, "append_lines", append_lines)
    lines = tmp_path / "out.jsonl.unfinished/transcripts.jsonl"
    lines.open("ab").write(b'{"index": 3, "aud')
    begun, killed = len(lines.read_bytes()), []

    def kill() -> None:
        while lines.exists() and len(lines.read_bytes()) <= begun:
            time.sleep(0.02)
        actors = [process for process in psutil.process_iter(["name", "cmdline"]) if is_actor(process)]
        assert len(actors) == 2
        actors[0].send_signal(signal.SIGKILL)
        killed.append(actors[0].pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert transcribe(tmp_path / "out.jsonl", "--ray") == 0
    assert killed
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def is_actor(process: psutil.Process) -> bool:
    """Whether a process is an actor of this test; other tests may run at the same time."""
    command = process.info["cmdline"] or [""]
    return command[0].startswith(ACTOR) and os.getpid() in [parent.pid for parent in process.parents()]


def test_an_error_on_a_node_is_reported_in_one_line(undisturbed: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    append_lines = transcriber.append_lines

    def interrupted(path: Path, found: list[Transcript]) -> None:
        append_lines(path, [Transcript(0, "other.wav")])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transcriber, "append_lines", interrupted)
        assert transcribe(tmp_path / "out.jsonl") == 130
    assert transcribe(tmp_path / "out.jsonl", "--ray") == 1
    assert "contains other.wav instead of recordings/" in capsys.readouterr().err.strip().splitlines()[-1]
