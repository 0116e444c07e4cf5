"""The command `lite-whisper serve`: starting, messages and shutdown."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from conversions import environment

from lite_whisper.cli.serve import main
from lite_whisper.serving.settings import ServingSettings

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "examples/whisper-digits"
SHORT = ROOT / "examples/digits/test/test_001.flac"
PAGE = ROOT / "docs/guide/serve.md"
TIMEOUT = 300  # seconds; generous, for busy machines
# The command with a model that creates the file `begun` on its first call, and waits until the file `go_on` exists.
PROGRAM = """
import sys, time
from pathlib import Path
import lite_whisper.serving.serve as serving
from lite_whisper.cli.serve import main

begun, go_on = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
load = serving.load_recognizer

class PausableRecognizer:
    def __init__(self, recognizer):
        self.model, self.tokenizer = recognizer.model, recognizer.tokenizer
        self.feature_extractor, self.recognizer = recognizer.feature_extractor, recognizer

    def __call__(self, inputs, **options):
        begun.touch()
        while not go_on.exists():
            time.sleep(0.02)
        return self.recognizer(inputs, **options)

def load_pausable(*arguments):
    recognizer, choice = load(*arguments)
    return PausableRecognizer(recognizer), choice

serving.load_recognizer = load_pausable
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def started(*options: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """Starts a server with a model that can be paused; yields its process and URL."""
    words = [sys.executable, "-c", PROGRAM, *map(str, options), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT.parent
    )
    try:
        assert process.stdout is not None
        message = process.stdout.readline()
        found = re.fullmatch(r"serving .*whisper-digits at (http://127\.0\.0\.1:\d+); press Ctrl-C to stop\n", message)
        assert found, message
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def post(url: str, **fields: str) -> requests.Response:
    files = {"file": SHORT.read_bytes()}
    return requests.post(f"{url}/v1/audio/transcriptions", files=files, data=fields, timeout=TIMEOUT)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_refused(url: str) -> bool:
    try:
        requests.get(f"{url}/health", timeout=TIMEOUT)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_shutdown_finishes_running_requests_and_accepts_no_others(tmp_path: Path, number: int) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    with started(begun, go_on, MINIATURE) as (process, url), ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(post, url, language="en")]
        wait_until(begun.exists)
        answers.append(clients.submit(post, url, language="en"))  # waits for the next batch
        wait_until(lambda: "queue_length 2.0" in requests.get(f"{url}/metrics", timeout=TIMEOUT).text)
        process.send_signal(number)
        wait_until(lambda: is_refused(url))
        go_on.touch()
        texts = [answer.result().json()["text"] for answer in answers]
        assert texts[0] == texts[1] != ""
        output, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, output, errors) == (0, "", "")


def test_shutdown_waits_no_longer_than_the_timeout(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with started(begun, tmp_path / "never", MINIATURE, "--timeout", "2") as (process, url):
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(post, url)
            wait_until(begun.exists)
            process.send_signal(signal.SIGTERM)
            assert answer.exception() or answer.result().status_code == 503
        process.communicate(timeout=TIMEOUT)
        assert process.returncode is not None


def test_an_address_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(MINIATURE), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1, port {port} (Address already in use); choose another port (--port)\n"
    )


def test_a_missing_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["./nowhere", "--port", "0"]) == 1
    assert capsys.readouterr().err == "error: the folder ./nowhere does not exist; check the path\n"


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "python_multipart", "prometheus_client"])
def test_a_missing_package(package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lite_whisper.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(MINIATURE), "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the server requires FastAPI (") and error.count("\n") == 1
    assert "pip install 'lite-whisper[serve]'" in error


@pytest.mark.parametrize(
    "options", [["--port", "70000"], ["--max-requests", "0"], ["--max-upload", "0"], ["--timeout", "x"]], ids=" ".join
)
def test_options_out_of_range(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(MINIATURE), *options])
    assert end.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err


def test_the_page_states_the_defaults() -> None:
    stated = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) ", PAGE.read_text(), flags=re.MULTILINE))
    settings = ServingSettings("")
    defaults = {name: f"{getattr(settings, name.replace('-', '_')):g}" for name in stated}
    assert stated == defaults and len(stated) == 4
