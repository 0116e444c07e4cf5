"""Ranks by the time that they take on some machine."""

import json
from pathlib import Path

import pytest
import torch

from lite_whisper.common.errors import InputError
from lite_whisper.lowrank.allocation import budget_ranks, discarded, total_cost
from lite_whisper.lowrank.spectrum import Spectrum
from lite_whisper.lowrank.time_cost import TimeTable, load_time_table

SIZES = {"q_proj": (64, 64), "fc1": (64, 256), "fc2": (256, 64)}
# fc2 is slow for its size: a rank of it costs ten times what one of fc1 does.
TABLE = TimeTable(
    machine={"device": "somebody's"},
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


def lost(ranks: list[dict[str, int]]) -> float:
    return sum(sum(of_layer.values()) for of_layer in discarded(spectra(), ranks))


@pytest.mark.parametrize(("rank", "expected"), [(None, 200), (1, 10), (17, 90), (33, 170), (64, 325), (48, 170 + 75)])
def test_a_straight_line_between_what_was_measured(rank: int | None, expected: float) -> None:
    assert TABLE.cost(spectra()[0]["q_proj"], rank) == pytest.approx(expected)


@pytest.mark.parametrize("speedup", [1.0, 1.5, 3.0])
def test_ranks_reach_the_speedup(speedup: float) -> None:
    ranks = budget_ranks(spectra(), TABLE.budget(speedup), 1, TABLE.cost)
    times = {"q_proj": lambda r: 5 * r + 5, "fc1": lambda r: 10 * r, "fc2": lambda r: 100 * r}
    dense = {"q_proj": 200, "fc1": 400, "fc2": 3_000}
    by_hand = 2_000 + sum(
        times[name](of_layer[name]) if name in of_layer else dense[name] for of_layer in ranks for name in SIZES
    )
    assert TABLE.encoder(spectra(), ranks) == pytest.approx(by_hand, rel=0.01)
    assert 0.9 * 10_000 / speedup < by_hand <= 10_000 / speedup


def test_time_is_spent_better_than_by_parameters() -> None:
    by_parameters = budget_ranks(spectra(), 60_000, 1)
    time = total_cost(spectra(), by_parameters, TABLE.cost)
    by_time = budget_ranks(spectra(), time, 1, TABLE.cost)
    assert total_cost(spectra(), by_time, TABLE.cost) <= time
    assert lost(by_time) < 0.9 * lost(by_parameters)


def test_what_cannot_be_reached() -> None:
    with pytest.raises(InputError, match=r"20% of the time, so ask for less than 5\.00"):
        TABLE.budget(5.0)
    with pytest.raises(InputError, match="smallest ranks cost 480"):  # of four layers, 10 + 10 + 100 each
        budget_ranks(spectra(), TABLE.budget(4.99), 1, TABLE.cost)


def test_another_model() -> None:
    other = Spectrum(torch.ones(32), 32, 32, True, 1000)
    with pytest.raises(InputError, match=r"no projection of 32 inputs and 32 outputs.*lite-whisper profile"):
        TABLE.cost(other, 8)


def test_written_and_read_back(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "folder/profile.json")
    assert load_time_table(tmp_path / "folder/profile.json") == TABLE
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", json.dumps({"machine": {}, "stock": 1, "rest": 1, "products": [2]})]
)
def test_other_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(InputError, match="there is no file"):
        load_time_table(path)
    path.write_text(content)
    with pytest.raises(InputError, match=r"profile\.json is no table of times"):
        load_time_table(path)
