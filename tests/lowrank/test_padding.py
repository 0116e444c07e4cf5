"""Padding tables against dense solutions, and the encoder with constant padding against the full encoder."""

import pytest
import torch
from random_models import SIZES, encode, random_model
from torch.nn import functional as F
from transformers import WhisperConfig

from lite_whisper.lowrank import padding
from lite_whisper.lowrank.padding import (
    PaddingSums,
    PaddingTables,
    fit_padding,
    low_rank_tables,
    padded_clips,
    predictive_directions,
    regression,
    set_padding_tables,
)
from lite_whisper.padding_lite_whisper import PaddingStates, end_of_sound

POSITIONS, D_MODEL = SIZES["max_source_positions"], SIZES["d_model"]
RANKS = [{"q_proj": 8, "k_proj": 8, "v_proj": 8, "fc1": 24}, {"v_proj": 40}]


@pytest.fixture(autouse=True)
def small_margin(monkeypatch) -> None:
    """A margin that fits the 20 positions of these models."""
    monkeypatch.setattr(padding, "MARGIN", 2)


def speech(clips: int, frames: int = 2 * POSITIONS) -> torch.Tensor:
    """Random log-mel features with sound up to the end of the window."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(clips, 80, frames, generator=generator) * 2 - 1.25


def short_clips(*frames: int) -> torch.Tensor:
    """Features of one clip per given frame, with padding from that frame on."""
    features = speech(len(frames))
    for clip, end in zip(features, frames, strict=True):
        clip[:, end:] = clip[:, :end].max() - 2
        clip.clamp_(min=float(clip[0, -1]))
    return features


def padding_sums(states: torch.Tensor, coefficients: torch.Tensor) -> PaddingSums:
    """Sums over clips that consist of padding only."""
    sums = PaddingSums.zeros(states.shape[1], coefficients.shape[1], states.shape[2], torch.device("cpu"))
    for clip_states, row in zip(states, coefficients, strict=True):
        sums.update(clip_states, row, 0)
    return sums


def predict(mixing: torch.Tensor, states: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """The states that low-rank tables predict, of shape `(clips, positions, d_model)`."""
    return torch.einsum("tr,cf,frd->ctd", mixing, coefficients, states)


@pytest.mark.parametrize("constant", [True, False])
def test_full_rank_tables_predict_linear_states(constant: bool, monkeypatch) -> None:
    monkeypatch.setattr(padding, "RIDGE", 1e-6)
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.randn(50, 3, generator=generator) + 3
    if constant:
        coefficients[:, 0] = 1
    tables = torch.randn(POSITIONS, 3, D_MODEL, generator=generator)
    states = torch.einsum("cf,tfd->ctd", coefficients, tables)
    mixing, low_rank_states = low_rank_tables(*regression(padding_sums(states, coefficients), constant), POSITIONS + 1)
    torch.testing.assert_close(predict(mixing, low_rank_states, coefficients), states, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixing.sum(dim=1), torch.ones(POSITIONS))


def test_positions_before_the_start_are_ignored() -> None:
    coefficients = torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 0.25]])
    sums = PaddingSums.zeros(POSITIONS, 2, D_MODEL, torch.device("cpu"))
    for start, row in zip((5, 9, 12), coefficients, strict=True):
        states = torch.full((POSITIONS, D_MODEL), torch.nan)
        states[start:] = 7.0
        sums.update(states, row, start)
    tables, _ = regression(sums, constant=True)
    assert tables[:5].abs().max() < 1e-9
    torch.testing.assert_close(tables[5:, 0], torch.full((POSITIONS - 5, D_MODEL), 7.0).double(), rtol=1e-3, atol=0)


def test_error_of_a_lower_rank_is_optimal(monkeypatch) -> None:
    """With white coefficients, the error equals that of the truncated SVD of all tables side by side."""
    monkeypatch.setattr(padding, "RIDGE", 1e-6)
    generator = torch.Generator().manual_seed(2)
    white = torch.linalg.qr(torch.cat([torch.ones(60, 1), torch.randn(60, 2, generator=generator)], dim=1))[0] * 60**0.5
    white = white * white[0, 0].sign()
    tables = torch.randn(POSITIONS, 3, D_MODEL, generator=generator)
    states = torch.einsum("cf,tfd->ctd", white, tables)
    mixing, low_rank_states = low_rank_tables(*regression(padding_sums(states, white), constant=True), 6)
    best = torch.linalg.svdvals(tables.flatten(start_dim=1))[5:].square().sum()
    error = (predict(mixing, low_rank_states, white) - states).square().sum() / 60
    torch.testing.assert_close(error, best, rtol=1e-3, atol=0)


def test_predictive_directions(monkeypatch) -> None:
    """Three directions suffice if `far` depends on three dimensions of `near`; other noise is ignored."""
    monkeypatch.setattr(padding, "NUM_DIRECTIONS", 3)
    generator = torch.Generator().manual_seed(3)
    cause = torch.randn(400, 3, generator=generator)
    near = 3 * cause @ torch.randn(3, D_MODEL, generator=generator) + torch.randn(400, D_MODEL, generator=generator)
    far = cause @ torch.randn(3, D_MODEL, generator=generator)
    projected = near @ predictive_directions(near, far)
    torch.testing.assert_close(projected.square().mean(dim=0), torch.ones(3), rtol=1e-3, atol=0)
    error = far - projected @ torch.linalg.lstsq(projected, far).solution
    assert error.square().sum() < 0.02 * far.square().sum()
    assert predictive_directions(near[:2], far[:2]).isfinite().all()
    assert not predictive_directions(torch.zeros(4, D_MODEL), torch.zeros(4, D_MODEL)).any()


def test_end_of_sound_ignores_silence_within() -> None:
    features = short_clips(9, 25)
    features[1, :, 10:14] = features[1].min()
    ends, coefficients = end_of_sound(features)
    assert ends.tolist() == [9, 25]
    torch.testing.assert_close(coefficients[:, 1], features.amin(dim=(1, 2)) + 1)
    torch.testing.assert_close(coefficients[:, 2].exp2(), torch.tensor([9, 25]) / (2 * POSITIONS))


def test_padded_clips_look_like_whispers_padding() -> None:
    clips = padded_clips(speech(30), torch.Generator().manual_seed(0))
    ends, _ = end_of_sound(clips)
    assert len(set(ends.tolist())) > 10 and int(ends.max()) <= round(0.95 * 2 * POSITIONS)
    torch.testing.assert_close(clips.amin(dim=(1, 2)), (clips.amax(dim=(1, 2)) - 2).clamp(min=-1.5))


@pytest.mark.parametrize("optimized", [False, True])
def test_exact_tables_reproduce_the_full_encoder(optimized: bool) -> None:
    """With a clip's own states as tables, constant padding gives the output of the full encoder."""
    model = random_model(RANKS)
    features = short_clips(16)
    encoder, layer_states = model.get_encoder(), []
    hooks = [
        x.self_attn_layer_norm.register_forward_hook(lambda m, i, y: layer_states.append(y[0])) for x in encoder.layers
    ]
    whole = encode(model, features)
    for hook in hooks:
        hook.remove()
    identity = torch.eye(POSITIONS + 1)[:-1]
    tables = []
    for module_states in (*layer_states, whole[0]):
        states = torch.zeros(3, POSITIONS + 1, D_MODEL)
        states[0, :-1] = module_states
        tables.append(PaddingTables(identity, states))
    set_padding_tables(model, tables)
    coefficients = torch.tensor([[1.0, 0.0, 0.0]])
    model.optimize_for_inference(optimized)
    seen: list[int] = []
    hook = encoder.layers[0].fc1.register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    with torch.no_grad():
        torch.testing.assert_close(encode(model, features), whole, rtol=1e-3, atol=1e-3)
        direct = encoder.with_padding(features, 10, coefficients)
    hook.remove()
    torch.testing.assert_close(direct, whole, rtol=1e-3, atol=1e-3)
    assert optimized or seen == [10, 10]  # 8 positions of sound and a margin of 2


