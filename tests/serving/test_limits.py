"""Rejected requests; a full server, timeouts, disconnecting clients and failures of the model."""

import io
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import pytest
import requests
import soundfile

SHORT = Path(__file__).parents[2] / "examples/digits/test/test_001.flac"
WORDS = {"timestamp_granularities[]": "word"}


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(size=int(16_000 * seconds)) / 10, 16_000, format="WAV")
    return file.getvalue()


def wait_until(condition: Any) -> None:
    """Waits until a condition holds, however slow the machine."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"language": "xx"}, 400, "language", "does not support the language 'xx'; use a code or name such as de"),
        ({"model": "gpt"}, 404, "model", "unknown model gpt; this server provides whisper-digits"),
        ({"response_format": "diarized_json"}, 400, "response_format", "choose json, text, srt, verbose_json or vtt"),
        ({"temperature": "hot"}, 400, "temperature", "a number from 0 to 1"),
        ({"temperature": "nan"}, 400, "temperature", "a number from 0 to 1"),
        ({"temperature": "2"}, 400, "temperature", "a number from 0 to 1"),
        ({"stream": "yes"}, 400, "stream", "choose true or false"),
        ({"stream": "true", "response_format": "srt"}, 400, "stream", "srt cannot be streamed"),
        (
            {"chunking_strategy": "auto"},
            400,
            "chunking_strategy",
            "unknown field chunking_strategy; supported fields: file, ",
        ),
        ({"prompt": "<|en|>"}, 400, "prompt", "disallowed special token: <|en|>.; remove it"),
        (WORDS, 400, "timestamp_granularities", "requires the response_format verbose_json, not json"),
        (
            {"timestamp_granularities[]": ["word", "segment"], "response_format": "verbose_json"},
            400,
            "timestamp_granularities",
            "cannot be combined; send one request for each",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_requests_are_rejected(server, fields: dict, status: int, param: str, message: str) -> None:
    response = server.post(SHORT.read_bytes(), **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "no audio|cannot be decoded"),
        (b"RIFF", "cannot be decoded .*; send wav, flac, ogg, opus or mp3"),
        (os.urandom(5000), "cannot be decoded .*; send wav, flac, ogg, opus or mp3"),
        (wav(0), "the file contains no audio"),
        (wav(25), "the file is longer than 20 seconds; split it"),
    ],
    ids=["empty", "header", "noise", "no samples", "long"],
)
def test_unusable_files_are_rejected(limited, file: bytes, message: str) -> None:
    response = limited.post(file)
    error = response.json()["error"]
    assert response.status_code == 400
    assert re.search(message, error["message"]) and error["param"] == "file"


@pytest.fixture(scope="module")
def limited(serving) -> Any:
    with serving(max_upload=1, max_duration=20, max_requests=2) as server:
        yield server


def test_a_file_too_large(limited) -> None:
    response = limited.post(bytes(1_200_000))
    assert response.status_code == 413
    assert "larger than 1 MB; split it" in response.json()["error"]["message"]


def test_a_file_too_large_with_chunked_encoding(limited) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    parts = iter([head, *[bytes(100_000)] * 12, b"\r\n--x--\r\n"])
    response = requests.post(
        f"{limited.url}/v1/audio/transcriptions",
        data=parts,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=120,
    )
    assert response.status_code == 413


def test_bodies_without_a_form_and_a_file(server) -> None:
    url = f"{server.url}/v1/audio/transcriptions"
    responses = [
        requests.post(url, json={"file": "/etc/hostname"}, timeout=120),
        requests.post(url, data={"file": str(SHORT)}, timeout=120),
        requests.post(url, files={"file": (None, str(SHORT))}, timeout=120),
        requests.post(url, files={"audio": SHORT.read_bytes()}, timeout=120),
        requests.post(url, files=[("file", SHORT.read_bytes()), ("file", b"more")], timeout=120),
        requests.post(url, data=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"}, timeout=120),
        requests.post(url, data=b"--x", headers={"Content-Type": "multipart/form-data"}, timeout=120),
        requests.post(url, files={"file": b""}, data={f"f{n}": "x" for n in range(40)}, timeout=120),
        requests.post(url, files={"file": b""}, data={"prompt": "x" * 100_000}, timeout=120),
    ]
    assert [response.status_code for response in responses] == [400] * 9
    assert all(response.json()["error"]["message"] for response in responses)


def test_file_names_are_not_opened_and_uploads_not_written_to_disk(
    server, expected, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to disk"))
    assert server.post((str(SHORT), b"no audio")).status_code == 400
    padded = io.BytesIO()
    samples, rate = soundfile.read(SHORT)
    soundfile.write(padded, np.repeat(samples, 12), 12 * rate, format="WAV")
    assert len(padded.getvalue()) > 1_100_000  # starlette would write it to disk
    missing = tmp_path / "../../etc/nothing.wav"
    response = server.post((str(missing), padded.getvalue()), language="en")
    assert response.status_code == 200 and response.json()["text"]


def test_a_full_queue_says_when_to_come_again(limited) -> None:
    with ThreadPoolExecutor(2) as clients:
        with limited.model.paused():
            waiting = [clients.submit(limited.post, SHORT.read_bytes(), language="en") for _ in range(2)]
            wait_until(lambda: limited.metric("lite_whisper_queue_length") == 2)
            rejected = limited.post(SHORT.read_bytes(), language="en")
            assert rejected.status_code == 429 and int(rejected.headers["Retry-After"]) >= 1
            assert "all 2 slots are in use" in rejected.json()["error"]["message"]
            assert limited.post(wav(20), language="en").status_code == 429  # exceeds the socket buffers
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert limited.post(SHORT.read_bytes(), language="en").status_code == 200


def send_and_return(url: str) -> socket.socket:
    """Sends a request and returns the open connection."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    request = requests.Request("POST", f"{url}/v1/audio/transcriptions", files={"file": SHORT.read_bytes()}).prepare()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + request.body)
    return client


