"""Settings of a conversion: sizes, defaults and combinations."""

from pathlib import Path
from typing import Any

import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.conversion import ConversionSettings


def settings(name: str = "mine", **more: Any) -> ConversionSettings:
    return ConversionSettings(**{"base_model": f"org/{name}", "output": Path("y"), "dataset": ["x"], **more})


@pytest.mark.parametrize(
    ("size", "name", "parameters", "expected"),
    [
        ({"encoder_params": 313_000_000}, "whisper-large-v3-turbo", 635_000_000, 313_000_000),
        ({"encoder_params": 2_000}, "mine", 5_000, 2_000),
        ({"ratio": 0.5}, "mine", 5_001, 2_500),
        ({"preset": "fast"}, "whisper-large-v3-turbo", 635_000_000, 313_001_000),
        ({"preset": "acc"}, "whisper-base", 19_820_000, 18_641_000),
        ({"preset": "fast"}, "mine", 636_000, 309_000),
        ({}, "whisper-large-v3", 635_000_000, 377_001_000),
        ({}, "mine", 636_000, 378_000),
    ],
)
def test_encoder_budget(size: dict[str, Any], name: str, parameters: int, expected: int) -> None:
    requested = settings(name, **size)
    assert requested.recipe == "loss-aware"
    assert requested.encoder_budget(parameters, 1_000) == expected


def test_defaults() -> None:
    default = settings()
    assert (default.recipe, default.cost, default.noise, default.thresholds) == (
        "loss-aware",
        "parameters",
        (0, 40),
        None,
    )
    published = settings(recipe="liteasr")
    assert (published.noise, published.thresholds) == ((), (0.99, 0.999))
    assert settings(thresholds=(0.9, 0.95)).recipe == "liteasr"
    assert settings(target_speedup=1.5, profile=Path("p.json")).cost == "time"


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        ({"dataset": None}, "dataset"),
        ({"ratio": 0.5, "preset": "fast"}, "preset"),
        ({"recipe": "liteasr", "ratio": 0.5}, "recipe"),
        ({"recipe": "loss-aware", "thresholds": (0.9, 0.9)}, "thresholds"),
        ({"cost": "time"}, "profile"),
        ({"profile": Path("p.json")}, "cost"),
        ({"target_speedup": 1.5, "profile": Path("p.json"), "cost": "parameters"}, "cost"),
        ({"cost": "time", "profile": Path("p.json"), "recipe": "liteasr"}, "recipe"),
    ],
)
def test_conflicting_settings_name_one_of_them(more: dict[str, Any], setting: str) -> None:
    with pytest.raises(InputError) as rejected:
        settings(**more)
    assert rejected.value.setting == setting and "--" not in str(rejected.value)
