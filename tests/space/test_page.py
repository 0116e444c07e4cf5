"""The page of `examples/space` in headless Chromium without network access, against transformers."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import EXAMPLES, MINIATURE

pytest.importorskip("gradio")  # installed in a separate environment: make space-test

import soundfile
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from transformers import pipeline

CLIP = EXAMPLES / "digits/test/test_000.flac"
MICROPHONE_CLIP = EXAMPLES / "digits/test/test_003.flac"  # played by the fake microphone
MODELS = ("stock", "compressed")
TIMEOUT = 120_000  # milliseconds; generous, for busy machines
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CONTROLS = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "textbox"}
# Visible elements that extend beyond the right edge of the page.
OVERFLOWING = """[...document.querySelectorAll("main *")]
    .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth)
    .map((element) => element.outerHTML.slice(0, 200))"""
# Logs the hosts that a program connects to; Python runs it before the program.
AUDIT_HOOK = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        with open({path!r}, "a") as file:
            print(arguments[0] if event == "socket.getaddrinfo" else arguments[1][0], file=file)

sys.addaudithook(watch)
"""


@dataclass
class App:
    """The URL of the running program, and the log of the hosts it connects to."""

    url: str
    hosts: Path


@contextmanager
def started(folder: Path, *options: str | Path, **variables: str) -> Iterator[App]:
    """Runs the program with these options and environment variables while the context lasts."""
    folder.mkdir()
    hosts = folder / "hosts.txt"
    hosts.touch()
    (folder / "sitecustomize.py").write_text(AUDIT_HOOK.format(path=str(hosts)))
    command = [sys.executable, "-u", EXAMPLES / "space/app.py", *options]
    environment = os.environ | {"PYTHONPATH": str(folder), "GRADIO_TEMP_DIR": str(folder / "uploads")} | variables
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            found = next((re.search(r"http://\S+", line) for line in process.stdout if "http://" in line), None)
            assert found, "the program ended before it listened"
            yield App(found[0], hosts)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, compressed with `lite-whisper convert`."""
    from lite_whisper.cli.convert import main

    output = tmp_path_factory.mktemp("models") / "compressed"
    assert main(["--ratio", "0.25", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, compressed: Path) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app") / "running"
    with started(folder, "--stock", MINIATURE, "--compressed", compressed) as running:
        yield running


@pytest.fixture(scope="module")
def expected(compressed: Path) -> dict[str, dict[str, Any]]:
    """The results of the transformers pipeline for the clip, with each model's remote code."""
    samples, rate = soundfile.read(CLIP, dtype="float32")
    results = {}
    for which, folder in zip(MODELS, (MINIATURE, compressed), strict=True):
        recognizer = pipeline("automatic-speech-recognition", str(folder), trust_remote_code=True, device="cpu")
        results[which] = recognizer(
            {"raw": samples, "sampling_rate": rate},
            return_timestamps=True,
            generate_kwargs={"language": "en", "task": "transcribe", "num_beams": 1},
        )
    return results


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium that can only reach this machine, with a fake microphone that plays a file in a loop."""
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(spoken, *soundfile.read(MICROPHONE_CLIP, dtype="float32"), subtype="PCM_16")
    arguments = [
        "--no-sandbox",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
    ]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """The URLs requested by the page in all tests of this file."""
    return []


@pytest.fixture
def page(browser: Browser, app: App, requests: list[str]) -> Iterator[Page]:
    """A freshly opened page."""
    opened = browser.new_page()
    opened.set_default_timeout(TIMEOUT)
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(app.url)
    expect(transcribe(opened)).to_be_visible(timeout=TIMEOUT)
    yield opened
    opened.close()


def transcribe(page: Page) -> Locator:
    return page.get_by_role("button", name="Transcribe")


def upload(page: Page, name: str, content: bytes) -> None:
    file: Any = {"name": name, "mimeType": "audio/wav", "buffer": content}
    page.set_input_files("input[type=file]", file)
    page.get_by_role("button", name="Clear").wait_for()


def texts(page: Page) -> dict[str, str]:
    """Waits for the verdict and returns the text of each model."""
    page.get_by_text(re.compile(r"The compressed model is \d+\.\d\d times as fast")).wait_for()
    return {which: page.get_by_label(f"Text of the {which} model").input_value() for which in MODELS}


def cells(page: Page, which: str) -> list[str]:
    return page.get_by_role("grid", name=f"Segments of the {which} model").get_by_role("gridcell").all_inner_texts()


def unnamed(page: Page) -> list[str]:
    """Controls without an accessible name."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(controls) >= 8
    return [str(node) for node in controls if not node.get("name", {}).get("value", "").strip()]