@pytest.mark.parametrize("optimized", [False, True])
def test_attention_over_groups_of_padding(optimized: bool) -> None:
    """Grouping changes nothing if all positions of a group are equal, in attention per head and over all heads."""
    model = random_model(RANKS)
    torch.manual_seed(0)
    tables = [
        PaddingTables(F.one_hot(torch.arange(POSITIONS) // 5, 4).float(), torch.randn(3, 4, D_MODEL))
        for _ in (*model.get_encoder().layers, "output")
    ]
    set_padding_tables(model, tables)
    model.optimize_for_inference(optimized)
    encoder, features = model.get_encoder(), short_clips(16, 10)
    coefficients = torch.tensor([[1.0, 0.5, -0.5], [1.0, 0.2, -1.0]])
    found = []
    for group in (1, 5):
        for layer in encoder.layers:
            layer.padding_states.group = group
        with torch.no_grad():
            found.append(encoder.with_padding(features, 10, coefficients))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("positions", "group"), [(1500, 2), (300, 2), (POSITIONS, 1)])
def test_groups_divide_every_number_of_padded_positions(positions: int, group: int) -> None:
    config = WhisperConfig(max_source_positions=positions, d_model=D_MODEL)
    config.constant_padding = {"rank": 4, "margin": 2, "enabled": True}
    assert PaddingStates(config).group == group and PaddingStates(config, 2).group == 1


@pytest.fixture
def padded_model(monkeypatch):
    """A model with fitted padding tables."""
    monkeypatch.setattr(padding, "MIN_CLIPS", 40)
    model = random_model(RANKS)
    set_padding_tables(model, fit_padding(model, [speech(4), speech(4)], rank=8))
    return model


def test_constant_padding_approximates_the_full_encoder(padded_model) -> None:
    features = short_clips(12, 14)
    known = encode(padded_model, features)
    whole = encode(padded_model.use_constant_padding(False), features)
    assert not torch.equal(known, whole)
    assert F.mse_loss(known, whole) < 0.1 * whole.var()


def test_deviations_of_the_last_positions_reduce_the_error(padded_model) -> None:
    """On unseen clips, the error is larger if the deviations are ignored."""
    features = speech(8).roll(3, dims=1)
    for clip in features:
        clip[:, 14:] = clip[:, :14].max() - 2
        clip.clamp_(min=float(clip[0, -1]))
    known = encode(padded_model, features)
    padded_model.get_encoder().padding_states.directions.zero_()
    without = encode(padded_model, features)
    whole = encode(padded_model.use_constant_padding(False), features)
    assert F.mse_loss(known, whole) < F.mse_loss(without, whole)


@pytest.mark.parametrize(
    "features", [speech(2), torch.full((1, 80, 40), -1.5), torch.zeros(1, 80, 40), short_clips(39)]
)
def test_full_and_silent_windows_use_the_full_encoder(padded_model, features) -> None:
    known = encode(padded_model, features)
    assert torch.equal(known, encode(padded_model.use_constant_padding(False), features))


def test_training_and_hidden_states_use_the_full_encoder(padded_model) -> None:
    features, encoder = short_clips(12), padded_model.get_encoder()
    whole = encode(padded_model.use_constant_padding(False), features)
    padded_model.use_constant_padding()
    with torch.no_grad():
        assert torch.equal(encoder(features, output_hidden_states=True).last_hidden_state, whole)
        assert torch.equal(encoder.train()(features)[0], whole)
        with pytest.raises(ValueError, match="length"):
            encoder.eval()(features[..., :30])


def test_save_load_and_conversion_to_stock_whisper(padded_model, tmp_path) -> None:
    features = short_clips(12)
    padded_model.save_pretrained(tmp_path / "on")
    loaded = type(padded_model).from_pretrained(tmp_path / "on")
    assert torch.equal(encode(loaded, features), encode(padded_model, features))
    padded_model.use_constant_padding(False).save_pretrained(tmp_path / "off")
    off = type(padded_model).from_pretrained(tmp_path / "off")
    whole = encode(padded_model, features)
    assert torch.equal(encode(off, features), whole)
    torch.testing.assert_close(encode(padded_model.to_whisper(), features), whole, rtol=1e-4, atol=1e-4)


def test_loading_from_shards_and_in_other_dtypes(padded_model, tmp_path) -> None:
    padded_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    features = short_clips(12)
    known = encode(padded_model, features)
    assert torch.equal(encode(type(padded_model).from_pretrained(tmp_path), features), known)
    half = type(padded_model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.get_encoder().padding_states.directions.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(half.get_encoder()(features.bfloat16())[0].float(), known, rtol=0, atol=0.1)


def test_longest_clip_of_a_batch_determines_the_positions(padded_model) -> None:
    features = short_clips(24, 4, 6)
    seen: list[int] = []
    hook = padded_model.get_encoder().layers[0].fc1.register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    together = encode(padded_model, features)
    alone = encode(padded_model, features[:1])
    hook.remove()
    assert seen == [14, 14]  # 12 positions of sound and a margin of 2
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_gradient_flows_through_the_padding(padded_model) -> None:
    padded_model.requires_grad_(True)
    encoder = padded_model.get_encoder()
    _, coefficients = end_of_sound(short_clips(12))
    encoder.with_padding(short_clips(12), 10, coefficients).sum().backward()
    assert encoder.layers[0].self_attn.k_proj.weight1.grad.abs().sum() > 0


def test_mismatched_tables_and_invalid_settings_are_rejected(padded_model, tmp_path) -> None:
    padded_model.save_pretrained(tmp_path)
    other = padded_model.config
    other.constant_padding = {"rank": 5, "margin": 2, "enabled": True}
    other.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        type(padded_model).from_pretrained(tmp_path)
    for wrong in (
        {"rank": 5},
        {"rank": 0, "margin": 2, "enabled": True},
        [5],
        {"rank": 5, "margin": -1, "enabled": True},
    ):
        with pytest.raises(ValueError, match="constant_padding"):
            type(other)(constant_padding=wrong, **SIZES)
    with pytest.raises(ValueError, match="no padding tables"):
        random_model(None).use_constant_padding()
