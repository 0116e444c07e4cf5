"""Factors in the loss metric against dense algebra, and the compressed models built from them."""

import pytest
import torch

from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.lowrank.compression import UNIFORM_WEIGHT, compress, encoder_spectra
from lite_whisper.lowrank.moments import Moments, blend_moments
from lite_whisper.lowrank.sensitivity import collect_sensitivities
from lite_whisper.lowrank.spectrum import factorize, loss_metric, output_eigenvalues, reduced_weight


def matrix_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.t()


def problem(out_features: int, in_features: int):
    """Random inputs, weight and bias of a layer, and gradients at its outputs."""
    generator = torch.Generator().manual_seed(out_features)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(2000, in_features) @ draw(in_features, in_features) + draw(in_features)
    weight, bias = draw(out_features, in_features), draw(out_features)
    gradients = draw(500, out_features) @ (draw(out_features, out_features) * 0.3)
    return x, weight, bias, gradients


@pytest.mark.parametrize(("out_features", "in_features"), [(20, 20), (60, 20), (20, 60)])
def test_factors_are_optimal_for_their_rank(out_features: int, in_features: int) -> None:
    """Compared with the truncated SVD of the whitened layer in the dense metric (Eckart-Young)."""
    x, weight, bias, gradients = problem(out_features, in_features)
    rank, damping = 6, 0.2
    information = gradients.t() @ gradients / len(gradients)
    tall = out_features > in_features
    q, r = reduced_weight(weight)
    # for a tall layer, the metric and its damping are restricted to the span of the outputs
    within = q.t() @ information @ q if tall else information
    dense = matrix_root(within + damping * within.diagonal().mean() * torch.eye(len(within)))
    metric = loss_metric(weight, weight.t() @ information @ weight if tall else information, damping)
    torch.testing.assert_close(metric.root, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metric.root @ metric.inverse, torch.eye(len(r), dtype=torch.float64))

    mean, covariance = x.mean(dim=0), torch.cov(x.t(), correction=0)
    factors = factorize(weight, bias, mean, covariance, "input", rank, metric)
    found = x @ factors.weight1 @ factors.weight2 + factors.bias
    whitener = matrix_root(covariance)
    u, s, v = torch.linalg.svd(dense @ r @ whitener)
    best = torch.linalg.inv(dense) @ (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.pinv(whitener)
    best = q @ best if tall else best
    torch.testing.assert_close(found, (x - mean) @ best.t() + mean @ weight.t() + bias, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(torch.linalg.svdvals(part) for part in (factors.weight1, factors.weight2)))


@pytest.mark.parametrize(("out_features", "in_features"), [(20, 20), (60, 20), (20, 60)])
def test_discarded_eigenvalues_equal_the_loss(out_features: int, in_features: int) -> None:
    """The loss of the optimal factors is the sum of the discarded eigenvalues."""
    x, weight, bias, gradients = problem(out_features, in_features)
    information = gradients.t() @ gradients / len(gradients)
    tall = out_features > in_features
    q, r = reduced_weight(weight)
    metric = loss_metric(weight, weight.t() @ information @ weight if tall else information, 0.05)
    covariance = torch.cov(x.t(), correction=0)
    values = output_eigenvalues(weight, covariance, "input", metric)[: len(r)]
    found = factorize(weight, bias, x.mean(dim=0), covariance, "input", 5, metric)
    error = x @ weight.t() + bias - (x @ found.weight1 @ found.weight2 + found.bias)
    error = (error @ q if tall else error) @ metric.root
    assert float(error.pow(2).sum(dim=1).mean()) == pytest.approx(float(values[5:].sum()), rel=1e-6)


def test_blended_moments_match_blended_weights() -> None:
    frames, weights = torch.randn(50, 7) + 3, torch.rand(50) * 1e-4
    uniform, weighted = Moments.zeros(7), Moments.zeros(7)
    for part in (slice(0, 20), slice(20, 50)):
        uniform.update(frames[part])
        weighted.update(frames[part], weights[part])
    found = blend_moments({"fc1": uniform}, {"fc1": weighted}, 0.3)["fc1"]
    blended_weights = 0.3 / 50 + 0.7 * weights.double() / weights.double().sum()
    expected = torch.cov(frames.double().t(), correction=0, aweights=blended_weights)
    assert found.count == 50
    torch.testing.assert_close(found.mean, blended_weights @ frames.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.covariance, expected, rtol=1e-4, atol=1e-4)


def test_frames_with_zero_weight_are_ignored() -> None:
    moments = Moments.zeros(3)
    moments.update(torch.randn(4, 3), torch.zeros(4))
    assert moments.count == 0 and not moments.scatter.any()
    uniform = Moments.zeros(3)
    uniform.update(torch.randn(4, 3))
    found = blend_moments({"fc1": uniform}, {"fc1": moments}, 0.2)
    torch.testing.assert_close(found["fc1"].covariance, uniform.covariance)


@pytest.fixture(scope="module")
def sensitivities(base_model, calibration_batches):
    """Sensitivities of the miniature model on two batches."""
    return collect_sensitivities(base_model, calibration_batches[:2])


@torch.no_grad()
def encoder_error(model, base_model, batch) -> float:
    expected = base_model.get_encoder()(batch)[0]
    return float((model.get_encoder()(batch)[0] - expected).norm() / expected.norm())


@pytest.mark.slow
def test_full_rank_reproduces_the_base_model(base_model, calibration_batches, moments, sensitivities) -> None:
    ranks = [dict.fromkeys(PROJECTIONS, 256)] * 6
    lite = compress(base_model, moments, ranks, sensitivities)
    assert encoder_error(lite, base_model, calibration_batches[3]) < 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_loss_metric_beats_variance(base_model, calibration_batches, moments, sensitivities) -> None:
    """At equal ranks, the decoder's predictions on unseen audio stay closer to the base model."""
    ranks = [dict.fromkeys(PROJECTIONS, 24)] * 6
    batch = calibration_batches[3]
    tokens = base_model.generate(batch, language="en", task="transcribe")
    expected = base_model(batch, decoder_input_ids=tokens).logits.log_softmax(dim=-1)

    def divergence(*optional) -> float:
        lite = compress(base_model, moments, ranks, *optional)
        found = lite(batch, decoder_input_ids=tokens).logits.log_softmax(dim=-1)
        return float((expected.exp() * (expected - found)).sum(dim=-1).mean())

    assert divergence(sensitivities) < 0.8 * divergence()


def test_projections_without_a_rank_are_unchanged(base_model, moments, sensitivities) -> None:
    ranks = [{}, {"fc1": 8}, {}, {"k_proj": 8, "out_proj": 8}, {}, {}]
    lite = compress(base_model, moments, ranks, sensitivities)
    assert lite.config.low_rank_config == ranks
    untouched = base_model.state_dict()
    for name, tensor in lite.state_dict().items():
        if "weight1" not in name and "weight2" not in name and tensor.shape == untouched.get(name, tensor[:0]).shape:
            if any(part in name for part in ("1.fc1", "3.self_attn.out_proj", "encoder.layer_norm.bias")):
                continue  # biases of low-rank pairs and of the output do change
            assert torch.equal(tensor, untouched[name]), name


def test_spectra_in_units_of_the_loss(base_model, moments, sensitivities) -> None:
    """Without damping, the eigenvalues sum to the loss of replacing outputs by their mean: tr(G cov(y))."""
    spectra = encoder_spectra(base_model, moments, sensitivities, damping=1e-9)
    layer = base_model.get_encoder().layers[2]
    layer_moments = blend_moments(moments[2], sensitivities.moments[2], UNIFORM_WEIGHT)
    weight = layer.self_attn.v_proj.weight.detach().double()
    covariance = weight @ layer_moments["q_proj"].covariance.double() @ weight.t()
    expected = (sensitivities.layers[2]["v_proj"].double() @ covariance).trace()
    assert float(spectra[2]["v_proj"].eigenvalues.sum()) == pytest.approx(float(expected), rel=1e-4)
    weight = layer.fc1.weight.detach().double()
    expected = (sensitivities.layers[2]["fc1"].double() @ layer_moments["fc1"].covariance.double()).trace()
    assert float(spectra[2]["fc1"].eigenvalues.sum()) == pytest.approx(float(expected), rel=1e-3)