def test_a_disconnected_client_frees_its_slot(limited) -> None:
    disconnected = 'lite_whisper_requests_total{status="499"}'
    before = limited.metric(disconnected)
    with ThreadPoolExecutor(1) as clients:
        with limited.model.paused():
            running = clients.submit(limited.post, SHORT.read_bytes())
            assert limited.model.entered.wait(120)
            client = send_and_return(limited.url)
            wait_until(lambda: limited.metric("lite_whisper_queue_length") == 2)
            client.close()
            wait_until(lambda: limited.metric("lite_whisper_queue_length") == 1)
        assert running.result().status_code == 200
    assert limited.post(SHORT.read_bytes()).status_code == 200
    assert [size for size, _ in limited.model.calls] == [1, 1]
    assert limited.metric(disconnected) == before + 1


def test_waiting_requests_with_the_same_options_share_a_batch(server) -> None:
    with ThreadPoolExecutor(7) as clients:
        with server.model.paused():
            first = clients.submit(server.post, SHORT.read_bytes(), language="en")
            assert server.model.entered.wait(120)
            languages = ["en"] * 4 + ["de"] * 2
            others = [clients.submit(server.post, SHORT.read_bytes(), language=each) for each in languages]
            wait_until(lambda: server.metric("lite_whisper_queue_length") == 7)
            time.sleep(0.5)  # the last one may still be decoding
        assert [future.result().status_code for future in [first, *others]] == [200] * 7
    sizes = [(size, options["generate_kwargs"]["language"]) for size, options in server.model.calls]
    assert sizes[0] == (1, "en") and sorted(sizes[1:]) == [(2, "de"), (4, "en")]


def test_a_slow_request_times_out(serving) -> None:
    with serving(timeout=1.0) as server, server.model.paused():
        response = server.post(SHORT.read_bytes())
        assert response.status_code == 503 and response.headers["Retry-After"]
        assert "timed out after 1 seconds" in response.json()["error"]["message"]
        wait_until(lambda: server.metric("lite_whisper_queue_length") == 0)


def test_a_stalled_upload_times_out(serving) -> None:
    with serving(timeout=1.0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=120) as client:
            client.sendall(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert client.recv(100).startswith(b"HTTP/1.1 503")
        wait_until(lambda: server.metric("lite_whisper_queue_length") == 0)


@pytest.mark.parametrize("fails", ["recognizer", "languages"])
def test_a_failing_model_fails_only_its_requests(server, monkeypatch, fails: str, caplog) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        if fails == "recognizer":
            patch.setattr(server.model, "recognizer", broken)
        else:
            patch.setattr(server.model.model, "detect_language", broken)
        response = server.post(SHORT.read_bytes(), response_format="verbose_json")
    assert response.status_code == 500 and "RuntimeError" in response.json()["error"]["message"]
    assert server.post(SHORT.read_bytes()).status_code == 200


def test_features_missing_in_the_backend_are_rejected(serving) -> None:
    with serving(backend="ctranslate2") as server:  # the recognizer is still that of transformers
        for name, value in (("prompt", "one"), ("temperature", "0.5")):
            response = server.post(SHORT.read_bytes(), **{name: value})
            assert response.status_code == 400 and f"does not support {name}" in response.json()["error"]["message"]
        response = server.post(SHORT.read_bytes(), response_format="verbose_json", **WORDS)
        assert response.status_code == 400 and "request segment timestamps" in response.json()["error"]["message"]


def test_a_server_stops_its_thread(serving) -> None:
    with serving():
        assert "batches" in [thread.name for thread in threading.enumerate()]
    before = [thread.name for thread in threading.enumerate()].count("batches")
    with serving():
        pass
    assert [thread.name for thread in threading.enumerate()].count("batches") == before
