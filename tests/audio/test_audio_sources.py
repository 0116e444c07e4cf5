"""Further audio formats, files in unsupported formats, and an unreachable Hub."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from lite_whisper.audio import AudioDataset
from lite_whisper.common.errors import InputError

TONE = 0.1 * np.sin(np.arange(48_000) / 20)


def test_opus_and_aiff_are_found_in_folders(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.opus", TONE, 48_000, format="OGG", subtype="OPUS")
    soundfile.write(tmp_path / "b.aiff", TONE, 48_000)
    soundfile.write(tmp_path / "c.AIF", TONE, 48_000, format="AIFF")
    clips = list(AudioDataset([str(tmp_path)]))
    assert len(clips) == 3 and all(abs(len(clip.samples) - 16_000) < 500 for clip in clips)


def test_unsupported_files_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "memo.m4a").write_bytes(b"....ftypM4A ")
    (tmp_path / "call.webm").write_bytes(b"....")
    with pytest.raises(InputError, match=r"call\.webm and 1 more in .* cannot be read; convert to wav or flac"):
        AudioDataset([str(tmp_path)])
    soundfile.write(tmp_path / "a.wav", TONE, 48_000)
    assert len(list(AudioDataset([str(tmp_path)]))) == 1
    assert "call.webm and 1 more" in caplog.text
    with pytest.raises(InputError, match=r"cannot be decoded .*; convert it to wav or flac"):
        list(AudioDataset([str(tmp_path / "memo.m4a")]))


def test_an_unreachable_hub_is_reported_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise HTTPError("Connection refused")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "get_dataset_split_names", None)  # would retry
    with pytest.raises(InputError, match=r"the Hub cannot be reached \(Connection refused\); check") as error:
        AudioDataset(["org/name"])
    assert error.value.setting == "dataset"
