"""The command `lite-whisper serve`: how it starts, what it says, how it stops."""

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
PATIENCE = 300  # seconds; of a machine that is busy with other things
# The command as it is, with a model that says when it begins and waits until it may go on.
HELD = """
import sys, time
from pathlib import Path
import lite_whisper.serving.serve as serving
from lite_whisper.cli.serve import main

begun, go_on = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
load = serving.load_recognizer

class Held:
    def __init__(self, recognizer):
        self.model, self.tokenizer = recognizer.model, recognizer.tokenizer
        self.feature_extractor, self.recognizer = recognizer.feature_extractor, recognizer

    def __call__(self, inputs, **options):
        begun.touch()
        while not go_on.exists():
            time.sleep(0.02)
        return self.recognizer(inputs, **options)

def held(*arguments):
    recognizer, choice = load(*arguments)
    return Held(recognizer), choice

serving.load_recognizer = held
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def started(*options: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process of a server, with a model that can be held, and its address."""
    words = [sys.executable, "-c", HELD, *map(str, options), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT.parent
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.fullmatch(r".*whisper-digits is served at (http://127\.0\.0\.1:\d+); Ctrl-C ends it\n", said)
        assert found, said
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def post(url: str, **fields: str) -> requests.Response:
    files = {"file": SHORT.read_bytes()}
    return requests.post(f"{url}/v1/audio/transcriptions", files=files, data=fields, timeout=PATIENCE)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_refused(url: str) -> bool:
    try:
        requests.get(f"{url}/health", timeout=PATIENCE)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_it_finishes_what_is_under_way_and_takes_no_more(tmp_path: Path, number: int) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    with started(begun, go_on, MINIATURE) as (process, url), ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(post, url, language="en")]
        until(begun.exists)
        answers.append(clients.submit(post, url, language="en"))  # waits for the next batch
        until(lambda: "queue_length 2.0" in requests.get(f"{url}/metrics", timeout=PATIENCE).text)
        process.send_signal(number)
        until(lambda: is_refused(url))
        go_on.touch()
        texts = [answer.result().json()["text"] for answer in answers]
        assert texts[0] == texts[1] != ""
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output, errors) == (0, "", "")


def test_it_does_not_wait_longer_than_the_timeout(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with started(begun, tmp_path / "never", MINIATURE, "--timeout", "2") as (process, url):
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(post, url)
            until(begun.exists)
            process.send_signal(signal.SIGTERM)
            assert answer.exception() or answer.result().status_code == 503
        process.communicate(timeout=PATIENCE)
        assert process.returncode is not None


def test_an_address_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(MINIATURE), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1, port {port} (Address already in use); give another (--port)\n"
    )


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["./nowhere", "--port", "0"]) == 1
    assert capsys.readouterr().err == "error: there is no folder ./nowhere; check the path\n"


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "python_multipart", "prometheus_client"])
def test_a_package_that_is_missing(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("lite_whisper.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(MINIATURE), "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a server needs FastAPI (") and error.count("\n") == 1
    assert "pip install 'lite-whisper[serve]'" in error


@pytest.mark.parametrize(
    "options", [["--port", "70000"], ["--queue", "0"], ["--max-upload", "0"], ["--timeout", "x"]], ids=" ".join
)
def test_options_out_of_range(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(MINIATURE), *options])
    assert end.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err


def test_the_page_tells_the_defaults() -> None:
    told = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) ", PAGE.read_text(), flags=re.MULTILINE))
    settings = ServingSettings("")
    known = {name: f"{getattr(settings, name.replace('-', '_')):g}" for name in told}
    assert told == known and len(told) == 4
