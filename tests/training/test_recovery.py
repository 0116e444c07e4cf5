"""Recovery: distillation data, the loss, training, resuming and error messages."""

import copy
import itertools
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, WhisperConfig, WhisperForConditionalGeneration

from lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.audio import AudioDataset, Clip, feature_batches
from lite_whisper.cli import convert
from lite_whisper.cli.recover import main
from lite_whisper.common.errors import InputError
from lite_whisper.conversion.saving import save_model_folder
from lite_whisper.lowrank import compress, encoder_spectra, threshold_ranks
from lite_whisper.lowrank.compression import empty_lite_model
from lite_whisper.modeling_lite_whisper import LowRankLinear
from lite_whisper.models.layers import layer_inputs
from lite_whisper.training import recovery, trainer
from lite_whisper.training.distillation_data import (
    DistillationDataset,
    Recovery,
    _teacher_outputs,
    collate,
    compared_layers,
    splice,
    write_distillation_data,
)
from lite_whisper.training.recovery import balance, recover
from lite_whisper.training.trainer import (
    EVALUATIONS,
    LEARNING_RATE_PER_LOSS,
    MAX_LEARNING_RATE,
    RecoveryTrainer,
    choose_learning_rate,
    training_arguments,
)

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"
AUDIO = ROOT / "examples/digits/calibration"
SHORT = Recovery(steps=10, variants=1, batch_size=4)


@pytest.fixture
def lite(base_model, moments) -> LiteWhisperForConditionalGeneration:
    """A strongly compressed miniature model."""
    return compress(base_model, moments, threshold_ranks(encoder_spectra(base_model, moments), (0.9, 0.95), 4)).eval()


@pytest.fixture(scope="module")
def clips() -> list:
    return list(AudioDataset([str(AUDIO)], seed=0))[:12]


