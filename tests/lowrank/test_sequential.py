"""Reduced-rank regression in a metric, and the sequential refit that is made of it."""

import pytest
import torch

from lite_whisper.common.errors import InputError
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.lowrank import sequential
from lite_whisper.lowrank.compression import compress, encoder_spectra
from lite_whisper.lowrank.moments import collect_moments
from lite_whisper.lowrank.sensitivity import collect_sensitivities
from lite_whisper.lowrank.sequential import refit
from lite_whisper.lowrank.spectrum import factorize, loss_metric, output_eigenvalues, reduced_weight, regress


def matrix_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.t()


def problem(out_features: int, in_features: int):
    """Random inputs, a layer, gradients at its outputs, and targets."""
    generator = torch.Generator().manual_seed(out_features)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(2000, in_features) @ draw(in_features, in_features) + draw(in_features)
    weight, bias = draw(out_features, in_features), draw(out_features)
    gradients = draw(500, out_features) @ (draw(out_features, out_features) * 0.3)
    return x, weight, bias, gradients


@pytest.mark.parametrize(("out_features", "in_features"), [(20, 20), (60, 20), (20, 60)])
def test_regression_is_the_best_there_is(out_features: int, in_features: int) -> None:
    """Against the truncated SVD of the whitened map in the dense metric (Eckart-Young), written out at full width."""
    x, weight, bias, gradients = problem(out_features, in_features)
    drifted = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rank, damping = 6, 0.2
    information = gradients.t() @ gradients / len(gradients)
    tall = out_features > in_features
    q, r = reduced_weight(weight)
    if tall:
        sensitivity = weight.t() @ information @ weight
        # what the dense metric is on the span of the outputs, damped by the mean over that span
        within = q.t() @ information @ q
        dense = matrix_root(within + damping * within.diagonal().mean() * torch.eye(in_features))
    else:
        sensitivity = information
        dense = matrix_root(information + damping * information.diagonal().mean() * torch.eye(out_features))
    metric = loss_metric(weight, sensitivity, damping)
    torch.testing.assert_close(metric.root, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metric.root @ metric.inverse, torch.eye(len(r), dtype=torch.float64))

    targets = x @ r.t()
    mean, target_mean = drifted.mean(dim=0), targets.mean(dim=0)
    covariance = torch.cov(drifted.t(), correction=0)
    cross = (targets - target_mean).t() @ (drifted - mean) / len(x)
    factors = regress(weight, bias, mean, covariance, target_mean, cross, metric, rank, ridge=0.0)

    wanted = x @ weight.t() + bias
    found = drifted @ factors.weight1 @ factors.weight2 + factors.bias
    project = (lambda error: error @ q @ metric.root) if tall else (lambda error: error @ metric.root)
    whitener = matrix_root(covariance)
    u, s, v = torch.linalg.svd(metric.root @ cross @ torch.linalg.inv(whitener))
    best = torch.linalg.inv(metric.root) @ (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(whitener)
    reference = (drifted - mean) @ best.t() + target_mean
    reference = reference @ q.t() + bias if tall else reference + bias
    torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-6)
    assert project(wanted - found).norm() < project(wanted - wanted.mean(dim=0)).norm()
    torch.testing.assert_close(*(torch.linalg.svdvals(weight) for weight in (factors.weight1, factors.weight2)))


def test_a_large_ridge_keeps_the_weights() -> None:
    x, weight, bias, gradients = problem(20, 20)
    metric = loss_metric(weight, gradients.t() @ gradients, 0.1)
    mean, covariance = x.mean(dim=0), torch.cov(x.t(), correction=0)
    nonsense = torch.randn(20, 20, dtype=torch.float64)
    factors = regress(weight, bias, mean, covariance, weight @ mean, nonsense, metric, 20, ridge=1e12)
    torch.testing.assert_close((factors.weight1 @ factors.weight2).t(), weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("out_features", "in_features"), [(20, 20), (60, 20), (20, 60)])
def test_eigenvalues_are_what_is_lost(out_features: int, in_features: int) -> None:
    """The loss of the best map of a rank is the sum of the eigenvalues beyond it."""
    x, weight, bias, gradients = problem(out_features, in_features)
    information = gradients.t() @ gradients / len(gradients)
    tall = out_features > in_features
    metric = loss_metric(weight, weight.t() @ information @ weight if tall else information, 0.05)
    q, r = reduced_weight(weight)
    covariance = torch.cov(x.t(), correction=0)
    values = output_eigenvalues(weight, covariance, "input", metric)[: len(r)]
    factors = regress(weight, bias, x.mean(dim=0), covariance, r @ x.mean(dim=0), r @ covariance, metric, 5, 0.0)
    for found in (factors, factorize(weight, bias, x.mean(dim=0), covariance, "input", 5, metric)):
        error = x @ weight.t() + bias - (x @ found.weight1 @ found.weight2 + found.bias)
        error = (error @ q if tall else error) @ metric.root
        assert float(error.pow(2).sum(dim=1).mean()) == pytest.approx(float(values[5:].sum()), rel=1e-6)


@pytest.fixture(scope="module")
def sensitivities(base_model, calibration_batches):
    """Of the miniature on two batches."""
    return collect_sensitivities(base_model, calibration_batches[:2])


