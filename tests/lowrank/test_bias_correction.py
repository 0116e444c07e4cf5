"""Bias correction: the mean output over positions with sound matches the base model's."""

import copy

import numpy as np
import pytest
import torch

from lite_whisper.audio import SAMPLING_RATE
from lite_whisper.audio.windows import with_noise
from lite_whisper.lowrank.bias_correction import correct_bias
from lite_whisper.lowrank.compression import compress
from lite_whisper.lowrank.sensitivity import collect_sensitivities
from lite_whisper.padding_lite_whisper import end_of_sound


@pytest.fixture(scope="module")
def lite(base_model, moments):
    """The miniature model compressed to low ranks."""
    ranks = [{"q_proj": 16, "out_proj": 32, "fc1": 32, "fc2": 32} for _ in moments]
    return compress(base_model, moments, ranks)


@torch.no_grad()
def means(model, features: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """The mean output over the positions of each clip up to its end."""
    return torch.cat([state[:end] for state, end in zip(model.get_encoder()(features)[0], ends, strict=True)]).mean(0)


def test_mean_over_sound_matches_the_base_model(base_model, processor, lite, test_clips) -> None:
    noise = np.random.default_rng(0)  # silence at the end of a clip would be taken for padding
    audio = [
        with_noise(clip.samples[: SAMPLING_RATE * seconds], 20, noise)
        for clip, seconds in zip(test_clips, (1, 2, 3, 5), strict=False)
    ]
    features = processor.feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    # a position is 20 ms; the short-time Fourier transform extends 12 ms beyond the last sample
    ends = [len(samples) // 320 + 1 for samples in audio]
    corrected = copy.deepcopy(lite)
    correct_bias(corrected, base_model, features)
    shift = means(lite, features, ends) - means(base_model, features, ends)
    remaining = means(corrected, features, ends) - means(base_model, features, ends)
    assert remaining.norm() < 0.02 * shift.norm()


def test_only_the_bias_of_the_final_layer_norm_changes(base_model, lite, calibration_batches) -> None:
    corrected = copy.deepcopy(lite)
    correct_bias(corrected, base_model, calibration_batches[0])
    changed = {
        name for name, value in corrected.state_dict().items() if not torch.equal(value, lite.state_dict()[name])
    }
    assert changed == {"model.encoder.layer_norm.bias"}


def test_uncompressed_encoder_is_unchanged(base_model, calibration_batches) -> None:
    copied = copy.deepcopy(base_model)
    correct_bias(copied, base_model, calibration_batches[0])
    assert torch.equal(copied.get_encoder().layer_norm.bias, base_model.get_encoder().layer_norm.bias)


def test_loss_aware_compression_is_corrected(base_model, moments, calibration_batches) -> None:
    sensitivities = collect_sensitivities(base_model, calibration_batches[:1])
    lite = compress(base_model, moments, [{"q_proj": 16, "fc2": 32} for _ in moments], sensitivities)
    ends = [(end + 1) // 2 for end in end_of_sound(sensitivities.windows)[0].tolist()]
    expected = means(base_model, sensitivities.windows, ends)
    assert (means(lite, sensitivities.windows, ends) - expected).norm() < 1e-3 * expected.norm()


def test_windows_without_sound_change_nothing(base_model, lite) -> None:
    corrected = copy.deepcopy(lite)
    correct_bias(corrected, base_model, torch.full((2, 80, 600), -1.5))
    assert torch.equal(corrected.get_encoder().layer_norm.bias, lite.get_encoder().layer_norm.bias)
