"""Broken and adversarial recordings give an error or finite samples, and never crash, hang or exhaust memory."""

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from lite_whisper.audio import AudioDataset, decode, decoding
from lite_whisper.cli.transcribe import main as transcribe
from lite_whisper.common.errors import InputError

MINIATURE = Path(__file__).parents[2] / "examples/whisper-digits"
NOISE = np.random.default_rng(0).normal(scale=0.1, size=(4000, 2)).astype(np.float32)
FORMATS = ("WAV", "FLAC", "OGG", "MP3")


def encode(format: str, samples: np.ndarray = NOISE, rate: int = 16_000, **options: Any) -> bytes:
    """Encodes samples to an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **options)
    return file.getvalue()


VALID = {format: encode(format) for format in FORMATS}


def wav(data: bytes = b"\x01\x02" * 4000, **fields: int) -> bytes:
    """A wav file with arbitrary header fields."""
    valid = {"coding": 1, "channels": 1, "rate": 16_000, "block": 2, "bits": 16, "size": len(data)}
    coding, channels, rate, block, bits, size = (valid | fields).values()
    header = struct.pack("<HHIIHH", coding, channels, rate, rate * block % 2**32, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 2**32 - 1)
        + b"WAVEfmt \x10\0\0\0"
        + header
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def samples_or_reason(file: Path | bytes) -> np.ndarray | str:
    """Decodes a file and checks the samples, or the error message."""
    try:
        samples = decode(io.BytesIO(file) if isinstance(file, bytes) else file)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    assert samples.dtype == np.float32 and samples.ndim == 1 and len(samples) and np.isfinite(samples).all()
    return samples


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (wav(size=2**32 - 1), 4000),
        (wav(size=0), "no audio"),
        (wav(b""), "no audio"),
        (wav(rate=0), "cannot be decoded"),
        (wav(rate=1), "sampling rate of 1 Hz"),
        (wav(rate=999), "sampling rate of 999 Hz"),
        (wav(rate=1000), 64_000),
        (wav(rate=10**9), "shorter than one sample"),
        (wav(rate=2**32 - 1), "cannot be decoded"),
        (wav(channels=0), "cannot be decoded"),
        (wav(channels=65_535), "cannot be decoded"),
        (wav(b"\x01\x02" * 2**14, channels=1024, block=2048), 16),
        (wav(block=0), 4000),
        (wav(block=65_535), None),
        (wav(bits=0), "cannot be decoded"),
        (wav(bits=1), None),
        (wav(bits=8, block=1), 8000),
        (wav(b"\x01\x02\x03" * 4000, bits=24, block=3), 4000),
        (wav(bits=32, coding=3), None),
        (wav(bits=64, coding=3), None),
        (wav(bits=8, coding=6), None),
        (wav(bits=4, coding=17), None),
        (wav(b"\x01"), None),
        (wav(b"\x01\x02"), 1),
        (b"", "cannot be decoded"),
        (b"RIFF", "cannot be decoded"),
        (b"\0" * 10_000, "cannot be decoded"),
    ],
)
def test_wrong_headers(content: bytes, expected: int | str | None) -> None:
    found = samples_or_reason(content)
    if isinstance(expected, str):
        assert isinstance(found, str) and expected in found
    elif expected:
        assert len(found) == expected


@pytest.mark.parametrize("length", [0, 1, 3999, 4001, 2**36 - 1])
def test_a_flac_with_a_wrong_length(length: int) -> None:
    """Streaming encoders write 0; the largest length would take 256 GB."""
    content = bytearray(VALID["FLAC"])
    content[21] = content[21] & 0xF0 | length >> 32
    content[22:26] = struct.pack(">I", length & 0xFFFFFFFF)
    whole = samples_or_reason(VALID["FLAC"])
    found = samples_or_reason(bytes(content))
    assert np.array_equal(found, whole[: min(length, 4000) or 4000])


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.zeros(4000), 4000),
        (np.full(4000, 0.7), 4000),
        (np.sign(NOISE[:, 0]), 4000),
        (np.clip(NOISE * 1000, -1, 1), 4000),
        (np.full(4000, 1e30), 4000),
        (np.full((4000, 2), 3e38), "infinite"),
        (np.full(4000, 1e-45), 4000),
        (np.where(np.arange(4000) == 3999, np.nan, 0), "NaN"),
        (np.where(np.arange(4000) == 0, -np.inf, 0), "NaN"),
        (np.zeros((0, 2)), "no audio"),
        (np.ones(1), 1),
    ],
    ids=["silence", "constant", "1 bit", "clipped", "loud", "too loud", "denormal", "NaN", "infinite", "none", "one"],
)
def test_samples_of_any_kind(samples: np.ndarray, expected: int | str) -> None:
    found = samples_or_reason(encode("WAV", samples, subtype="FLOAT"))
    assert expected in found if isinstance(expected, str) else len(found) == expected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_decoding_in_blocks_changes_nothing(format: str, rate: int, monkeypatch) -> None:
    content = encode(format, np.tile(NOISE, (5, 1)), rate)
    stereo, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    mono = stereo.mean(axis=1)
    monkeypatch.setattr(decoding, "BLOCK_SIZE", 1234)
    expected = mono if rate == 16_000 else soxr.resample(mono, rate, 16_000)
    np.testing.assert_allclose(samples_or_reason(content), expected, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files(format: str) -> None:
    content = VALID[format]
    for length in (*range(0, 200, 7), *range(200, len(content), len(content) // 30)):
        found = samples_or_reason(content[:length])
        assert isinstance(found, str) or len(found) <= 4000


@given(format=st.sampled_from(FORMATS), data=st.data())
def test_broken_bytes(format: str, data: st.DataObject) -> None:
    content = bytearray(VALID[format])
    within = data.draw(st.sampled_from([64, 512, len(content)]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, min(within, len(content))))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    samples_or_reason(bytes(content))


MAGIC = [b"RIFF\xff\xff\xff\xffWAVE", b"RF64\xff\xff\xff\xffWAVEds64", b"RIFX", b"fLaC\0\0\0\x22", b"OggS\0\x02"]
MAGIC += [
    b"\xff\xfb\x90\x44",
    b"ID3\x03\0\0",
    b"FORM\0\0\0\x40AIFF",
    b".snd",
    b"caff\0\1",
    b"riff",
    b"Creative Voice File\x1a",
]


@given(magic=st.sampled_from(MAGIC), content=st.binary(max_size=400))
def test_valid_magic_bytes_before_random_content(magic: bytes, content: bytes) -> None:
    samples_or_reason(magic + content)


@pytest.fixture
def unusual(tmp_path: Path) -> Path:
    """A folder with a valid recording and many files that are not."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "good.wav").write_bytes(VALID["WAV"])
    (folder / "empty.wav").touch()
    (folder / "folder.wav").mkdir()
    (folder / "zero.wav").symlink_to("/dev/zero")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "inner").mkdir()
    for name in ("up", "down"):
        (folder / "inner" / name).symlink_to(folder)
    os.mkfifo(folder / "pipe.wav")
    (folder / os.fsdecode(b"no-utf-8-\xff.wav")).write_bytes(VALID["WAV"])
    (folder / "line\nbreak.wav").write_bytes(b"RIFF")
    return folder