def test_balancing_changes_no_product(lite) -> None:
    before = {name: m.weight1 @ m.weight2 for name, m in lite.named_modules() if isinstance(m, LowRankLinear)}
    balance(lite)
    for name, product in before.items():
        pair = lite.get_submodule(name)
        torch.testing.assert_close(pair.weight1 @ pair.weight2, product, rtol=1e-4, atol=1e-5)
        values = [torch.linalg.svdvals(weight.double()) for weight in (pair.weight1, pair.weight2)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


def test_distillation_data_holds_the_outputs_of_the_teacher(base_model, processor, clips, tmp_path: Path) -> None:
    """Layer outputs and transcripts match the stored features, and variants differ."""
    settings = Recovery(variants=2, batch_size=4)
    files = write_distillation_data(
        base_model, processor.feature_extractor, clips[:6], settings, tmp_path, {"seed": 0}, range(2)
    )
    distillation_data = DistillationDataset(files)
    assert len(distillation_data) == 12
    with torch.no_grad():
        for example in (distillation_data[0], distillation_data[11]):
            encoded = copy.deepcopy(base_model).get_encoder()(example["features"][None], output_hidden_states=True)
            torch.testing.assert_close(
                example["layers"].float(), torch.cat(encoded.hidden_states[1:6]), rtol=2e-3, atol=2e-3
            )
            torch.testing.assert_close(example["states"].float(), encoded[0][0], rtol=2e-3, atol=2e-3)
            decoded = base_model.get_decoder()(example["tokens"][None], encoder_hidden_states=encoded[0])[0][0]
            torch.testing.assert_close(example["decoder_states"].float(), decoded, rtol=2e-3, atol=2e-2)
            generated = base_model.generate(example["features"][None], language="en", task="transcribe", num_beams=1)[0]
            text = [token for token in generated.tolist() if token < base_model.config.eos_token_id]
            stored = [token for token in example["tokens"].tolist() if 0 < token < base_model.config.eos_token_id]
            assert stored == text and int(example["predicted"].sum()) == len(text) + 1
    batch = collate([distillation_data[0], distillation_data[5], distillation_data[11]])
    assert batch["decoder_input_ids"].shape == batch["predicted"].shape
    assert batch["layers"].shape == (5, 3, 300, 256)
    assert not torch.equal(distillation_data[0]["features"], distillation_data[6]["features"])
    changed = [path.stat().st_mtime_ns for path in files]
    assert (
        write_distillation_data(
            base_model, processor.feature_extractor, clips[:6], settings, tmp_path, {"seed": 0}, range(2)
        )
        == files
    )
    assert [path.stat().st_mtime_ns for path in files] == changed
    with pytest.raises(InputError, match="seed was 0, now 1"):
        write_distillation_data(
            base_model, processor.feature_extractor, clips[:6], settings, tmp_path, {"seed": 1}, range(2)
        )


def test_spliced_windows_consist_of_pieces_of_the_others() -> None:
    windows = [Clip(str(i), np.full(96_000, float(i), np.float32)) for i in range(1, 5)]
    made = [splice(windows, 96_000, np.random.default_rng(seed)).samples for seed in range(20)]
    assert all(48_000 <= len(samples) < 96_000 for samples in made)
    pieces = [len(run) for samples in made for run in np.split(samples, np.flatnonzero(np.diff(samples)) + 1)[:-1]]
    assert min(pieces) >= 8_000
    assert {value for samples in made for value in np.unique(samples)} == {1.0, 2.0, 3.0, 4.0}


def test_compared_layers_lie_below_the_last() -> None:
    assert compared_layers(6) == [1, 2, 3, 4, 5]
    assert compared_layers(32) == [1, 8, 16, 24, 31]
    assert compared_layers(2) == [1]


def test_the_loss_is_the_one_that_is_documented(lite, base_model, processor, clips, tmp_path: Path) -> None:
    files = write_distillation_data(base_model, processor.feature_extractor, clips[:4], SHORT, tmp_path, {}, range(1))
    batch = collate([DistillationDataset(files)[index] for index in range(4)])
    settings = Recovery(states=0.5, layers=0.7, decoder=2.0)
    arguments = training_arguments(settings, 5, 1e-4, tmp_path, "float32", torch.device("cpu"))
    trainer = RecoveryTrainer(lite, settings, arguments, eval_dataset=DistillationDataset(files))
    loss = trainer.compute_loss(lite.model, batch)
    with torch.no_grad():
        expected = 0.0
        for index in range(4):  # window by window, from the teacher rather than its stored outputs
            features, tokens = batch["input_features"][index, None], batch["decoder_input_ids"][index, None]
            predicted = batch["predicted"][index, None]
            target = base_model.get_encoder()(features).last_hidden_state
            states = lite.get_encoder()(features).last_hidden_state
            decoded = lite.get_decoder()(tokens, encoder_hidden_states=states)[0][predicted]
            decoded_target = base_model.get_decoder()(tokens, encoder_hidden_states=target)[0][predicted]
            decoder_loss = ((decoded - decoded_target) ** 2).mean() / decoded_target.var(correction=0)
            pairs = zip(*(layer_inputs(m.get_encoder(), features)[1:6] for m in (lite, base_model)), strict=True)
            layer_losses = [((a - b) ** 2).mean() / b.var() for a, b in pairs]
            states_loss = ((states - target) ** 2).mean() / target.var()
            expected += (0.5 * states_loss + 0.7 * sum(layer_losses) / 5 + 2.0 * decoder_loss) / 4
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)


