"""Eigenvalues and factors against a direct SVD of the centred outputs."""

import pytest
import torch

from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.lowrank.compression import compress, encoder_spectra
from lite_whisper.lowrank.moments import Moments, collect_moments
from lite_whisper.lowrank.spectrum import Spectrum, factorize, output_eigenvalues
from lite_whisper.models.layers import projection_module


def svd_reference(outputs: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of the covariance, and the best rank-`rank` approximation, of outputs of shape (frames, features)."""
    outputs = outputs.double()
    mean = outputs.mean(dim=0)
    _, singular_values, directions = torch.linalg.svd(outputs - mean, full_matrices=False)
    projected = (outputs - mean) @ directions[:rank].t() @ directions[:rank] + mean
    return singular_values**2 / len(outputs), projected


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize(("out_features", "in_features"), [(24, 24), (96, 24), (24, 96)])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_random_matrices(out_features: int, in_features: int, side: str, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, in_features, generator=generator).double() @ torch.randn(
        in_features, in_features, generator=generator
    ).double() + torch.randn(in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator).double()
    bias = torch.randn(out_features, generator=generator).double() if with_bias else None
    y = torch.nn.functional.linear(x, weight, bias)
    observed = x if side == "input" else y
    mean, covariance = observed.mean(dim=0), torch.cov(observed.t(), correction=0)
    rank = 10

    factors = factorize(weight, bias, mean, covariance, side, rank)
    eigenvalues, projected = svd_reference(y, rank)

    assert factors.weight1.shape == (in_features, rank)
    assert factors.weight2.shape == (rank, out_features)
    assert relative_error(x @ factors.weight1 @ factors.weight2 + factors.bias, projected) < 1e-8
    torch.testing.assert_close(*(torch.linalg.svdvals(weight) for weight in (factors.weight1, factors.weight2)))
    found = output_eigenvalues(weight, covariance, side)
    shared = min(in_features, out_features)
    torch.testing.assert_close(found[:shared], eigenvalues[:shared], rtol=0, atol=1e-8 * float(eigenvalues[0]))


@pytest.mark.slow
def test_real_activations(base_model, calibration_batches) -> None:
    """Required accuracy for every projection: outputs 1e-4, eigenvalues 1e-5, relative to the largest eigenvalue."""
    layers, batches = base_model.get_encoder().layers, calibration_batches[:2]
    stored: dict[tuple[int, str], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def store(key: tuple[int, str]):
        return lambda module, inputs, output: stored.setdefault(key, []).append(
            (inputs[0].flatten(end_dim=-2), output.flatten(end_dim=-2))
        )

    hooks = [
        projection_module(layer, projection).register_forward_hook(store((index, projection)))
        for index, layer in enumerate(layers)
        for projection in PROJECTIONS
    ]
    with torch.no_grad():
        for features in batches:
            base_model.get_encoder()(features)
    for hook in hooks:
        hook.remove()

    rank, moments = 12, collect_moments(base_model, batches)
    spectra = encoder_spectra(base_model, moments)
    lite = compress(base_model, moments, [dict.fromkeys(PROJECTIONS, rank) for _ in layers])
    for (index, projection), pairs in stored.items():
        x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
        eigenvalues, projected = svd_reference(y, rank)
        found = spectra[index][projection].eigenvalues
        worst = float((found - eigenvalues[: len(found)]).abs().max() / eigenvalues[0])
        assert worst < 1e-5, f"layer {index} {projection}: eigenvalues differ by {worst:.1e} of the largest"
        with torch.no_grad():
            error = relative_error(projection_module(lite.get_encoder().layers[index], projection)(x), projected)
        assert error < 1e-4, f"layer {index} {projection}: outputs differ by {error:.1e}"


def test_explained_variance_and_parameters() -> None:
    spectrum = Spectrum(torch.tensor([6.0, 3.0, 1.0]), in_features=3, out_features=12, has_bias=False, frames=100)
    assert spectrum.explained_variance(2) == pytest.approx(0.9)
    assert spectrum.dense_parameters == 36
    assert spectrum.parameters(2) == 3 * 2 + 2 * 12 + 12
    assert Spectrum(torch.zeros(3), 3, 3, True, 100).explained_variance(1) == 1.0


def test_moments_are_accurate_for_a_large_mean() -> None:
    """A mean that is large relative to the variance causes no cancellation."""
    frames = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) + 1000
    moments = Moments.zeros(16)
    for batch in frames.split(300):
        moments.update(batch)
    reference = torch.cov(frames.double().t(), correction=0)
    torch.testing.assert_close(moments.covariance.double(), reference, rtol=0, atol=1e-3)
    torch.testing.assert_close(moments.mean.double(), frames.double().mean(dim=0), rtol=1e-6, atol=0)
