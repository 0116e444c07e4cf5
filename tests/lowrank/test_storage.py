"""Calibration files and checkpoints of calibration."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lite_whisper.common import tensor_files
from lite_whisper.common.errors import InputError
from lite_whisper.common.tensor_files import Checkpoint
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.lowrank.moments import Moments, collect_moments
from lite_whisper.lowrank.sensitivity import Sensitivities, collect_sensitivities
from lite_whisper.lowrank.storage import load_calibration, save_calibration


@pytest.mark.parametrize("with_sensitivities", [False, True])
def test_save_and_load_calibration(with_sensitivities: bool, tmp_path, moments) -> None:
    matrices = [{name: torch.randn(4, 4) for name in PROJECTIONS} for _ in moments]
    weighted = [
        {name: Moments(0.1 + index, m.mean + 1, 2 * m.scatter) for name, m in layer_moments.items()}
        for index, layer_moments in enumerate(moments)
    ]
    windows = torch.randn(2, 80, 3000)
    sensitivities = Sensitivities(matrices, weighted, Counter(en=3, nl=1), windows) if with_sensitivities else None
    save_calibration(moments, tmp_path / "moments.safetensors", {"seed": 3}, sensitivities)
    loaded, loaded_sensitivities, origin = load_calibration(tmp_path / "moments.safetensors")
    assert origin == {"seed": 3}
    pairs = list(zip(loaded, moments, strict=True))
    if loaded_sensitivities is not None:
        pairs += zip(loaded_sensitivities.moments, weighted, strict=True)
    for layer_moments, expected in pairs:
        assert layer_moments.keys() == expected.keys()
        for name, moment in layer_moments.items():
            assert moment.count == expected[name].count
            assert torch.equal(moment.mean, expected[name].mean)
            assert torch.equal(moment.scatter, expected[name].scatter)
    if sensitivities is None:
        assert loaded_sensitivities is None
    else:
        assert loaded_sensitivities is not None and torch.equal(loaded_sensitivities.windows, windows)
        assert loaded_sensitivities.languages == {"en": 3, "nl": 1}
        for found, expected in zip(loaded_sensitivities.layers, matrices, strict=True):
            assert all(torch.equal(found[name], expected[name]) for name in PROJECTIONS)


def test_error_names_a_broken_file(tmp_path) -> None:
    (tmp_path / "moments.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"moments\.safetensors is not a file of calibration statistics"):
        load_calibration(tmp_path / "moments.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("collect", [collect_moments, collect_sensitivities])
def test_resumed_pass_gives_identical_results(
    collect: Callable, base_model, calibration_batches, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tensor_files, "INTERVAL", 0.0)
    batches = [batch[:2] for batch in calibration_batches[:3]]
    expected = collect(base_model, batches)

    def interrupted() -> Iterator[torch.Tensor]:
        yield from batches[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(base_model, interrupted(), checkpoint=Checkpoint(tmp_path / "part", {"seed": 3}))
    with pytest.raises(InputError, match="seed was 3, now 4"):
        collect(base_model, batches, checkpoint=Checkpoint(tmp_path / "part", {"seed": 4}))
    skipped = [torch.full_like(batch, torch.nan) for batch in batches[:2]]
    found = collect(base_model, [*skipped, batches[2]], checkpoint=Checkpoint(tmp_path / "part", {"seed": 3}))
    if isinstance(found, Sensitivities):
        assert found.languages == expected.languages
        found, expected = found.layers, expected.layers
    for layer_values, wanted in zip(found, expected, strict=True):
        for name, value in layer_values.items():
            if isinstance(value, Moments):
                assert value.count == wanted[name].count and torch.equal(value.mean, wanted[name].mean)
                value, wanted[name] = value.scatter, wanted[name].scatter
            assert torch.equal(value, wanted[name])


def test_error_names_a_damaged_checkpoint(tmp_path: Path, base_model, calibration_batches) -> None:
    (tmp_path / "part_0_of_1.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="is not a valid checkpoint"):
        collect_moments(base_model, calibration_batches, checkpoint=Checkpoint(tmp_path / "part", {}))