def test_the_learning_rate_follows_from_the_loss(lite, base_model, processor, clips, tmp_path: Path) -> None:
    """It is proportional to the loss up to a maximum; batches of two give every window the same weight."""
    distillation_data = DistillationDataset(
        write_distillation_data(base_model, processor.feature_extractor, clips[:4], SHORT, tmp_path, {}, range(1))
    )
    arguments = training_arguments(replace(SHORT, batch_size=2), 5, 0.0, tmp_path, "float32", torch.device("cpu"))
    trial = RecoveryTrainer(lite, SHORT, arguments, eval_dataset=distillation_data)
    with torch.no_grad():
        loss = trial.compute_loss(lite.model.eval(), collate([distillation_data[index] for index in range(4)])).item()
    assert loss < MAX_LEARNING_RATE / LEARNING_RATE_PER_LOSS
    assert choose_learning_rate(trial) == pytest.approx(LEARNING_RATE_PER_LOSS * loss, rel=1e-3)
    for layer in lite.get_encoder().layers:
        layer.fc2.weight2.data *= 10
    assert choose_learning_rate(trial) == MAX_LEARNING_RATE


@pytest.mark.slow
def test_only_the_factors_are_trained(lite, base_model, processor, clips, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in lite.state_dict().items()}
    trainable = {name for name, parameter in lite.named_parameters() if parameter.requires_grad}
    gentle = replace(SHORT, learning_rate=1e-4)
    result = recover(lite, base_model, processor.feature_extractor, clips, 12, tmp_path, gentle)
    assert result["steps"] == 10
    assert result["loss_after"] < result["loss_before"]
    pairs = [name for name, module in lite.named_modules() if isinstance(module, LowRankLinear)]
    changed = {name for name, tensor in lite.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{pair}.{factor}" for pair in pairs for factor in ("weight1", "weight2")}
    assert {name for name, parameter in lite.named_parameters() if parameter.requires_grad} == trainable
    assert not lite.training


@pytest.mark.long
def test_a_time_becomes_a_number_of_steps(lite, base_model, processor, clips, tmp_path: Path, monkeypatch) -> None:
    """As many steps as fit next to the evaluations, the same number before each, and at least one."""
    seconds = itertools.count()  # two ticks per step, independent of the machine
    monkeypatch.setattr(trainer, "now", lambda device: float(next(seconds)))
    steps = []
    for minutes in (0.0, 0.8):
        settings = replace(SHORT, steps=None, minutes=minutes)
        folder = tmp_path / str(minutes)
        arguments = (base_model, processor.feature_extractor, clips, 12, folder, settings)
        steps.append(recover(copy.deepcopy(lite), *arguments)["steps"])
    assert steps[0] == EVALUATIONS < steps[1]
    assert steps[1] % EVALUATIONS == 0


@pytest.mark.parametrize(("minutes", "variants"), [(0.0, 1), (2.0, 2), (600.0, 3)])
def test_the_teacher_takes_no_more_than_its_share_of_the_time(
    base_model, processor, clips, tmp_path: Path, monkeypatch, minutes: float, variants: int
) -> None:
    """At 20 s per variant, as many as fit into a third of the time, and at least one."""
    monkeypatch.setattr(recovery, "teacher_seconds", lambda files: 10.0 * bool(files))
    settings = Recovery(minutes=minutes, variants=3, batch_size=4)
    parts = {"train": clips[:2], "test": clips[2:3]}
    arguments = (base_model, processor.feature_extractor, parts, tmp_path, settings, {}, torch.device("cpu"))
    assert [len(distillation_data) for distillation_data in recovery._distillation_data(*arguments)] == [
        2 * variants,
        variants,
    ]


@pytest.mark.slow
def test_failed_training_leaves_the_model_unchanged(lite, base_model, processor, clips, tmp_path: Path, caplog) -> None:
    start = copy.deepcopy(lite)
    balance(start)
    excessive = Recovery(steps=5, variants=1, batch_size=4, learning_rate=10.0)
    result = recover(lite, base_model, processor.feature_extractor, clips, 12, tmp_path, excessive)
    assert "left unchanged" in caplog.text
    assert result["loss_after"] == result["loss_before"]
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in lite.state_dict().items())


