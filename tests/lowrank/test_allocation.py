"""Rank allocation by thresholds and by a budget."""

import itertools
import math

import pytest
import torch

from lite_whisper.common.errors import InputError
from lite_whisper.lowrank.allocation import (
    budget_ranks,
    discarded_eigenvalues,
    threshold_ranks,
    threshold_ranks_within,
    total_cost,
)
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


def test_separate_thresholds_for_attention_and_mlp() -> None:
    values = geometric(256, 0.9)
    projections = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), spectrum(values, 1024))
    (ranks,) = threshold_ranks([projections], (0.5, 0.999), 16)
    assert [ranks[name] for name in ("q_proj", "k_proj", "v_proj", "out_proj")] == [16] * 4
    assert ranks["fc1"] == ranks["fc2"] == 80


@pytest.mark.parametrize(
    ("out_features", "largest"),
    [(64, 32), (256, 51)],  # d/2 for attention and 0.8 d for the MLP, d = 64
)
def test_stays_dense_if_the_pair_would_be_larger(out_features: int, largest: int) -> None:
    for rank in (largest, largest + 1):
        flat = [1.0] * rank + [0.0] * (64 - rank)
        (ranks,) = threshold_ranks([{"fc1": spectrum(flat, out_features)}], (0.9, 1 - 1e-9), 1)
        assert ranks == ({"fc1": rank} if rank == largest else {})


def test_bias_of_a_k_proj_pair_counts_as_parameters() -> None:
    """A dense k_proj has no bias but a low-rank pair does, so rank d/2 is already too large."""
    flat = torch.tensor([1.0] * 32 + [0.0] * 32)
    (ranks,) = threshold_ranks([{"k_proj": Spectrum(flat, 64, 64, False, 1000)}], (1 - 1e-9, 0.9), 1)
    assert ranks == {}


def test_zero_variance_gives_the_smallest_rank() -> None:
    assert threshold_ranks([{"q_proj": spectrum([0.0] * 64)}], multiple=8) == [{"q_proj": 8}]


def test_too_few_frames() -> None:
    with pytest.raises(InputError, match=r"rank 30 of layer 0 fc1 needs at least 31 frames.*got 12; .*19 more"):
        threshold_ranks([{"fc1": spectrum([1.0] * 30 + [0.0] * 34, 256, frames=12)}], (0.9, 0.99), 1)


@pytest.mark.parametrize(("thresholds", "multiple"), [((0.0, 0.9), 16), ((0.9, 1.0), 16), ((0.9, 0.9), 0)])
def test_invalid_thresholds_and_multiples(thresholds: tuple[float, float], multiple: int) -> None:
    with pytest.raises(InputError):
        threshold_ranks([{"q_proj": spectrum([1.0] * 16)}], thresholds, multiple)


def parameters_at(spectra, ranks) -> int:
    return sum(
        spectrum.parameters(ranks[layer][name]) if name in ranks[layer] else spectrum.dense_parameters
        for layer, layer_spectra in enumerate(spectra)
        for name, spectrum in layer_spectra.items()
    )


def loss_at(spectra, ranks) -> float:
    return sum(
        float(spectrum.eigenvalues[ranks[layer][name] :].sum()) if name in ranks[layer] else 0.0
        for layer, layer_spectra in enumerate(spectra)
        for name, spectrum in layer_spectra.items()
    )


def random_spectra(seed: int) -> list[dict[str, Spectrum]]:
    generator = torch.Generator().manual_seed(seed)

    def random_spectrum(out_features: int) -> Spectrum:
        values = torch.rand(8, generator=generator, dtype=torch.float64).pow(4).sort(descending=True).values
        return Spectrum(values * 10 ** float(torch.randn(1, generator=generator)), 8, out_features, True, 100)

    return [{"q_proj": random_spectrum(8), "fc1": random_spectrum(32)} for _ in range(2)]


