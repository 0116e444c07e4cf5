"""What the server writes, against transformers and `lite-whisper transcribe`."""

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
from lite_whisper.serving.answers import deltas
from lite_whisper.transcription.formats import Segment, Transcript, to_srt, to_vtt
from lite_whisper.transcription.transcriber import Transcriber, pipeline_options

LONG = Path(__file__).parents[2] / "examples/digits/longform/longform_000.flac"
ENGLISH = {"num_beams": 1, "task": "transcribe", "language": "en"}


def transcribed(recognizer: Any, path: Path, timestamps: Any = "segment", **kwargs: Any) -> Transcript:
    """What `lite-whisper transcribe` finds in a file."""
    transcriber = Transcriber(recognizer, 8, pipeline_options(timestamps, ENGLISH | kwargs))
    chunk = transcriber.read(list(enumerate(AudioDataset([str(path)]).entries())))
    return next(found for batch in transcriber.transcripts(chunk) for found in batch)


def test_the_client_of_openai_gets_what_transformers_writes(server, clips: list[Path], expected: list[str]) -> None:
    create = server.openai.audio.transcriptions.create
    texts = [create(model="whisper-1", file=clip, language="en").text for clip in clips]
    assert texts == expected and all(texts)
    models = server.openai.models.list().data
    assert [model.id for model in models] == ["whisper-digits"]


def test_wav_mp3_and_ogg_are_read(server, clips: list[Path], expected: list[str]) -> None:
    samples, rate = soundfile.read(clips[1])
    for form in ("WAV", "MP3", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=form)
        response = server.post(file.getvalue(), language="en")
        assert response.status_code == 200
        if form == "WAV":
            assert response.json()["text"] == expected[1]


@pytest.mark.parametrize("path", ["short", "long"])
def test_every_format(server, recognizer, clips: list[Path], path: str) -> None:
    audio = clips[1] if path == "short" else LONG
    plain, timed = transcribed(recognizer, audio, "none"), transcribed(recognizer, audio)
    answers = {
        form: server.post(audio.read_bytes(), language="en", response_format=form)
        for form in ("json", "text", "srt", "vtt", "verbose_json")
    }
    assert [answer.status_code for answer in answers.values()] == [200] * 5
    assert answers["json"].json()["text"] == plain.text
    assert answers["text"].text == plain.text + "\n"
    assert answers["srt"].text == to_srt(timed) and "-->" in to_srt(timed)
    assert answers["vtt"].text == to_vtt(timed)
    verbose = answers["verbose_json"].json()
    assert (verbose["task"], verbose["language"], verbose["text"]) == ("transcribe", "english", timed.text)
    assert verbose["duration"] == timed.duration
    found = [(segment["id"], segment["start"], segment["text"]) for segment in verbose["segments"]]
    assert found == [(place, segment.start, segment.text) for place, segment in enumerate(timed.segments)]
    assert all(segment["end"] is not None for segment in verbose["segments"])


def test_words_have_times(server, recognizer, clips: list[Path]) -> None:
    timed = transcribed(recognizer, clips[1], "word")
    answer = server.openai.audio.transcriptions.create(
        model="whisper-digits",
        file=clips[1],
        language="english",
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert answer.words and answer.segments is None
    assert [(word.word, word.start) for word in answer.words] == [(each.text, each.start) for each in timed.segments]


def test_the_language_is_named_where_it_is_detected(server, recognizer, clips: list[Path], test_clips) -> None:
    detected = recognizer.model.detect_language(
        recognizer.feature_extractor(test_clips[1].samples, sampling_rate=16_000, return_tensors="pt").input_features
    )
    assert detected.tolist() == [recognizer.model.generation_config.lang_to_id["<|en|>"]]
    for audio in (clips[1], LONG):
        answer = server.post(audio.read_bytes(), response_format="verbose_json").json()
        assert answer["language"] == "english" and answer["text"] == transcribed(recognizer, audio).text


def test_a_translation(server, recognizer, clips: list[Path]) -> None:
    text = transcribed(recognizer, clips[1], "none", task="translate", language="de").text
    answer = server.post(clips[1].read_bytes(), "translations", language="de")
    assert answer.json()["text"] == text
    kwargs = server.model.calls[-1][1]["generate_kwargs"]
    assert (kwargs["task"], kwargs["language"]) == ("translate", "de")


def test_a_stream_of_events(server, recognizer) -> None:
    create = server.openai.audio.transcriptions.create
    events = list(create(model="whisper-1", file=LONG, language="en", stream=True))
    kinds = [event.type for event in events]
    assert kinds == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"] and len(events) > 2
    text = transcribed(recognizer, LONG, "none").text
    assert events[-1].text == "".join(event.delta for event in events[:-1]) == text


def test_deltas_are_the_text_again_whatever_the_segments() -> None:
    segments = [Segment(0, 1, "one"), Segment(1, 2, ""), Segment(1, 2, "nowhere"), Segment(2, 3, "two")]
    transcript = Transcript(0, "file", text="one, two three", segments=segments)
    assert list(deltas(transcript)) == ["one", ", two", " three"]
    assert list(deltas(Transcript(0, "file"))) == []


def test_prompt_and_temperature_reach_the_model(server, recognizer, clips: list[Path]) -> None:
    ids = recognizer.tokenizer.get_prompt_ids("five six seven", return_tensors="pt")
    samples, _ = soundfile.read(clips[1], dtype="float32")
    features = recognizer.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    tokens = recognizer.model.generate(features, prompt_ids=ids, **ENGLISH)
    text = recognizer.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    plain = server.post(clips[1].read_bytes(), language="en").json()["text"]
    answer = server.post(clips[1].read_bytes(), language="en", prompt="five six seven").json()["text"]
    assert answer == text != plain
    assert server.post(clips[1].read_bytes(), language="en", prompt="one two " * 100).status_code == 200
    assert len(server.model.calls[-1][1]["generate_kwargs"]["prompt_ids"]) == 48  # half of the decoder's positions
    assert server.post(clips[1].read_bytes(), language="en", temperature="0.5").status_code == 200
    assert server.model.calls[-1][1]["generate_kwargs"]["temperature"] == 0.5


def test_fifty_at_once_and_none_is_lost(server, clips: list[Path], expected: list[str]) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answers = [
                client.audio.transcriptions.create(model="whisper-1", file=clips[place % len(clips)], language="en")
                for place in range(50)
            ]
            return [answer.text for answer in await asyncio.gather(*answers)]

    server.model.calls.clear()
    assert asyncio.run(all_of_them()) == [expected[place % len(clips)] for place in range(50)]
    sizes = [size for size, _ in server.model.calls]
    assert sum(sizes) == 50 and max(sizes) == 8  # they shared batches


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


def test_errors_of_http_have_the_form_of_openai(server) -> None:
    answer = requests.get(f"{server.url}/v1/nothing", timeout=60)
    assert answer.status_code == 404 and json.loads(answer.text)["error"]["message"].startswith("GET /v1/nothing")