@pytest.mark.slow
def test_a_loss_that_becomes_nan_keeps_the_best_step(
    lite, base_model, processor, clips, tmp_path: Path, monkeypatch, caplog
) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_) -> None:
            if state.global_step == 7:
                model.encoder.layers[2].fc1.weight1.data.fill_(float("nan"))

    class Spoiled(RecoveryTrainer):
        def __init__(self, *args, **arguments) -> None:
            super().__init__(*args, **arguments, callbacks=[Spoil()])

    monkeypatch.setattr(recovery, "RecoveryTrainer", Spoiled)
    gentle = replace(SHORT, learning_rate=1e-4)
    result = recover(lite, base_model, processor.feature_extractor, clips, 12, tmp_path, gentle)
    assert "the loss is NaN or infinite at step 7" in caplog.text and "learning rate" in caplog.text
    assert result["loss_after"] < result["loss_before"]
    assert all(tensor.isfinite().all() for tensor in lite.state_dict().values())


@pytest.mark.long
def test_an_interrupted_recovery_resumes_exactly(
    base_model, moments, processor, clips, tmp_path: Path, monkeypatch
) -> None:
    """Losses after the checkpoint and final weights are those of an uninterrupted run."""
    ranks = threshold_ranks(encoder_spectra(base_model, moments), (0.9, 0.95), 4)

    def students() -> LiteWhisperForConditionalGeneration:
        return compress(base_model, moments, ranks).eval()

    whole, broken, resumed = students(), students(), students()
    arguments = (base_model, processor.feature_extractor, clips, 12)
    recover(whole, *arguments, tmp_path / "whole", SHORT)

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:

        class Killed(RecoveryTrainer):
            def __init__(self, *args, **arguments) -> None:
                super().__init__(*args, **arguments, callbacks=[Kill()])

        patch.setattr(recovery, "RecoveryTrainer", Killed)
        with pytest.raises(KeyboardInterrupt):
            recover(broken, *arguments, tmp_path / "broken", SHORT)
    # a second run is killed while it writes a checkpoint
    shutil.copytree(tmp_path / "broken/training/checkpoint-6", tmp_path / "broken/training/checkpoint-8")
    (tmp_path / "broken/training/checkpoint-8/trainer_state.json").write_text('{"best_global')
    # Other settings are refused, even if the files that record them are deleted.
    other = replace(SHORT, learning_rate=1e-4)
    with pytest.raises(InputError, match=r"training was created .* learning_rate .* remove the whole folder"):
        recover(students(), *arguments, tmp_path / "broken", other)
    without = shutil.copytree(tmp_path / "broken", tmp_path / "without")
    for origin in without.rglob("origin.json"):
        origin.unlink()
    with pytest.raises(InputError, match=r"training does not record its settings.* remove the whole folder"):
        recover(students(), *arguments, without, other)
    recover(resumed, *arguments, tmp_path / "broken", SHORT)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    curves = [
        json.loads((tmp_path / name / "training/checkpoint-10/trainer_state.json").read_text())["log_history"]
        for name in ("whole", "broken")
    ]
    losses = [[(entry["step"], entry["loss"]) for entry in curve if "loss" in entry] for curve in curves]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_a_teacher_without_room_on_its_device_goes_to_the_cpu(
    base_model, processor, clips, monkeypatch, caplog
) -> None:
    """With a stand-in, because a real device with too little memory is not available."""
    features = next(iter(feature_batches(clips, processor.feature_extractor, 2, 2)))
    moved = []

    class Teacher:
        device, dtype = torch.device("meta"), torch.float32

        def get_encoder(self) -> None:
            raise torch.OutOfMemoryError("full")

        def to(self, device: str) -> WhisperForConditionalGeneration:
            moved.append(device)
            return base_model

    example = _teacher_outputs(Teacher(), features)  # type: ignore[arg-type]
    assert moved == ["cpu"] and example["states"].shape == (2, 300, 256)
    assert "runs on the CPU" in caplog.text


