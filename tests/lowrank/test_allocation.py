"""The published rules for choosing ranks."""

import pytest
import torch

from lite_whisper.errors import InputError
from lite_whisper.lowrank.allocation import threshold_ranks
from lite_whisper.lowrank.spectrum import Spectrum


def spectrum(shares: list[float], out_features: int | None = None, frames: int = 10_000) -> Spectrum:
    size = len(shares)
    return Spectrum(torch.tensor(shares, dtype=torch.float64), size, out_features or size, True, frames)


def geometric(size: int, ratio: float) -> list[float]:
    return [ratio**index for index in range(size)]


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_smallest_multiple_above_the_threshold(threshold: float, multiple: int) -> None:
    values = geometric(256, 0.9)
    (ranks,) = threshold_ranks([{"q_proj": spectrum(values)}], (threshold, 0.5), multiple)
    expected = next(k for k in range(multiple, 257, multiple) if sum(values[:k]) / sum(values) > threshold)
    assert ranks == {"q_proj": expected}


def test_thresholds_belong_to_attention_and_mlp() -> None:
    values = geometric(256, 0.9)
    projections = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), spectrum(values, 1024))
    (ranks,) = threshold_ranks([projections], (0.5, 0.999), 16)
    assert [ranks[name] for name in ("q_proj", "k_proj", "v_proj", "out_proj")] == [16] * 4
    assert ranks["fc1"] == ranks["fc2"] == 80


@pytest.mark.parametrize(
    ("out_features", "largest"),
    [(64, 32), (256, 51)],  # d/2 for attention and 0.8 d for the MLP, d = 64
)
def test_stays_dense_where_the_pair_would_be_larger(out_features: int, largest: int) -> None:
    for rank in (largest, largest + 1):
        flat = [1.0] * rank + [0.0] * (64 - rank)
        (ranks,) = threshold_ranks([{"fc1": spectrum(flat, out_features)}], (0.9, 1 - 1e-9), 1)
        assert ranks == ({"fc1": rank} if rank == largest else {})


def test_a_key_pair_is_never_larger_by_its_bias() -> None:
    """A dense k_proj has no bias and a pair has one, so d/2 is already too much."""
    flat = torch.tensor([1.0] * 32 + [0.0] * 32)
    (ranks,) = threshold_ranks([{"k_proj": Spectrum(flat, 64, 64, False, 1000)}], (1 - 1e-9, 0.9), 1)
    assert ranks == {}


def test_no_variance_takes_the_smallest_rank() -> None:
    assert threshold_ranks([{"q_proj": spectrum([0.0] * 64)}], multiple=8) == [{"q_proj": 8}]


def test_too_few_frames() -> None:
    with pytest.raises(InputError, match=r"rank 30 of layer 0 fc1 needs 31 frames.*there are 12; .*19 more"):
        threshold_ranks([{"fc1": spectrum([1.0] * 30 + [0.0] * 34, 256, frames=12)}], (0.9, 0.99), 1)


@pytest.mark.parametrize(("thresholds", "multiple"), [((0.0, 0.9), 16), ((0.9, 1.0), 16), ((0.9, 0.9), 0)])
def test_values_that_make_no_sense(thresholds: tuple[float, float], multiple: int) -> None:
    with pytest.raises(InputError):
        threshold_ranks([{"q_proj": spectrum([1.0] * 16)}], thresholds, multiple)
