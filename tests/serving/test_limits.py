"""What the server refuses, and what happens when it is full, slow, left or broken."""

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


def until(true: Any) -> None:
    """Waits for what must come about, however slow the machine."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"language": "xx"}, 400, "language", "'xx' is not a language that whisper-digits knows, such as de"),
        ({"model": "gpt"}, 404, "model", "gpt is not served here; ask for whisper-digits"),
        ({"response_format": "diarized_json"}, 400, "response_format", "it is json, text, srt, verbose_json or vtt"),
        ({"temperature": "hot"}, 400, "temperature", "a number from 0 to 1"),
        ({"temperature": "nan"}, 400, "temperature", "a number from 0 to 1"),
        ({"temperature": "2"}, 400, "temperature", "a number from 0 to 1"),
        ({"stream": "yes"}, 400, "stream", "it is true or false"),
        ({"stream": "true", "response_format": "srt"}, 400, "stream", "srt cannot be streamed"),
        ({"chunking_strategy": "auto"}, 400, "chunking_strategy", "no field chunking_strategy here; leave it out"),
        ({"prompt": "<|en|>"}, 400, "prompt", "disallowed special token: <|en|>.; leave it out"),
        (WORDS, 400, "timestamp_granularities", "set response_format to verbose_json"),
        (
            {"timestamp_granularities[]": ["word", "segment"], "response_format": "verbose_json"},
            400,
            "timestamp_granularities",
            "one after the other",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(server, fields: dict, status: int, param: str, says: str) -> None:
    answer = server.post(SHORT.read_bytes(), **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "no audio|cannot be decoded"),
        (b"RIFF", "cannot be decoded .*; send wav, flac, ogg, opus or mp3"),
        (os.urandom(5000), "cannot be decoded .*; send wav, flac, ogg, opus or mp3"),
        (wav(0), "the file holds no audio"),
        (wav(25), "the file is longer than 20 seconds; split it"),
    ],
    ids=["empty", "header", "noise", "no samples", "long"],
)
def test_files_that_cannot_be_used(limited, file: bytes, says: str) -> None:
    answer = limited.post(file)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert re.search(says, error["message"]) and error["param"] == "file"


@pytest.fixture(scope="module")
def limited(serving) -> Any:
    with serving(max_upload=1, max_duration=20, queue=2) as server:
        yield server


def test_a_file_too_large(limited) -> None:
    answer = limited.post(bytes(1_200_000))
    assert answer.status_code == 413
    assert "larger than 1 MB; split it" in answer.json()["error"]["message"]


def test_a_file_too_large_whose_length_is_not_told(limited) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    parts = iter([head, *[bytes(100_000)] * 12, b"\r\n--x--\r\n"])
    answer = requests.post(
        f"{limited.url}/v1/audio/transcriptions",
        data=parts,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=120,
    )
    assert answer.status_code == 413


def test_bodies_that_are_no_form_with_a_file(server) -> None:
    url = f"{server.url}/v1/audio/transcriptions"
    answers = [
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
    assert [answer.status_code for answer in answers] == [400] * 9
    assert all(answer.json()["error"]["message"] for answer in answers)


def test_no_path_of_a_request_is_opened_and_nothing_is_written(server, expected, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to the disk"))
    assert server.post((str(SHORT), b"no audio")).status_code == 400
    padded = io.BytesIO()
    samples, rate = soundfile.read(SHORT)
    soundfile.write(padded, np.repeat(samples, 12), 12 * rate, format="WAV")
    assert len(padded.getvalue()) > 1_100_000  # starlette would write it to the disk
    missing = tmp_path / "../../etc/nothing.wav"
    answer = server.post((str(missing), padded.getvalue()), language="en")
    assert answer.status_code == 200 and answer.json()["text"]


def test_a_full_queue_says_when_to_come_again(limited) -> None:
    with ThreadPoolExecutor(2) as clients:
        with limited.model.held():
            waiting = [clients.submit(limited.post, SHORT.read_bytes(), language="en") for _ in range(2)]
            until(lambda: limited.metric("lite_whisper_queue_length") == 2)
            refused = limited.post(SHORT.read_bytes(), language="en")
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
            assert "all 2 places are taken" in refused.json()["error"]["message"]
            assert limited.post(wav(20), language="en").status_code == 429  # of which more is sent than is buffered
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert limited.post(SHORT.read_bytes(), language="en").status_code == 200


def leaving(url: str) -> socket.socket:
    """A client that has sent its request."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    request = requests.Request("POST", f"{url}/v1/audio/transcriptions", files={"file": SHORT.read_bytes()}).prepare()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + request.body)
    return client