def test_a_teacher_that_does_not_fit_on_the_device(lite, base_model, processor, clips, tmp_path: Path, caplog) -> None:
    """It is moved to the CPU before the audio is processed, and recovery continues."""
    teacher = copy.deepcopy(base_model)
    moved: list[str] = []

    def to(device: torch.device | str) -> WhisperForConditionalGeneration:
        moved.append(str(device))
        if len(moved) == 1:
            raise torch.OutOfMemoryError("full")
        return teacher

    teacher.to = to
    short = Recovery(steps=5, variants=1, batch_size=4)
    assert recover(lite, teacher, processor.feature_extractor, clips, 6, tmp_path, short)["steps"] == 5
    assert moved == ["cpu", "cpu", "cpu"] and "runs on the CPU" in caplog.text


def test_student_and_teacher_of_different_families(lite, processor, clips, tmp_path: Path) -> None:
    sizes = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "pad_token_id": 0,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    }
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    other = WhisperForConditionalGeneration(WhisperConfig(**sizes, vocab_size=1900))
    with pytest.raises(InputError, match="d_model is 256 in the compressed model and 64 in the base model"):
        recover(lite, other, processor.feature_extractor, clips, 4, tmp_path, SHORT)


def test_nothing_to_train(base_model, processor, clips, tmp_path: Path) -> None:
    whole = empty_lite_model(base_model, [{}] * base_model.config.encoder_layers)
    with pytest.raises(InputError, match="nothing to train"):
        recover(whole, base_model, processor.feature_extractor, clips, 4, tmp_path, SHORT)


def test_audio_without_speech(lite, base_model, processor, tmp_path: Path, monkeypatch) -> None:
    hum = [Clip(f"hum {i}", 0.1 * np.sin(np.arange(96_000) / 40).astype(np.float32)) for i in range(8)]
    with pytest.raises(InputError, match="finds no speech"):
        recover(
            lite, base_model, processor.feature_extractor, hum, 8, tmp_path, Recovery(steps=5, variants=1, noise=())
        )


def test_too_little_audio(lite, base_model, processor, clips, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two windows"):
        recover(lite, base_model, processor.feature_extractor, clips[:1], 4, tmp_path, SHORT)


@pytest.mark.slow
def test_the_command(lite, tmp_path: Path, capsys, caplog) -> None:
    """It writes a complete model folder with a report, and leaves no other files."""
    caplog.set_level(logging.INFO)
    save_model_folder(lite, MODEL, tmp_path / "lite", {"base_model": "whisper-digits"})
    command = [tmp_path / "lite", "--base-model", MODEL, "--dataset", AUDIO, "--num-windows", 12, "--batch-size", 4]
    command += ["--steps", 5, "--output", tmp_path / "better"]
    assert main([str(word) for word in command]) == 0
    assert {path.name for path in (tmp_path / "better").iterdir()} == {
        path.name for path in (tmp_path / "lite").iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["better", "lite"]
    report = json.loads((tmp_path / "better/compression.json").read_text())
    assert report["base_model"] == "whisper-digits" and report["recovery"]["steps"] == 5
    assert report["recovery"]["loss_after"] <= report["recovery"]["loss_before"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("lite", "better")]
    assert weights[0].keys() == weights[1].keys()
    assert "before" in capsys.readouterr().out
    assert main([str(word) for word in command]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_convert_recovers(tmp_path: Path) -> None:
    command = ["--base-model", MODEL, "--dataset", AUDIO, "--num-windows", 4, "--ratio", 0.2, "--rank-multiple", 4]
    assert convert.main([str(word) for word in [*command, "--recover", 0.01, "--output", tmp_path / "lite"]]) == 0
    report = json.loads((tmp_path / "lite/compression.json").read_text())
    assert report["recovery"]["steps"] == EVALUATIONS
    assert "trained for 5 steps" in (tmp_path / "lite/README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["lite"]