@pytest.mark.parametrize("seed", range(8))
def test_budget_ranks_finds_the_optimum_on_the_hull(seed: int) -> None:
    """Compared with an exhaustive search: optima of the Lagrangian are found."""
    spectra = random_spectra(seed)
    names = [(layer, name) for layer in range(2) for name in ("q_proj", "fc1")]
    combinations = []
    for choice in itertools.product([None, *range(1, 9)], repeat=4):
        ranks: list[dict[str, int]] = [{}, {}]
        for (layer, name), rank in zip(names, choice, strict=True):
            if rank is not None:
                ranks[layer][name] = rank
        combinations.append((parameters_at(spectra, ranks), loss_at(spectra, ranks), ranks))
    for mu in (1e-1, 1e-2, 1e-3):
        best_cost, best_loss, best = min(combinations, key=lambda entry: entry[1] + mu * entry[0])
        found = budget_ranks(spectra, best_cost, 1)
        assert parameters_at(spectra, found) <= best_cost
        assert loss_at(spectra, found) == pytest.approx(best_loss), (found, best)


def test_budget_is_nearly_used_and_never_exceeded() -> None:
    values = geometric(256, 0.95)
    spectra = [dict.fromkeys(("q_proj", "v_proj"), spectrum(values)) | {"fc1": spectrum(values, 1024)}] * 4
    dense = sum(s.dense_parameters for layer_spectra in spectra for s in layer_spectra.values())
    losses = []
    for share in (0.1, 0.2, 0.35, 0.6, 0.9):
        ranks = budget_ranks(spectra, share * dense, 4)
        assert 0.99 * share * dense < parameters_at(spectra, ranks) <= share * dense
        assert all(rank % 4 == 0 for layer_ranks in ranks for rank in layer_ranks.values())
        losses.append(loss_at(spectra, ranks))
    assert losses == sorted(losses, reverse=True)
    assert budget_ranks(spectra, dense, 4) == [{}] * 4
    with pytest.raises(InputError, match="smallest ranks cost"):
        budget_ranks(spectra, 100, 4)


def test_custom_cost_function() -> None:
    """With this cost, low-rank pairs are cheaper than dense up to rank 32 only."""
    values = geometric(256, 0.99)
    ranks = budget_ranks([{"q_proj": spectrum(values)}] * 2, 150, 16, lambda _, rank: 100 if rank is None else rank * 3)
    assert sorted(map(len, ranks)) == [0, 1]
    assert [rank for layer_ranks in ranks for rank in layer_ranks.values()] == [16]


def test_published_recipe_under_a_budget() -> None:
    """Compared with a grid search over thresholds: the largest model within the budget."""
    names = ("q_proj", "out_proj", "fc1", "fc2")
    spectra = [{name: spectrum(geometric(64, 0.7 + 0.06 * (i + j))) for j, name in enumerate(names)} for i in range(2)]
    dense = total_cost(spectra, [{}, {}])
    for share in (0.3, 0.5, 0.7):
        ranks = threshold_ranks_within(spectra, share * dense, 2)
        shares = [math.exp(-(10 ** (-6 + 8 * step / 1000))) for step in range(1000)]
        tried = [threshold_ranks(spectra, (share, share**0.1), 2) for share in shares]
        costs = [total_cost(spectra, each) for each in tried]
        assert total_cost(spectra, ranks) == max(cost for cost in costs if cost <= share * dense)
    with pytest.raises(InputError, match="no thresholds of the published recipe"):
        threshold_ranks_within(spectra, 100, 2)


def test_discarded_eigenvalues_and_total_cost() -> None:
    spectra = [{"q_proj": spectrum([4.0, 2.0, 1.0, 0.5]), "fc1": spectrum([8.0, 1.0], 6)}]
    assert discarded_eigenvalues(spectra, [{"q_proj": 2}]) == [{"q_proj": 1.5, "fc1": 0.0}]
    # a pair of 4 x 2 and 2 x 4 with 4 biases; 2 x 6 weights with 6 biases
    assert total_cost(spectra, [{"q_proj": 2}]) == 8 + 8 + 4 + 12 + 6
