"""`transformers serve` on folders from this program: it serves a merged model and cannot load a compressed one."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import soundfile
from conversions import environment
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from lite_whisper.conversion.rewriting import merge

SHORT = Path(__file__).parents[2] / "examples/digits/test/test_001.flac"
TIMEOUT = 600  # seconds; generous, for busy machines
pytestmark = pytest.mark.slow


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    program = Path(sys.executable).with_name("transformers")
    words = [program, "serve", folder, "--trust-remote-code", "--port", port, "--host", "127.0.0.1", "--device", "cpu"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=TIMEOUT).ok
    except requests.ConnectionError:
        return False


def test_a_merged_folder_is_served_and_fields_are_ignored(converted: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    merge(str(converted), stock)
    samples, rate = soundfile.read(SHORT, dtype="float32")
    processor = AutoProcessor.from_pretrained(stock)
    features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
    tokens = AutoModelForSpeechSeq2Seq.from_pretrained(stock).generate(features)
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    with served(stock) as (process, url):
        end = time.monotonic() + TIMEOUT
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        for fields in ({}, {"response_format": "srt", "language": "de", "prompt": "one"}):
            response = requests.post(
                f"{url}/v1/audio/transcriptions",
                files={"file": SHORT.read_bytes()},
                data={"model": str(stock), **fields},
                timeout=TIMEOUT,
            )
            assert response.json() == {"text": text} and text.strip()


def test_a_compressed_folder_is_not_loaded(converted: Path) -> None:
    """If this fails, transformers can load such folders now; update docs/guide/serve.md, which says it cannot."""
    with served(converted) as (process, _):
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode and "has no attribute LiteWhisperForConditionalGeneration" in output
