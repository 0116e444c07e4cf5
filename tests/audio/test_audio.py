"""Audio input: formats, folders, metadata, order, bad files, and the windows for calibration."""

import io
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from lite_whisper.audio import AudioDataset, Clip, decode, feature_batches
from lite_whisper.audio.windows import with_noise
from lite_whisper.common.errors import InputError

EXTRACTOR = WhisperFeatureExtractor.from_pretrained(Path(__file__).parents[2] / "examples/whisper-digits")
WINDOW = 6 * 16_000  # window of the tiny model
SECONDS = 1.25


def tone(frequency: float, rate: int, seconds: float = SECONDS) -> np.ndarray:
    """A sine of amplitude 0.5."""
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray | None = None, rate: int = 16_000, **options: Any) -> Path:
    """Writes an audio file, a tone unless samples are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(440, rate, 0.1) if samples is None else samples, rate, **options)
    return path


def write_many(folder: Path, *names: str) -> Path:
    """Writes short files with these names, each with a tone of a different pitch."""
    for index, name in enumerate(names):
        write(folder / name, tone(300 + 100 * index, 16_000, 0.2))
    return folder


def names(dataset: AudioDataset) -> list[str]:
    """The names of the clips, in order."""
    return [clip.name for clip in dataset]


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.fft.rfftfreq(len(samples), 1 / 16_000)[spectrum.argmax()]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize(
    ("suffix", "options", "error"),
    [
        ("wav", {"subtype": "PCM_16"}, 2e-3),
        ("wav", {"subtype": "PCM_U8"}, 1e-2),
        ("wav", {"subtype": "FLOAT"}, 2e-3),
        ("flac", {"subtype": "PCM_24"}, 2e-3),
        ("ogg", {}, 0.1),
        ("mp3", {}, 0.1),
    ],
)
def test_formats_become_16_khz_mono(
    suffix: str, options: dict[str, str], error: float, rate: int, channels: int, tmp_path: Path
) -> None:
    # Every channel has a different tone; the mono mix is their mean.
    frequencies = [440, 1000][:channels]
    recording = np.stack([tone(frequency, rate) for frequency in frequencies], axis=1)
    samples = decode(write(tmp_path / f"tone.{suffix}", recording, rate, **options))
    assert samples.dtype == np.float32
    assert samples.shape == (round(SECONDS * 16_000),)
    expected = np.mean([tone(frequency, 16_000) for frequency in frequencies], axis=0)
    inner = slice(1600, -1600)  # resampling and lossy coding smear the ends
    assert np.abs(samples[inner] - expected[inner]).max() < error
    if channels == 1:
        assert abs(pitch(samples) - 440) < 1


def test_frequencies_beyond_8_khz_do_not_alias(tmp_path: Path) -> None:
    surround = np.stack([tone(440, 48_000) + tone(10_000, 48_000)] * 6, axis=1)
    high = write(tmp_path / "high.wav", surround, 48_000, subtype="FLOAT")
    inner = slice(1600, -1600)
    assert np.abs(decode(high)[inner] - tone(440, 16_000)[inner]).max() < 2e-3


def test_encoded_bytes_are_decoded_like_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "tone.flac", tone(440, 44_100), 44_100)
    np.testing.assert_array_equal(decode(io.BytesIO(file.read_bytes())), decode(file))


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.array([0.1, np.nan, 0.1]), 16_000, "NaN"),
        (np.array([0.1, np.inf, 0.1]), 16_000, "infinite"),
        (np.array([[0.1, np.nan]] * 10), 48_000, "NaN"),
        (np.zeros(0), 16_000, "contains no audio"),
        (np.ones(1), 48_000, "shorter than one sample"),
    ],
    ids=["nan", "infinite", "nan in one channel", "no samples", "less than a sample"],
)
def test_unusable_samples_are_rejected(samples: np.ndarray, rate: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        decode(write(tmp_path / "bad.wav", samples, rate, subtype="FLOAT"))


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"RIFF\x00\x00\x00\x00WAVE"])
def test_undecodable_files_are_rejected_without_naming_their_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(InputError) as raised:
        decode(tmp_path / "bad.wav")
    # The reason ends up in compression.json, which is published and must not expose local paths.
    assert str(tmp_path) not in str(raised.value)


def test_a_folder_is_searched_recursively_and_in_order(tmp_path: Path) -> None:
    folder = write_many(tmp_path / "speech", "b.wav", "a.wav", "deep/er/c.flac", "deep/d.OGG", "e.mp3")
    (folder / "notes.txt").write_text("no audio")
    clips = list(AudioDataset([str(folder)]))
    assert [clip.name for clip in clips] == [
        "speech/a.wav",
        "speech/b.wav",
        "deep/d.OGG",
        "er/c.flac",
        "speech/e.mp3",
    ]
    assert [clip.text for clip in clips] == [None] * 5
    assert [round(pitch(clip.samples), -2) for clip in clips] == [400, 300, 600, 500, 700]


@pytest.mark.parametrize("column", ["transcription", "text", "sentence"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "csv of a spreadsheet"])
def test_metadata_determines_transcripts_and_order(kind: str, column: str, tmp_path: Path) -> None:
    write_many(tmp_path, "a.wav", "b.wav", "deep/c.wav", "unlisted.wav")
    rows = [("deep/c.wav", "vier, fünf"), ("a.wav", 'said "no"'), ("b.wav", "")]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": name, column: text, "speaker": 7}) for name, text in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    else:
        lines = [f'x,{name},"{text.replace(chr(34), chr(34) * 2)}"' for name, text in rows]
        text = "\n".join([f"speaker,file_name,{column}", *lines])
        if kind == "csv of a spreadsheet":  # spreadsheets add a byte order mark
            text = "\n".join([f"file_name,{column}", *(line[2:] for line in lines)])
        encoding = "utf-8" if kind == "csv" else "utf-8-sig"
        (tmp_path / "metadata.csv").write_text(text, encoding=encoding)
    clips = list(AudioDataset([str(tmp_path)]))
    assert [(clip.name.rpartition("/")[2], clip.text) for clip in clips] == [
        ("c.wav", "vier, fünf"),
        ("a.wav", 'said "no"'),
        ("b.wav", ""),
    ]
    assert [round(pitch(clip.samples), -2) for clip in clips] == [500, 300, 400]


def test_metadata_without_a_text_column_gives_no_transcripts(tmp_path: Path) -> None:
    write_many(tmp_path, "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,speaker\na.wav,theo\n")
    assert [clip.text for clip in AudioDataset([str(tmp_path)])] == [None]


def test_sources_are_interleaved_until_all_are_exhausted(tmp_path: Path) -> None:
    first = write_many(tmp_path / "first", "0.wav", "1.wav", "2.wav")
    second = write_many(tmp_path / "second", "0.wav", "1.wav")
    single = write(tmp_path / "third" / "0.flac")
    assert names(AudioDataset([str(first), str(single), str(second)])) == [
        "first/0.wav",
        "third/0.flac",
        "second/0.wav",
        "first/1.wav",
        "second/1.wav",
        "first/2.wav",
    ]


@pytest.mark.parametrize("with_metadata", [False, True])
def test_a_seed_shuffles_reproducibly(with_metadata: bool, tmp_path: Path) -> None:
    files = [f"{index:02}.wav" for index in range(12)]
    source = str(write_many(tmp_path, *files))
    if with_metadata:
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *(f"{name},{name}" for name in files)]))
    in_order = names(AudioDataset([source]))
    assert in_order == [f"{tmp_path.name}/{name}" for name in files]
    dataset = AudioDataset([source], seed=1)
    shuffled = names(dataset)
    assert shuffled != in_order and sorted(shuffled) == in_order
    assert names(dataset) == names(AudioDataset([source], seed=1)) == shuffled
    assert names(AudioDataset([source], seed=2)) != shuffled
    if with_metadata:
        assert all(clip.name.endswith(f"/{clip.text}") for clip in dataset)


def test_broken_files_are_skipped_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_many(tmp_path / "set", "a.wav", "d.wav")
    (tmp_path / "set" / "b.wav").write_bytes(b"broken")
    write(tmp_path / "set" / "c.wav", np.full(9, np.nan), subtype="FLOAT")
    dataset = AudioDataset([str(tmp_path / "set")])
    for _ in range(2):  # counted afresh on every iteration
        caplog.clear()
        assert names(dataset) == ["set/a.wav", "set/d.wav"]
        assert [entry.partition(": ")[0] for entry in dataset.skipped] == ["set/b.wav", "set/c.wav"]
        assert "NaN" in dataset.skipped[1]
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 2 and "set/b.wav" in warnings[0] and "set/c.wav" in warnings[1]


def test_missing_files_in_metadata_are_skipped(tmp_path: Path) -> None:
    write_many(tmp_path, "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.wav,one\na.wav,two\n")
    dataset = AudioDataset([str(tmp_path)])
    assert [clip.text for clip in dataset] == ["two"]
    assert len(dataset.skipped) == 1 and "gone.wav" in dataset.skipped[0]


def test_only_broken_files_are_an_error(tmp_path: Path) -> None:
    for name in ("a.wav", "b.mp3"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of the 2 clips.*a\.wav") as raised:
        list(AudioDataset([str(tmp_path)]))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"contains no audio"),
        ({"readme.txt": b"hello"}, r"contains no audio"),
        ({"metadata.csv": b"file_name,text\n"}, r"contains no audio"),
        ({"metadata.csv": b"name,text\na.wav,one\n"}, r"metadata\.csv.*file_name.*name, text"),
        ({"metadata.csv": b"file_name,text\n,one\n"}, r"metadata\.csv.*file_name"),
        ({"metadata.csv": b"file_name,text\na.wav,\xff\n"}, r"metadata\.csv.*malformed"),
        ({"metadata.jsonl": b'{"text": "one"}\n'}, r"metadata\.jsonl.*file_name.*text"),
        ({"metadata.jsonl": b'{"file_name": "a.wav"}\n{"file_name": \n'}, r"metadata\.jsonl.*malformed"),
        ({"metadata.jsonl": b'"a.wav"\n'}, r"metadata\.jsonl"),
        ({"metadata.jsonl": b'{"file_name": 7}\n'}, r"metadata\.jsonl.*file_name"),
    ],
)
def test_unusable_folders_are_named(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        list(AudioDataset([str(folder)]))
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no/such/folder", "../gone", "no/such/file.wav", "gone.FLAC"])
def test_missing_paths_are_named(path: str) -> None:
    with pytest.raises(InputError, match="no file or folder") as raised:
        AudioDataset([path])
    assert path in str(raised.value)


def clip(*amplitudes: float) -> Clip:
    """Noise with one amplitude per window; the last window is half as long."""
    noise = np.random.default_rng(len(amplitudes)).uniform(-1, 1, (len(amplitudes), WINDOW)).astype(np.float32)
    return Clip("noise", (noise * np.array(amplitudes, np.float32)[:, None]).ravel()[: -WINDOW // 2])


def test_long_audio_is_split_into_windows() -> None:
    long, short = clip(0.5, 0.5, 0.5), clip(0.5)
    batches = list(feature_batches([long, short, long], EXTRACTOR, num_windows=100, batch_size=3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 80, 600), (3, 80, 600), (1, 80, 600)]
    assert {batch.dtype for batch in batches} == {torch.float32}
    cuts = [(long, 0), (long, 1), (long, 2), (short, 0), (long, 0), (long, 1), (long, 2)]
    for features, (source, index) in zip(torch.cat(batches), cuts, strict=True):
        window = np.zeros(WINDOW, np.float32)
        part = source.samples[index * WINDOW : (index + 1) * WINDOW]
        window[: len(part)] = part
        expected = EXTRACTOR(window, sampling_rate=16_000, return_tensors="pt").input_features[0]
        torch.testing.assert_close(features, expected)


def test_no_more_windows_are_read_than_requested() -> None:
    def clips() -> Iterator[Clip]:
        yield clip(0.5, 0.5)
        yield clip(0.5, 0.5)
        pytest.fail("a third clip was read")

    batches = list(feature_batches(clips(), EXTRACTOR, num_windows=3, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 1]


@pytest.mark.parametrize(("mel_bins", "seconds"), [(80, 2), (128, 2), (128, 30)])
def test_features_depend_on_the_extractor(mel_bins: int, seconds: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=seconds)
    speech = Clip("tone", tone(440, 16_000, 3).astype(np.float32))
    batch = torch.cat(list(feature_batches([speech], extractor, num_windows=9, batch_size=9)))
    assert batch.shape == (2 if seconds == 2 else 1, mel_bins, 100 * seconds)


@pytest.mark.parametrize("ratio", [0.0, 20.0])
def test_noise_has_the_requested_ratio(ratio: float) -> None:
    samples = tone(440, 16_000).astype(np.float32)
    noise = with_noise(samples, ratio, np.random.default_rng(0)) - samples
    found = 10 * np.log10((samples**2).mean() / (noise**2).mean())
    assert found == pytest.approx(ratio, abs=0.2)
    assert abs(noise[1:] @ noise[:-1]) < 0.05 * (noise @ noise)  # white


def test_noise_is_reproducible_and_differs_between_windows() -> None:
    def features(noise: tuple[float, float] | tuple[()], seed: int) -> torch.Tensor:
        return torch.cat(list(feature_batches([clip(0.5, 0.5), clip(0.5)], EXTRACTOR, 100, 2, noise, seed)))

    assert torch.equal(features((0, 40), 1), features((0, 40), 1))
    different = (features((), 1), features((0, 40), 1), features((0, 40), 2))
    for first, second in itertools.combinations(different, 2):
        assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_silent_windows_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    quiet_not_silent = 1e-3
    clips = [clip(0.5, 0, quiet_not_silent, 1e-6), clip(0), clip(0.5)]
    batches = list(feature_batches(clips, EXTRACTOR, num_windows=100, batch_size=8))
    assert [len(batch) for batch in batches] == [3]
    assert "3 silent" in caplog.text


def test_silent_windows_do_not_count_towards_the_limit() -> None:
    batches = list(feature_batches([clip(0, 0.5, 0, 0.5), clip(0.5)], EXTRACTOR, num_windows=2, batch_size=8))
    assert [len(batch) for batch in batches] == [2]


def test_only_silence_is_an_error() -> None:
    with pytest.raises(InputError, match="silent"):
        list(feature_batches([clip(0, 1e-6), clip(0)], EXTRACTOR, num_windows=100, batch_size=8))
