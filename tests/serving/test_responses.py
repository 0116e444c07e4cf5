"""Responses of the server, against transformers and `lite-whisper transcribe`."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import soundfile

from lite_whisper.audio import AudioDataset
from lite_whisper.serving.responses import text_deltas
from lite_whisper.transcription.formats import Segment, Transcript, to_srt, to_vtt
from lite_whisper.transcription.transcriber import Transcriber, pipeline_options

LONG = Path(__file__).parents[2] / "examples/digits/longform/longform_000.flac"
ENGLISH = {"num_beams": 1, "task": "transcribe", "language": "en"}


def transcribed(recognizer: Any, path: Path, timestamps: Any = "segment", **kwargs: Any) -> Transcript:
    """The transcript that `lite-whisper transcribe` gives for a file."""
    transcriber = Transcriber(recognizer, 8, pipeline_options(timestamps, ENGLISH | kwargs))
    block = transcriber.read(list(enumerate(AudioDataset([str(path)]).entries())))
    return next(transcript for batch in transcriber.transcripts(block) for transcript in batch)


def test_the_openai_client_gets_the_transcripts_of_transformers(server, clips: list[Path], expected: list[str]) -> None:
    create = server.openai.audio.transcriptions.create
    texts = [create(model="whisper-1", file=clip, language="en").text for clip in clips]
    assert texts == expected and all(texts)
    models = server.openai.models.list().data
    assert [model.id for model in models] == ["whisper-digits"]


def test_wav_mp3_and_ogg_are_read(server, clips: list[Path], expected: list[str]) -> None:
    samples, rate = soundfile.read(clips[1])
    for format in ("WAV", "MP3", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=format)
        response = server.post(file.getvalue(), language="en")
        assert response.status_code == 200
        if format == "WAV":
            assert response.json()["text"] == expected[1]


@pytest.mark.parametrize("path", ["short", "long"])
def test_response_formats(server, recognizer, clips: list[Path], path: str) -> None:
    audio = clips[1] if path == "short" else LONG
    plain, timed = transcribed(recognizer, audio, "none"), transcribed(recognizer, audio)
    responses = {
        format: server.post(audio.read_bytes(), language="en", response_format=format)
        for format in ("json", "text", "srt", "vtt", "verbose_json")
    }
    assert [response.status_code for response in responses.values()] == [200] * 5
    assert responses["json"].json()["text"] == plain.text
    assert responses["text"].text == plain.text + "\n"
    assert responses["srt"].text == to_srt(timed) and "-->" in to_srt(timed)
    assert responses["vtt"].text == to_vtt(timed)
    verbose = responses["verbose_json"].json()
    assert (verbose["task"], verbose["language"], verbose["text"]) == ("transcribe", "english", timed.text)
    assert verbose["duration"] == timed.duration
    found = [(segment["id"], segment["start"], segment["text"]) for segment in verbose["segments"]]
    assert found == [(place, segment.start, segment.text) for place, segment in enumerate(timed.segments)]
    assert all(segment["end"] is not None for segment in verbose["segments"])


def test_word_timestamps(server, recognizer, clips: list[Path]) -> None:
    timed = transcribed(recognizer, clips[1], "word")
    response = server.openai.audio.transcriptions.create(
        model="whisper-digits",
        file=clips[1],
        language="english",
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert response.words and response.segments is None
    assert [(word.word, word.start) for word in response.words] == [(each.text, each.start) for each in timed.segments]


def test_verbose_json_names_the_detected_language(server, recognizer, clips: list[Path], test_clips) -> None:
    detected = recognizer.model.detect_language(
        recognizer.feature_extractor(test_clips[1].samples, sampling_rate=16_000, return_tensors="pt").input_features
    )
    assert detected.tolist() == [recognizer.model.generation_config.lang_to_id["<|en|>"]]
    for audio in (clips[1], LONG):
        response = server.post(audio.read_bytes(), response_format="verbose_json").json()
        assert response["language"] == "english" and response["text"] == transcribed(recognizer, audio).text


def test_translation(server, recognizer, clips: list[Path]) -> None:
    text = transcribed(recognizer, clips[1], "none", task="translate", language="de").text
    response = server.post(clips[1].read_bytes(), "translations", language="de")
    assert response.json()["text"] == text
    kwargs = server.model.calls[-1][1]["generate_kwargs"]
    assert (kwargs["task"], kwargs["language"]) == ("translate", "de")


def test_streaming(server, recognizer) -> None:
    create = server.openai.audio.transcriptions.create
    events = list(create(model="whisper-1", file=LONG, language="en", stream=True))
    kinds = [event.type for event in events]
    assert kinds == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"] and len(events) > 2
    text = transcribed(recognizer, LONG, "none").text
    assert events[-1].text == "".join(event.delta for event in events[:-1]) == text


def test_deltas_add_up_to_the_text() -> None:
    segments = [Segment(0, 1, "one"), Segment(1, 2, ""), Segment(1, 2, "nowhere"), Segment(2, 3, "two")]
    transcript = Transcript(0, "file", text="one, two three", segments=segments)
    assert list(text_deltas(transcript)) == ["one", ", two", " three"]
    assert list(text_deltas(Transcript(0, "file"))) == []


def test_prompt_and_temperature_reach_the_model(server, recognizer, clips: list[Path]) -> None:
    ids = recognizer.tokenizer.get_prompt_ids("five six seven", return_tensors="pt")
    samples, _ = soundfile.read(clips[1], dtype="float32")
    features = recognizer.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    tokens = recognizer.model.generate(features, prompt_ids=ids, **ENGLISH)
    text = recognizer.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    plain = server.post(clips[1].read_bytes(), language="en").json()["text"]
    response = server.post(clips[1].read_bytes(), language="en", prompt="five six seven").json()["text"]
    assert response == text != plain
    assert server.post(clips[1].read_bytes(), language="en", prompt="one two " * 100).status_code == 200
    assert len(server.model.calls[-1][1]["generate_kwargs"]["prompt_ids"]) == 48  # half of the decoder's positions
    assert server.post(clips[1].read_bytes(), language="en", temperature="0.5").status_code == 200
    assert server.model.calls[-1][1]["generate_kwargs"]["temperature"] == 0.5


def test_fifty_concurrent_requests(server, clips: list[Path], expected: list[str]) -> None:
    async def send_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            responses = [
                client.audio.transcriptions.create(model="whisper-1", file=clips[place % len(clips)], language="en")
                for place in range(50)
            ]
            return [response.text for response in await asyncio.gather(*responses)]

    server.model.calls.clear()
    assert asyncio.run(send_all()) == [expected[place % len(clips)] for place in range(50)]
    sizes = [size for size, _ in server.model.calls]
    assert sum(sizes) == 50 and max(sizes) == 8  # requests share batches


def test_health_and_metrics(server, clips: list[Path]) -> None:
    assert requests.get(f"{server.url}/health", timeout=60).json() == {"status": "ok"}
    before = {name: server.metric(name) for name in ("lite_whisper_audio_seconds_total", LATENCY, OK, BATCHES)}
    assert server.post(clips[0].read_bytes(), language="en").status_code == 200
    after = {name: server.metric(name) for name in before}
    assert [after[name] - before[name] for name in (LATENCY, OK, BATCHES)] == [1, 1, 1]
    heard = after["lite_whisper_audio_seconds_total"] - before["lite_whisper_audio_seconds_total"]
    assert heard == pytest.approx(soundfile.info(clips[0]).duration, abs=1e-3)
    assert server.metric("lite_whisper_queue_length") == 0


LATENCY, BATCHES = "lite_whisper_request_seconds_count", "lite_whisper_batch_windows_count"
OK = 'lite_whisper_requests_total{status="200"}'


def test_http_errors_have_the_format_of_openai(server) -> None:
    response = requests.get(f"{server.url}/v1/nothing", timeout=60)
    assert response.status_code == 404 and json.loads(response.text)["error"]["message"].startswith("GET /v1/nothing")
