"""Moments: accuracy, addition, and removal of the hooks."""

import copy

import pytest
import torch

from lite_whisper.common.errors import InputError
from lite_whisper.lowrank.moments import Moments, collect_moments


def num_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_equal_moments(first, second, tolerance: float = 0) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].count == b[name].count
            largest = float(a[name].scatter.abs().max())
            torch.testing.assert_close(a[name].scatter, b[name].scatter, rtol=0, atol=tolerance * largest)
            torch.testing.assert_close(a[name].mean, b[name].mean, rtol=0, atol=max(tolerance, 1e-12))


def test_moments_match_a_float64_model(base_model, calibration_batches, moments) -> None:
    exact = collect_moments(copy.deepcopy(base_model).double(), calibration_batches)
    for single, double in zip(moments, exact, strict=True):
        for name in single:
            assert single[name].scatter.dtype == torch.float64
            assert double[name].scatter.dtype == torch.float64
            error = (single[name].scatter.double() - double[name].scatter).norm() / double[name].scatter.norm()
            assert error < 1e-5, name


def test_moments_do_not_depend_on_batches(base_model, calibration_batches, moments) -> None:
    one_by_one = [window[None] for batch in calibration_batches for window in batch]
    assert_equal_moments(moments, collect_moments(base_model, one_by_one), 1e-5)
    halves = [collect_moments(base_model, calibration_batches[part]) for part in (slice(0, 1), slice(1, None))]
    total = [{name: a[name] + b[name] for name in a} for a, b in zip(*halves, strict=True)]
    assert_equal_moments(moments, total, 1e-5)


def test_half_precision_is_multiplied_in_float32() -> None:
    frames = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    moments = Moments.zeros(8)
    for part in frames.split(100):
        moments.update(part)
    torch.testing.assert_close(moments.covariance, frames.double().T.cov(correction=0), rtol=1e-5, atol=1e-6)


def test_hooks_are_removed_and_training_mode_is_restored(base_model, calibration_batches) -> None:
    model = copy.deepcopy(base_model).train()
    collect_moments(model, calibration_batches[:1])
    assert num_hooks(model) == num_hooks(base_model)
    assert model.training

    def failing():
        yield calibration_batches[0]
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        collect_moments(model, failing())
    assert num_hooks(model) == num_hooks(base_model)


def test_error_names_the_layer_of_nan_activations(base_model, calibration_batches) -> None:
    model = copy.deepcopy(base_model)
    model.get_encoder().layers[2].fc1.bias.data[5] = float("nan")
    with pytest.raises(InputError, match="layer 2 fc2"):
        collect_moments(model, calibration_batches[:1])
    with pytest.raises(InputError, match="no calibration audio"):
        collect_moments(base_model, [])