def test_who_leaves_frees_the_place_and_is_not_transcribed(limited) -> None:
    left = 'lite_whisper_requests_total{status="499"}'
    before = limited.metric(left)
    with ThreadPoolExecutor(1) as clients:
        with limited.model.held():
            running = clients.submit(limited.post, SHORT.read_bytes())
            assert limited.model.entered.wait(120)
            client = leaving(limited.url)
            until(lambda: limited.metric("lite_whisper_queue_length") == 2)
            client.close()
            until(lambda: limited.metric("lite_whisper_queue_length") == 1)
        assert running.result().status_code == 200
    assert limited.post(SHORT.read_bytes()).status_code == 200
    assert [size for size, _ in limited.model.calls] == [1, 1]
    assert limited.metric(left) == before + 1


def test_those_that_wait_run_together_and_apart_where_they_differ(server) -> None:
    with ThreadPoolExecutor(7) as clients:
        with server.model.held():
            first = clients.submit(server.post, SHORT.read_bytes(), language="en")
            assert server.model.entered.wait(120)
            languages = ["en"] * 4 + ["de"] * 2
            others = [clients.submit(server.post, SHORT.read_bytes(), language=each) for each in languages]
            until(lambda: server.metric("lite_whisper_queue_length") == 7)
            time.sleep(0.5)  # the last of them may still be read
        assert [future.result().status_code for future in [first, *others]] == [200] * 7
    sizes = [(size, options["generate_kwargs"]["language"]) for size, options in server.model.calls]
    assert sizes[0] == (1, "en") and sorted(sizes[1:]) == [(2, "de"), (4, "en")]


def test_what_takes_too_long_is_given_up(serving) -> None:
    with serving(timeout=1.0) as server, server.model.held():
        answer = server.post(SHORT.read_bytes())
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert "not done within 1 seconds" in answer.json()["error"]["message"]
        until(lambda: server.metric("lite_whisper_queue_length") == 0)


def test_an_upload_that_does_not_go_on_is_given_up(serving) -> None:
    with serving(timeout=1.0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=120) as client:
            client.sendall(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert client.recv(100).startswith(b"HTTP/1.1 503")
        until(lambda: server.metric("lite_whisper_queue_length") == 0)


@pytest.mark.parametrize("fails", ["recognizer", "languages"])
def test_a_model_that_fails_fails_its_requests_alone(server, monkeypatch, fails: str, caplog) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        if fails == "recognizer":
            patch.setattr(server.model, "recognizer", broken)
        else:
            patch.setattr(server.model.model, "detect_language", broken)
        answer = server.post(SHORT.read_bytes(), response_format="verbose_json")
    assert answer.status_code == 500 and "RuntimeError" in answer.json()["error"]["message"]
    assert server.post(SHORT.read_bytes()).status_code == 200


def test_what_the_backend_cannot_do_is_refused(serving) -> None:
    with serving(backend="ctranslate2") as server:  # the recognizer is that of transformers still
        for name, value in (("prompt", "one"), ("temperature", "0.5")):
            answer = server.post(SHORT.read_bytes(), **{name: value})
            assert answer.status_code == 400 and f"takes no {name}" in answer.json()["error"]["message"]
        answer = server.post(SHORT.read_bytes(), response_format="verbose_json", **WORDS)
        assert answer.status_code == 400 and "ask for those of segments" in answer.json()["error"]["message"]


def test_a_server_ends_its_thread(serving) -> None:
    with serving():
        assert "batches" in [thread.name for thread in threading.enumerate()]
    before = [thread.name for thread in threading.enumerate()].count("batches")
    with serving():
        pass
    assert [thread.name for thread in threading.enumerate()].count("batches") == before
