"""Rank allocation by measured time."""

import json
from pathlib import Path

import pytest
import torch

from lite_whisper.common.errors import InputError
from lite_whisper.lowrank.allocation import budget_ranks, discarded_eigenvalues, total_cost
from lite_whisper.lowrank.spectrum import Spectrum
from lite_whisper.lowrank.time_cost import TimeTable, load_time_table

SIZES = {"q_proj": (64, 64), "fc1": (64, 256), "fc2": (256, 64)}
# fc2 is slow for its size: each of its ranks costs ten times as much as one of fc1.
TABLE = TimeTable(
    machine={"device": "test machine"},
    stock=10_000.0,
    rest=2_000.0,
    products={
        (64, 64): {"dense": 200.0, 1: 10.0, 33: 170.0, 64: 325.0},
        (64, 256): {"dense": 400.0, 1: 10.0, 64: 640.0},
        (256, 64): {"dense": 3_000.0, 1: 100.0, 64: 6_400.0},
    },
)


def spectra(layers: int = 4) -> list[dict[str, Spectrum]]:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(layers, len(SIZES), 64, generator=generator, dtype=torch.float64).sort(descending=True).values
    return [
        {name: Spectrum(values[layer, i] ** 4, *size, True, 10_000) for i, (name, size) in enumerate(SIZES.items())}
        for layer in range(layers)
    ]


def loss_at(ranks: list[dict[str, int]]) -> float:
    return sum(sum(layer_losses.values()) for layer_losses in discarded_eigenvalues(spectra(), ranks))


@pytest.mark.parametrize(("rank", "expected"), [(None, 200), (1, 10), (17, 90), (33, 170), (64, 325), (48, 170 + 75)])
def test_cost_is_interpolated_between_measured_ranks(rank: int | None, expected: float) -> None:
    assert TABLE.cost(spectra()[0]["q_proj"], rank) == pytest.approx(expected)


@pytest.mark.parametrize("speedup", [1.0, 1.5, 3.0])
def test_ranks_reach_the_target_speedup(speedup: float) -> None:
    ranks = budget_ranks(spectra(), TABLE.budget(speedup), 1, TABLE.cost)
    times = {"q_proj": lambda r: 5 * r + 5, "fc1": lambda r: 10 * r, "fc2": lambda r: 100 * r}
    dense = {"q_proj": 200, "fc1": 400, "fc2": 3_000}
    expected = 2_000 + sum(
        times[name](layer_ranks[name]) if name in layer_ranks else dense[name]
        for layer_ranks in ranks
        for name in SIZES
    )
    assert TABLE.encoder(spectra(), ranks) == pytest.approx(expected, rel=0.01)
    assert 0.9 * 10_000 / speedup < expected <= 10_000 / speedup


def test_allocation_by_time_loses_less_than_by_parameters() -> None:
    by_parameters = budget_ranks(spectra(), 60_000, 1)
    time = total_cost(spectra(), by_parameters, TABLE.cost)
    by_time = budget_ranks(spectra(), time, 1, TABLE.cost)
    assert total_cost(spectra(), by_time, TABLE.cost) <= time
    assert loss_at(by_time) < 0.9 * loss_at(by_parameters)


def test_unreachable_speedup() -> None:
    with pytest.raises(InputError, match=r"20% of the time; request a speed-up below 5\.00"):
        TABLE.budget(5.0)
    with pytest.raises(InputError, match="smallest ranks cost 480"):  # four layers of 10 + 10 + 100
        budget_ranks(spectra(), TABLE.budget(4.99), 1, TABLE.cost)


def test_profile_of_another_model() -> None:
    other = Spectrum(torch.ones(32), 32, 32, True, 1000)
    with pytest.raises(InputError, match=r"no projection with 32 inputs and 32 outputs.*lite-whisper profile"):
        TABLE.cost(other, 8)


def test_save_and_load(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "folder/profile.json")
    assert load_time_table(tmp_path / "folder/profile.json") == TABLE
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", json.dumps({"machine": {}, "stock": 1, "rest": 1, "products": [2]})]
)
def test_missing_and_invalid_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(InputError, match="does not exist"):
        load_time_table(path)
    path.write_text(content)
    with pytest.raises(InputError, match=r"profile\.json is not a profile"):
        load_time_table(path)