@torch.no_grad()
def encoder_error(model, base_model, batch) -> float:
    expected = base_model.get_encoder()(batch)[0]
    return float((model.get_encoder()(batch)[0] - expected).norm() / expected.norm())


@pytest.mark.slow
def test_full_rank_reproduces_the_base_model(base_model, calibration_batches, sensitivities) -> None:
    ranks = [dict.fromkeys(PROJECTIONS, 256)] * 6
    lite = refit(base_model, calibration_batches[:2], ranks, sensitivities)
    assert encoder_error(lite, base_model, calibration_batches[3]) < 1e-3


@pytest.mark.slow
def test_errors_pile_up_less(base_model, calibration_batches, sensitivities) -> None:
    """At equal ranks, on audio that was not used, the refitted encoder is nearer to the original."""
    ranks = [dict.fromkeys(PROJECTIONS, 12)] * 6
    fitted = refit(base_model, calibration_batches[:3], ranks, sensitivities)
    plain = compress(base_model, collect_moments(base_model, calibration_batches[:3]), ranks)
    ours, theirs = (encoder_error(model, base_model, calibration_batches[3]) for model in (fitted, plain))
    assert ours < 0.95 * theirs, (ours, theirs)


def test_projections_without_a_rank_stay_as_they_are(base_model, calibration_batches, sensitivities) -> None:
    ranks = [{}, {"fc1": 8}, {}, {"k_proj": 8, "out_proj": 8}, {}, {}]
    lite = refit(base_model, calibration_batches[:1], ranks, sensitivities)
    assert lite.config.low_rank_config == ranks
    untouched = base_model.state_dict()
    for name, tensor in lite.state_dict().items():
        if "weight1" not in name and "weight2" not in name and tensor.shape == untouched.get(name, tensor[:0]).shape:
            if any(part in name for part in ("1.fc1", "3.self_attn.out_proj")):
                continue  # the bias of a pair is its own
            assert torch.equal(tensor, untouched[name]), name


@pytest.mark.slow
def test_hidden_states_on_disk_change_nothing(base_model, calibration_batches, sensitivities, monkeypatch) -> None:
    ranks = [dict.fromkeys(PROJECTIONS, 8)] * 6
    kept = refit(base_model, calibration_batches[:1], ranks, sensitivities)
    monkeypatch.setattr(sequential, "IN_MEMORY", 0)
    stored = refit(base_model, calibration_batches[:1], ranks, sensitivities)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), stored.parameters(), strict=True))


@pytest.mark.slow
def test_an_interrupted_refit_goes_on_where_it_stopped(
    base_model, calibration_batches, sensitivities, tmp_path, monkeypatch
) -> None:
    ranks = [dict.fromkeys(PROJECTIONS, 8), {}, *[dict.fromkeys(PROJECTIONS, 8)] * 4]
    undisturbed = refit(base_model, calibration_batches[:1], ranks, sensitivities)
    fit, fitted = sequential._fit, []

    def stop_in_the_fourth_layer(layer, *more):
        if layer is base_model.get_encoder().layers[3]:
            raise KeyboardInterrupt
        return fit(layer, *more)

    def count(layer, *more):
        fitted.append(layer)
        return fit(layer, *more)

    common = (base_model, calibration_batches[:1], ranks, sensitivities)
    monkeypatch.setattr(sequential, "_fit", stop_in_the_fourth_layer)
    with pytest.raises(KeyboardInterrupt):
        refit(*common, folder=tmp_path, origin={"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"layer_0{i}.safetensors" for i in range(3)]
    monkeypatch.setattr(sequential, "_fit", count)
    resumed = refit(*common, folder=tmp_path, origin={"seed": 1})
    assert {id(layer) for layer in fitted} == {id(layer) for layer in base_model.get_encoder().layers[3:]}
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(InputError, match="made from something else"):
        refit(*common, folder=tmp_path, origin={"seed": 2})
    (tmp_path / "layer_00.safetensors").write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"layer_00\.safetensors is not a fitted layer"):
        refit(*common, folder=tmp_path, origin={"seed": 1})


def test_spectra_in_units_of_the_loss(base_model, moments, sensitivities) -> None:
    """Undamped, all eigenvalues together are what outputs replaced by their mean would cost: tr(G cov(y))."""
    spectra = encoder_spectra(base_model, moments, sensitivities, damping=1e-9)
    layer, of_layer = base_model.get_encoder().layers[2], moments[2]
    weight = layer.self_attn.v_proj.weight.detach().double()
    covariance = weight @ of_layer["q_proj"].covariance.double() @ weight.t()
    expected = (sensitivities.layers[2]["v_proj"].double() @ covariance).trace()
    assert float(spectra[2]["v_proj"].eigenvalues.sum()) == pytest.approx(float(expected), rel=1e-4)
    weight = layer.fc1.weight.detach().double()
    expected = (sensitivities.layers[2]["fc1"].double() @ of_layer["fc1"].covariance.double()).trace()
    assert float(spectra[2]["fc1"].eigenvalues.sum()) == pytest.approx(float(expected), rel=1e-3)
