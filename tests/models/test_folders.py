"""Back to stock Whisper, and published checkpoints made complete."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from hub_stand_in import HubStandIn
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.cli import merge, upgrade
from lite_whisper.conversion.saving import save_model_folder
from lite_whisper.lowrank import compress
from lite_whisper.models.folders import PROCESSOR_FILES

MINIATURE = Path(__file__).parents[2] / "examples/whisper-digits"
RANKS = [{"q_proj": 16, "k_proj": 16, "v_proj": 24, "fc1": 32}, {"out_proj": 16, "fc2": 48}, {}, {"k_proj": 8}, {}, {}]


@pytest.fixture(scope="module")
def lite(base_model, moments) -> LiteWhisperForConditionalGeneration:
    """The miniature, compressed in some projections."""
    return compress(base_model, moments, RANKS)


@pytest.fixture(scope="module")
def complete_folder(lite, tmp_path_factory) -> Path:
    """A model folder as written by a conversion."""
    folder = tmp_path_factory.mktemp("complete") / "lite"
    save_model_folder(lite, MINIATURE, folder)
    return folder


@pytest.fixture
def published_folder(complete_folder: Path, tmp_path: Path) -> Path:
    """The same model in the format of the checkpoints of efficient-speech/."""
    folder = tmp_path / "lite-whisper-tiny-acc"
    folder.mkdir()
    config = json.loads((complete_folder / "config.json").read_text())
    del config["auto_map"]["AutoModelForSpeechSeq2Seq"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 291, "max_length": 20}))
    tensors = load_file(complete_folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.no_grad()
def logits(model) -> torch.Tensor:
    torch.manual_seed(0)
    return model(torch.randn(2, 80, 600), decoder_input_ids=torch.tensor([[292, 293], [292, 294]])).logits


def error_of(capsys, command, *arguments) -> str:
    assert command.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_to_whisper_gives_the_same_outputs_as_a_stock_model(lite) -> None:
    stock = lite.to_whisper()
    assert type(stock) is WhisperForConditionalGeneration and type(stock.config).model_type == "whisper"
    assert stock.generation_config.to_dict() == lite.generation_config.to_dict()
    assert stock.proj_out.weight is stock.model.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(stock), logits(lite), rtol=1e-4, atol=1e-4)
    ours = {parameter.data_ptr() for parameter in lite.parameters()}
    assert not any(parameter.data_ptr() in ours for parameter in stock.parameters())


def test_the_bias_of_a_key_cancels(lite, base_model, moments) -> None:
    """Any bias of any compressed k_proj leaves the outputs as they are, so to_whisper may drop it."""
    other = compress(base_model, moments, RANKS)
    for index in (0, 3):
        bias = other.get_encoder().layers[index].self_attn.k_proj.bias
        assert bias.abs().max() > 0
        torch.nn.init.normal_(bias, std=3.0)
    torch.testing.assert_close(logits(other), logits(lite), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_whisper_keeps_dtype_and_mode(lite, base_model, moments, dtype) -> None:
    half = compress(base_model, moments, RANKS).to(dtype).train()
    stock = half.to_whisper()
    assert {parameter.dtype for parameter in stock.parameters()} == {dtype}
    assert stock.training


def test_merge_writes_a_complete_stock_whisper(complete_folder: Path, lite, tmp_path: Path, capsys) -> None:
    assert merge.main([str(complete_folder), "--output", str(tmp_path / "stock")]) == 0
    names = {path.name for path in (tmp_path / "stock").iterdir()}
    assert "compression.json" not in names and not any(name.endswith(".py") for name in names)
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert config["model_type"] == "whisper" and not {"auto_map", "low_rank_config"} & config.keys()
    stock = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "stock")
    assert type(stock) is WhisperForConditionalGeneration
    torch.testing.assert_close(logits(stock), logits(lite), rtol=1e-4, atol=1e-4)
    assert type(WhisperProcessor.from_pretrained(tmp_path / "stock")) is WhisperProcessor


def test_upgrade_completes_a_published_checkpoint(published_folder: Path, lite, tmp_path: Path) -> None:
    output = tmp_path / "upgraded"
    arguments = [published_folder, "--base-model", MINIATURE, "--output", output]
    assert upgrade.main([str(argument) for argument in arguments]) == 0
    for name in (*PROCESSOR_FILES, "generation_config.json"):
        base = MINIATURE / name
        assert not base.exists() or (output / name).read_bytes() == base.read_bytes()
    assert json.loads((output / "config.json").read_text())["auto_map"].keys() >= {"AutoModelForSpeechSeq2Seq"}
    assert (output / "modeling_lite_whisper.py").exists()
    assert "proj_out.weight" not in load_file(output / "model.safetensors")
    upgraded = LiteWhisperForConditionalGeneration.from_pretrained(output)
    assert torch.equal(logits(upgraded), logits(lite))
    assert upgraded.generation_config.max_length == 96


def test_the_base_of_a_published_name_is_known(published_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    asked = []

    def base_model_files(name: str):
        asked.append(name)
        return MINIATURE, json.loads((MINIATURE / "config.json").read_text())

    monkeypatch.setattr("lite_whisper.conversion.rewriting.base_model_files", base_model_files)
    for name, base in {
        "lite-whisper-large-v3-turbo-acc": "openai/whisper-large-v3-turbo",
        "lite-whisper-large-v3": "openai/whisper-large-v3",
        "lite-whisper-base-fast": "openai/whisper-base",
    }.items():
        folder = shutil.copytree(published_folder, tmp_path / name)
        assert upgrade.main([str(folder), "--output", str(tmp_path / "upgraded"), "--overwrite"]) == 0
        assert asked.pop() == base


def test_upgrade_and_merge_reject_other_models(published_folder: Path, tmp_path: Path, capsys) -> None:
    output = ["--output", tmp_path / "output"]
    unknown = shutil.copytree(published_folder, tmp_path / "my-compressed-whisper")
    assert "--base-model" in error_of(capsys, upgrade, unknown, *output)
    assert "not a compressed model" in error_of(capsys, upgrade, MINIATURE, "--base-model", MINIATURE, *output)
    assert "not a compressed model" in error_of(capsys, merge, MINIATURE, *output)
    assert "lite-whisper upgrade" in error_of(capsys, merge, published_folder, *output)
    other = shutil.copytree(MINIATURE, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"d_model": 384}))
    message = error_of(capsys, upgrade, unknown, "--base-model", other, *output)
    assert "d_model is 256, not 384" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--base-model", "b", "--output", "c"],
        ["a"],
    ],
)
def test_merge_rejects_other_options(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        merge.main(arguments)
    assert end.value.code == 2


BY_NAME = """
import sys
import soundfile
from transformers import AutoModelForSpeechSeq2Seq, pipeline
name, revision, file = sys.argv[1:]
arguments = {"language": "en", "task": "transcribe", "num_beams": 1}
audio = soundfile.read(file)[0]
for pinned in ({}, {"revision": revision}):
    recognizer = pipeline("automatic-speech-recognition", model=name, trust_remote_code=True, **pinned)
    print(recognizer(audio.copy(), generate_kwargs=arguments)["text"])
model = AutoModelForSpeechSeq2Seq.from_pretrained(name, trust_remote_code=True)
model.save_pretrained("saved")
assert "lite_whisper" not in sys.modules
"""


@pytest.mark.slow
def test_by_hub_id_alone(complete_folder: Path, lite, processor, tmp_path: Path) -> None:
    """The pipeline by name, pinned too, in a process that knows the package not; what it saves is self-contained."""
    file = MINIATURE.parent / "digits/test/test_001.flac"
    with HubStandIn({"org/lite": complete_folder}) as hub:
        revision = hub.repositories["models", "org/lite"].main.sha
        result = subprocess.run(
            [sys.executable, "-c", BY_NAME, "org/lite", revision, str(file)],
            env=os.environ | hub.environment(tmp_path / "cache"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    features = processor.feature_extractor(soundfile.read(file)[0], sampling_rate=16_000, return_tensors="pt")
    tokens = lite.to_whisper().generate(**features, language="en", task="transcribe", num_beams=1)
    expected = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert result.stdout.splitlines() == [expected, expected]
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert not any("--" in name for name in saved["auto_map"].values())
