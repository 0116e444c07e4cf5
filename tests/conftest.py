"""What several tests share: the bundled miniature Whisper and its audio."""

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import AudioDataset, Clip, feature_batches
from lite_whisper.lowrank.moments import EncoderMoments, collect_moments

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIATURE = EXAMPLES / "whisper-digits"


@pytest.fixture(scope="session")
def base_model() -> WhisperForConditionalGeneration:
    """The miniature; tests do not change it."""
    return WhisperForConditionalGeneration.from_pretrained(MINIATURE).eval()


@pytest.fixture(scope="session")
def processor() -> WhisperProcessor:
    """The miniature's processor."""
    return WhisperProcessor.from_pretrained(MINIATURE)


@pytest.fixture(scope="session")
def test_clips() -> list[Clip]:
    """The first 16 strings of the bundled test set."""
    return [clip for clip, _ in zip(AudioDataset([str(EXAMPLES / "digits/test")]), range(16), strict=False)]


@pytest.fixture(scope="session")
def calibration_batches(processor: WhisperProcessor) -> list[torch.Tensor]:
    """Log-mel features of 16 windows of calibration audio, in batches of 4."""
    clips = AudioDataset([str(EXAMPLES / "digits/calibration")])
    return list(feature_batches(clips, processor.feature_extractor, 16, 4))


@pytest.fixture(scope="session")
def moments(base_model: WhisperForConditionalGeneration, calibration_batches: list[torch.Tensor]) -> EncoderMoments:
    """The miniature's moments on these windows."""
    return collect_moments(base_model, calibration_batches)