def test_special_files_are_skipped(unusual: Path) -> None:
    dataset = AudioDataset([str(unusual)])
    assert sorted(clip.name for clip in dataset) == ["recordings/good.wav", "recordings/no-utf-8-\udcff.wav"]
    assert len(dataset.skipped) == 7
    for name in ("folder.wav", "zero.wav", "loop.wav", "gone.wav", "pipe.wav"):
        assert isinstance(samples_or_reason(unusual / name), str)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file(unusual: Path) -> None:
    (unusual / "good.wav").chmod(0)
    assert "Permission denied" in samples_or_reason(unusual / "good.wav")


@pytest.mark.parametrize("name", ["x.raw", "a\0.wav", "a" * 5000, "/dev/zero", ".", "é.wav"])
def test_unusual_file_names_in_metadata(name: str, unusual: Path) -> None:
    lines = [json.dumps({"file_name": file}) for file in (name, "good.wav")]
    (unusual / "x.raw").write_bytes(b"12345678")
    (unusual / "metadata.jsonl").write_text("\n".join(lines))
    dataset = AudioDataset([str(unusual)])
    assert [clip.name for clip in dataset] == ["recordings/good.wav"]
    assert len(dataset.skipped) == 1


def test_metadata_that_is_a_pipe(unusual: Path) -> None:
    os.mkfifo(unusual / "metadata.csv")
    assert len(list(AudioDataset([str(unusual)]))) == 2


def test_transcribing_unusual_files(unusual: Path, tmp_path: Path, capsys) -> None:
    for index, content in enumerate([wav(rate=1), wav(size=2**32 - 1), encode("WAV", np.zeros(1)), VALID["MP3"][:300]]):
        (unusual / f"{index}.wav").write_bytes(content)
    for name, sources in {"folder": [str(unusual)], "pattern": [f"{unusual}/**/*.wav"]}.items():
        output = tmp_path / f"{name}.jsonl"
        arguments = [*sources, "--model", str(MINIATURE), "--output", str(output), "--language", "en"]
        assert transcribe(arguments) == 0
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert len({line["audio"] for line in lines}) == len(lines)
        texts = {Path(line["audio"]).name for line in lines if "text" in line}
        assert {"good.wav", "1.wav", "2.wav"} <= texts
        assert all(line["error"] for line in lines if "text" not in line)
    assert transcribe([str(unusual / "pipe.wav"), "--model", str(MINIATURE), "--output", str(tmp_path / "p.txt")]) == 1
    assert "Traceback" not in capsys.readouterr().err
