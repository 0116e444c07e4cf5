"""The page of `examples/space` in headless Chromium, without a network, against transformers."""

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

pytest.importorskip("gradio")  # which has an environment of its own: make space-test

import soundfile
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from transformers import pipeline

CLIP = EXAMPLES / "digits/test/test_000.flac"
SPOKEN = EXAMPLES / "digits/test/test_003.flac"  # what the microphone hears
MODELS = ("stock", "compressed")
PATIENCE = 120_000  # milliseconds; of a machine that is busy with other things
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CONTROLS = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "textbox"}
# What is seen of the page, and reaches beyond its right edge.
BEYOND = """[...document.querySelectorAll("main *")]
    .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth)
    .map((element) => element.outerHTML.slice(0, 200))"""
# Writes down whom a program asks for; Python runs it before the program.
WATCH = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        with open({path!r}, "a") as file:
            print(arguments[0] if event == "socket.getaddrinfo" else arguments[1][0], file=file)

sys.addaudithook(watch)
"""


@dataclass
class App:
    """Where the program listens, and the file in which stands whom it asked for."""

    url: str
    asked: Path


@contextmanager
def started(folder: Path, *options: str | Path, **variables: str) -> Iterator[App]:
    """The program, with these options and variables of the environment, as long as the context lasts."""
    folder.mkdir()
    asked = folder / "asked.txt"
    asked.touch()
    (folder / "sitecustomize.py").write_text(WATCH.format(path=str(asked)))
    command = [sys.executable, "-u", EXAMPLES / "space/app.py", *options]
    environment = os.environ | {"PYTHONPATH": str(folder), "GRADIO_TEMP_DIR": str(folder / "uploads")} | variables
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            found = next((re.search(r"http://\S+", line) for line in process.stdout if "http://" in line), None)
            assert found, "it ended before it listened"
            yield App(found[0], asked)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, compressed by the main program."""
    from lite_whisper.convert import main

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
    """What the pipeline of transformers makes of the clip, with the code that each model brings."""
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
    """Chromium, which finds no host but this machine and whose microphone plays a file again and again."""
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(spoken, *soundfile.read(SPOKEN, dtype="float32"), subtype="PCM_16")
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
    """What the page asked for, in all tests of this file."""
    return []


@pytest.fixture
def page(browser: Browser, app: App, requests: list[str]) -> Iterator[Page]:
    """The page, opened anew."""
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(app.url)
    expect(transcribe(opened)).to_be_visible(timeout=PATIENCE)
    yield opened
    opened.close()


def transcribe(page: Page) -> Locator:
    return page.get_by_role("button", name="Transcribe")


def upload(page: Page, name: str, content: bytes) -> None:
    file: Any = {"name": name, "mimeType": "audio/wav", "buffer": content}
    page.set_input_files("input[type=file]", file)
    page.get_by_role("button", name="Clear").wait_for()


def texts(page: Page) -> dict[str, str]:
    """Of each model its text, once both have written one."""
    page.get_by_text(re.compile(r"The compressed model is \d+\.\d\d times as fast")).wait_for()
    return {which: page.get_by_label(f"Text of the {which} model").input_value() for which in MODELS}


def cells(page: Page, which: str) -> list[str]:
    return page.get_by_role("grid", name=f"Segments of the {which} model").get_by_role("gridcell").all_inner_texts()


def unnamed(page: Page) -> list[str]:
    """Controls for which Chromium itself has no name to tell those who do not see them."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(controls) >= 8
    return [str(node) for node in controls if not node.get("name", {}).get("value", "").strip()]


def test_both_models_write_what_they_write_in_transformers(page: Page, expected: dict[str, dict[str, Any]]) -> None:
    upload(page, CLIP.name, CLIP.read_bytes())
    page.get_by_label("Language that is spoken").click()
    page.get_by_role("option", name="English", exact=True).click()
    transcribe(page).click()
    found = texts(page)
    for which in MODELS:
        rows = [(*chunk["timestamp"], chunk["text"].strip()) for chunk in expected[which]["chunks"]]
        assert found[which] == expected[which]["text"].strip()
        assert cells(page, which) == [
            cell for start, end, text in rows for cell in (f"{start:.2f}", f"{end:.2f}", text)
        ]


def test_the_figures_go_together(page: Page) -> None:
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


def test_the_microphone_is_heard(page: Page) -> None:
    page.get_by_role("button", name="Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(6000)  # longer than the clip
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_role("button", name="Clear").wait_for()
    transcribe(page).click()
    heard = texts(page)["stock"].split()
    # Where the recording begins is a matter of chance, and words may be cut: most of what is heard must be as said.
    said = (EXAMPLES / "digits/test/metadata.csv").read_text().split(f"{SPOKEN.name},")[1].splitlines()[0].split()
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
def test_a_clip_that_cannot_be_used_is_named_as_such(page: Page, content: bytes | None, reason: str) -> None:
    if content is not None:
        upload(page, "clip.wav", content)
    transcribe(page).click()
    message = page.get_by_role("status").filter(has_text=reason)
    expect(message).to_contain_text("WAV, FLAC, Ogg or MP3, 60 seconds at the most", timeout=PATIENCE)


def test_a_phone_shows_it_without_scrolling_sideways_and_controls_have_names(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert unnamed(page) == []
    upload(page, CLIP.name, CLIP.read_bytes())
    transcribe(page).click()
    texts(page)
    assert unnamed(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(BEYOND) == []  # Gradio cuts off what is too wide


def test_nobody_else_was_asked(app: App, requests: list[str]) -> None:
    assert any(url.endswith(".js") for url in requests) and any("upload" in url for url in requests)
    elsewhere = [url for url in requests if not url.removeprefix("blob:").startswith((app.url, "data:"))]
    assert elsewhere == []
    asked = app.asked.read_text().split("\n")
    assert set(filter(None, asked)) <= {"127.0.0.1", "localhost", "None"} and "127.0.0.1" in asked


def reachable(url: str) -> bool:
    """Whether a program listens at other addresses than the usual one of this machine."""
    port = urlsplit(url).port
    assert port
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.2", port)) == 0


def test_it_listens_to_others_on_the_hub_only(app: App, tmp_path: Path) -> None:
    assert not reachable(app.url)
    named = {"STOCK_MODEL": str(MINIATURE), "COMPRESSED_MODEL": str(MINIATURE), "SPACE_ID": "org/name"}
    with started(tmp_path / "hub", **named) as running:
        assert reachable(running.url)
        assert set(running.asked.read_text().split()) <= {"127.0.0.1", "localhost", "None", "0.0.0.0"}
