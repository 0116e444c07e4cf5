"""What is kept in files comes back as it was."""

from collections import Counter

import pytest
import torch

from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.errors import InputError
from lite_whisper.lowrank.sensitivity import Sensitivities
from lite_whisper.lowrank.storage import load_moments, save_moments


@pytest.mark.parametrize("with_sensitivities", [False, True])
def test_saved_moments_come_back(with_sensitivities: bool, tmp_path, moments) -> None:
    totals = [{name: torch.randn(4, 4) for name in PROJECTIONS} for _ in moments]
    sensitivities = Sensitivities(totals, Counter(en=3, nl=1)) if with_sensitivities else None
    save_moments(moments, tmp_path / "moments.safetensors", {"seed": 3}, sensitivities)
    loaded, loaded_sensitivities, origin = load_moments(tmp_path / "moments.safetensors")
    assert origin == {"seed": 3}
    for of_layer, expected in zip(loaded, moments, strict=True):
        assert of_layer.keys() == expected.keys()
        for name, moment in of_layer.items():
            assert moment.count == expected[name].count
            assert torch.equal(moment.mean, expected[name].mean)
            assert torch.equal(moment.scatter, expected[name].scatter)
    if sensitivities is None:
        assert loaded_sensitivities is None
    else:
        assert loaded_sensitivities is not None and loaded_sensitivities.languages == {"en": 3, "nl": 1}
        for found, of_layer in zip(loaded_sensitivities.layers, totals, strict=True):
            assert all(torch.equal(found[name], of_layer[name]) for name in PROJECTIONS)


def test_a_broken_file_is_named(tmp_path) -> None:
    (tmp_path / "moments.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"moments\.safetensors is not a file of moments"):
        load_moments(tmp_path / "moments.safetensors")