def test_both_models_give_the_text_of_transformers(page: Page, expected: dict[str, dict[str, Any]]) -> None:
    upload(page, CLIP.name, CLIP.read_bytes())
    page.get_by_label("Spoken language").click()
    page.get_by_role("option", name="English", exact=True).click()
    transcribe(page).click()
    found = texts(page)
    for which in MODELS:
        rows = [(*chunk["timestamp"], chunk["text"].strip()) for chunk in expected[which]["chunks"]]
        assert found[which] == expected[which]["text"].strip()
        assert cells(page, which) == [
            cell for start, end, text in rows for cell in (f"{start:.2f}", f"{end:.2f}", text)
        ]


def test_the_figures_are_consistent(page: Page) -> None:
    upload(page, CLIP.name, CLIP.read_bytes())
    transcribe(page).click()
    found = texts(page)
    lines = page.get_by_text(re.compile("^[0-9.]+ seconds, real-time factor")).all_inner_texts()
    stock, compressed = (list(map(float, re.findall(r"\d+\.\d+", line))) for line in lines)
    for seconds, factor in (stock, compressed):
        assert seconds > 0 and factor == pytest.approx(seconds / soundfile.info(CLIP).duration, abs=0.01)
    verdict = page.get_by_role("heading", name="times as fast").inner_text()
    assert verdict.startswith("The same text." if found["stock"] == found["compressed"] else "The texts differ.")
    (times,) = map(float, re.findall(r"[\d.]+(?= times)", verdict))
    rounding = 0.005  # of the seconds
    least, most = (stock[0] - rounding) / (compressed[0] + rounding), (stock[0] + rounding) / (compressed[0] - rounding)
    assert least - rounding <= times <= most + rounding


def test_the_microphone_is_transcribed(page: Page) -> None:
    page.get_by_role("button", name="Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(6000)  # longer than the clip
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_role("button", name="Clear").wait_for()
    transcribe(page).click()
    heard = texts(page)["stock"].split()
    # The recording starts at a random point and may cut words, so only most word pairs must match.
    said = (
        (EXAMPLES / "digits/test/metadata.csv").read_text().split(f"{MICROPHONE_CLIP.name},")[1].splitlines()[0].split()
    )
    looped = set(pairwise([*said, *said]))
    known = [pair for pair in pairwise(heard) if pair in looped]
    assert len(heard) >= 4 and len(known) >= 0.6 * (len(heard) - 1), f"heard {heard}, said {said}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "There is no audio yet"),
        (b"", "The file cannot be decoded"),
        (b"no audio" * 99, "The file cannot be decoded"),
    ],
)
def test_unusable_clips_are_reported(page: Page, content: bytes | None, reason: str) -> None:
    if content is not None:
        upload(page, "clip.wav", content)
    transcribe(page).click()
    message = page.get_by_role("status").filter(has_text=reason)
    expect(message).to_contain_text("WAV, FLAC, Ogg or MP3, at most 60 seconds", timeout=TIMEOUT)


def test_the_page_fits_a_phone_and_is_accessible(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert unnamed(page) == []
    upload(page, CLIP.name, CLIP.read_bytes())
    transcribe(page).click()
    texts(page)
    assert unnamed(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(OVERFLOWING) == []  # Gradio clips elements that are too wide


def test_no_other_host_is_contacted(app: App, requests: list[str]) -> None:
    assert any(url.endswith(".js") for url in requests) and any("upload" in url for url in requests)
    elsewhere = [url for url in requests if not url.removeprefix("blob:").startswith((app.url, "data:"))]
    assert elsewhere == []
    hosts = app.hosts.read_text().split("\n")
    assert set(filter(None, hosts)) <= {"127.0.0.1", "localhost", "None"} and "127.0.0.1" in hosts


def reachable(url: str) -> bool:
    """Whether a program also listens on addresses other than 127.0.0.1."""
    port = urlsplit(url).port
    assert port
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.2", port)) == 0


def test_it_accepts_outside_connections_only_on_the_hub(app: App, tmp_path: Path) -> None:
    assert not reachable(app.url)
    named = {"STOCK_MODEL": str(MINIATURE), "COMPRESSED_MODEL": str(MINIATURE), "SPACE_ID": "org/name"}
    with started(tmp_path / "hub", **named) as running:
        assert reachable(running.url)
        assert set(running.hosts.read_text().split()) <= {"127.0.0.1", "localhost", "None", "0.0.0.0"}
