"""Sensitivities against one backward pass through the whole model."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lite_whisper.common.errors import InputError
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.lowrank.moments import OBSERVED_SIDE
from lite_whisper.lowrank.sensitivity import collect_sensitivities, noise_seed
from lite_whisper.models.layers import projection_module, transcripts


@pytest.fixture(scope="module")
def sensitivities(base_model, calibration_batches):
    """Sensitivities of the miniature model on two batches of two windows."""
    return collect_sensitivities(base_model, [batch[:2] for batch in calibration_batches[:2]], seed=5)


def test_sensitivities_match_a_backward_pass_through_the_whole_model(
    base_model, calibration_batches, sensitivities
) -> None:
    gradients: dict[tuple[int, str], list[torch.Tensor]] = {}
    weighted_frames: dict[tuple[int, str], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    model = copy.deepcopy(base_model)

    def record_gradients(key):
        def hook(module, inputs, output) -> None:
            output.register_hook(lambda gradient: gradients.setdefault(key, []).append(gradient.flatten(end_dim=-2)))

        return hook

    def record_frames(key, side):
        def hook(module, inputs, output) -> None:
            frames = output if side == "output" else inputs[0]
            pairs = weighted_frames.setdefault(key, [])
            frames.register_hook(lambda gradient: pairs.append((frames.detach(), gradient.square().sum(dim=-1))))

        return hook

    for index, layer in enumerate(model.get_encoder().layers):
        for projection in PROJECTIONS:
            projection_module(layer, projection).register_forward_hook(record_gradients((index, projection)))
        for projection, side in OBSERVED_SIDE.items():
            projection_module(layer, projection).register_forward_hook(record_frames((index, projection), side))
    for number, batch in enumerate(batch[:2] for batch in calibration_batches[:2]):
        generator = torch.Generator().manual_seed(noise_seed(5, number))
        tokens, predicted, _ = transcripts(base_model, base_model.get_encoder()(batch)[0])
        logits = model(input_features=batch, decoder_input_ids=tokens).logits[predicted]
        probabilities = logits.detach().softmax(dim=-1)
        # a square root of diag(p) - p p^T as an explicit matrix for each token
        roots = [torch.diag(p.sqrt()) - torch.outer(p, p.sqrt()) for p in probabilities]
        noise = torch.randn(logits.shape, generator=generator)
        logits.backward(torch.stack([root @ z for root, z in zip(roots, noise, strict=True)]))
    for (index, projection), parts in gradients.items():
        frames = torch.cat(parts).double()
        if projection == "fc1":
            frames = frames @ projection_module(base_model.get_encoder().layers[index], projection).weight.double()
        expected = frames.t() @ frames / len(frames)
        error = (sensitivities.layers[index][projection].double() - expected).norm() / expected.norm()
        assert error < 1e-3, f"layer {index} {projection}: {float(error):.1e}"
    assert len(weighted_frames) == 4 * len(sensitivities.moments)
    for (index, projection), pairs in weighted_frames.items():
        frames, weights = (
            torch.cat([part.double().flatten(end_dim=1) for part in parts]) for parts in zip(*pairs, strict=True)
        )
        found = sensitivities.moments[index][projection]
        expected = torch.cov(frames.t(), correction=0, aweights=weights)
        assert (found.covariance - expected).norm() < 1e-3 * expected.norm(), f"layer {index} {projection}"
        torch.testing.assert_close(found.mean, weights @ frames / weights.sum(), rtol=1e-3, atol=1e-3)


def test_random_gradient_has_the_fisher_information_as_covariance() -> None:
    """diag(sqrt(p)) - p sqrt(p)^T times its transpose is diag(p) - p p^T."""
    p = torch.rand(7, dtype=torch.float64).softmax(dim=0)
    root = torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
    torch.testing.assert_close(root @ root.t(), torch.diag(p) - torch.outer(p, p))


def test_transcripts_match_generate(base_model, processor, calibration_batches) -> None:
    batch = calibration_batches[0]
    tokens, predicted, languages = transcripts(base_model, base_model.get_encoder()(batch)[0])
    assert languages == ["en"] * len(batch)
    texts = base_model.generate(batch, language="en", task="transcribe", num_beams=1)
    expected = processor.batch_decode(texts, skip_special_tokens=True)
    for row, mask, text in zip(tokens, predicted, expected, strict=True):
        assert row[:4].tolist() == [292, 293, 394, 398]
        spoken = row[mask][1:]  # the last token of the prefix makes the first prediction
        assert processor.decode(spoken, skip_special_tokens=True) == text
        assert int(mask.sum()) == len(spoken) + 1


def test_timestamp_tokens_are_suppressed(base_model, calibration_batches) -> None:
    model = copy.deepcopy(base_model)
    hidden = model.get_encoder()(calibration_batches[0])[0]
    expected, *_ = transcripts(model, hidden)
    first_timestamp = model.generation_config.no_timestamps_token_id + 1

    def favour_timestamps(module, inputs, logits: torch.Tensor) -> torch.Tensor:
        logits[..., first_timestamp:] += 100
        return logits

    model.proj_out.register_forward_hook(favour_timestamps)
    assert torch.equal(transcripts(model, hidden)[0], expected)


def test_english_only_model_has_no_language_token(base_model, calibration_batches) -> None:
    model = copy.deepcopy(base_model)
    model.generation_config.is_multilingual = False
    model.generation_config.lang_to_id = model.generation_config.task_to_id = None
    del model.generation_config.lang_to_id, model.generation_config.task_to_id
    tokens, predicted, languages = transcripts(model, model.get_encoder()(calibration_batches[0])[0])
    assert tokens[0, :2].tolist() == [292, 398] and predicted[0, :2].tolist() == [False, True]
    assert languages == []


def test_languages_are_counted(sensitivities) -> None:
    assert sensitivities.languages == {"en": 4}


def test_sensitivities_are_symmetric(sensitivities) -> None:
    for layer_sensitivities in sensitivities.layers:
        assert layer_sensitivities.keys() == set(PROJECTIONS)
        for total in layer_sensitivities.values():
            assert total.shape == (256, 256)
            torch.testing.assert_close(total, total.t())
            assert float(total.trace()) > 0


def test_model_is_left_unchanged(base_model, calibration_batches) -> None:
    model = copy.deepcopy(base_model).train()
    collect_sensitivities(model, calibration_batches[:1])
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nan_gradients_and_missing_audio(base_model) -> None:
    with pytest.raises(InputError, match="no calibration audio"):
        collect_sensitivities(base_model, [])
    model = copy.deepcopy(base_model)
    with torch.no_grad():
        model.get_encoder().layers[0].fc1.weight[0, 0] = torch.nan
    features = F.pad(torch.randn(1, 80, 10), (0, 590))
    with pytest.raises(InputError, match="gradients are NaN"):
        collect_sensitivities(model, [features])
