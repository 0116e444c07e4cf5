"""The LiteWhisper classes against stock Whisper with merged factors."""

import copy
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import SIZES
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

import lite_whisper.modeling_lite_whisper as modeling
from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration, LiteWhisperModel, LowRankLinear
from lite_whisper.configuration_lite_whisper import PROJECTIONS
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.lowrank.compression import compress

PUBLISHED = json.loads((Path(__file__).parents[1] / "data/published_checkpoints.json").read_text())
RANKS = [{"q_proj": 8, "k_proj": 4, "fc1": 12, "fc2": 16}, {"v_proj": 8, "out_proj": 4}]


def random_model(low_rank_config=RANKS, **sizes) -> LiteWhisperForConditionalGeneration:
    """A LiteWhisper whose biases and factors are all random, so that no term can hide behind a zero."""
    torch.manual_seed(0)
    model = LiteWhisperForConditionalGeneration(
        LiteWhisperConfig(low_rank_config=low_rank_config, **{**SIZES, "init_std": 0.1, **sizes})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model.eval()


def dense_reference(tensors: dict[str, torch.Tensor], config: LiteWhisperConfig) -> WhisperForConditionalGeneration:
    """Stock Whisper with every pair merged; the bias of keys, which cancels in the softmax, is dropped."""
    stock = WhisperForConditionalGeneration(WhisperConfig(**{**config.to_dict(), "auto_map": None}))
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("weight1"):
            state[name[:-1]] = (tensor.double() @ tensors[name[:-1] + "2"].double()).t().float()
        elif not name.endswith(("weight2", "k_proj.bias")):
            state[name] = tensor
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    stock.load_state_dict(state)
    return stock.eval()


def inputs(config: WhisperConfig, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    return {"input_features": features, "decoder_input_ids": torch.tensor([[1, 2, 3]] * batch)}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(**inputs(model.config)).logits


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory) -> Path:
    """Three layers of a published checkpoint: its ranks, tensor names and shapes, AutoModel only, no processor."""
    folder = tmp_path_factory.mktemp("published")
    ranks = PUBLISHED["known_ranks"]["lite-whisper-large-v3-turbo-acc (421M), first layers"][:3]
    large = {"d_model": 1280, "encoder_layers": 3, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20}
    model = random_model(ranks, **large, decoder_attention_heads=20, init_std=0.02)
    config = {**model.config.to_dict(), "auto_map": PUBLISHED["format"]["config.json"]["auto_map"]}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    save_file(model.state_dict() | {"proj_out.weight": model.proj_out.weight.clone()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("proj_out", ["present", "absent"])
def test_published_layout(published_folder: Path, tmp_path: Path, proj_out: str) -> None:
    tensors = load_file(published_folder / "model.safetensors")
    assert tensors["model.encoder.layers.0.fc1.weight1"].shape == (1280, 352)
    assert tensors["model.encoder.layers.0.fc1.weight2"].shape == (352, 5120)
    if proj_out == "absent":
        del tensors["proj_out.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((published_folder / "config.json").read_bytes())

    model = LiteWhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    reference = dense_reference(tensors, model.config)
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-4, atol=1e-4)
    assert type(AutoModel.from_pretrained(tmp_path)) is LiteWhisperForConditionalGeneration
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)) is LiteWhisperForConditionalGeneration


def test_without_ranks_it_is_whisper(base_model) -> None:
    model = LiteWhisperForConditionalGeneration(LiteWhisperConfig(**base_model.config.to_dict())).eval()
    model.load_state_dict(base_model.state_dict())
    assert torch.equal(logits(model), logits(base_model))


def test_full_rank_reproduces_the_base_model(base_model, processor, moments, test_clips) -> None:
    lite = compress(base_model, moments, [dict.fromkeys(PROJECTIONS, 256)] * base_model.config.encoder_layers)
    assert float((logits(lite) - logits(base_model)).abs().max()) < 1e-3
    ours, stock = (transcribe(model, processor, test_clips).texts for model in (lite, base_model))
    assert ours == stock


def test_compress_leaves_the_base_model_alone(base_model, moments) -> None:
    before = {name: tensor.clone() for name, tensor in base_model.state_dict().items()}
    lite = compress(base_model, moments, [{"fc1": 8}] * 6)
    with torch.no_grad():
        for parameter in lite.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base_model.state_dict().items())


def test_low_rank_linear() -> None:
    layer = LowRankLinear(6, 10, 3)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), x @ layer.weight1 @ layer.weight2 + layer.bias)
    assert "rank=3" in repr(layer)


def test_base_class_without_head() -> None:
    lite = random_model()
    headless = LiteWhisperModel(lite.config).eval()
    headless.load_state_dict(lite.model.state_dict())
    hidden = headless(**inputs(lite.config)).last_hidden_state
    torch.testing.assert_close(lite.proj_out(hidden), logits(lite))


@pytest.mark.parametrize("rank", [4, 32])
def test_random_weights_have_the_variance_of_a_dense_layer(rank: int) -> None:
    sizes = {**SIZES, "d_model": 256, "encoder_ffn_dim": 1024, "init_std": 0.05}
    config = LiteWhisperConfig(**sizes, low_rank_config=[{"fc1": rank}, {}])
    sparse, dense = (layer.fc1 for layer in LiteWhisperForConditionalGeneration(config).get_encoder().layers)
    assert float((sparse.weight1 @ sparse.weight2).detach().std()) == pytest.approx(0.05, rel=0.1)
    assert float(dense.weight.detach().std()) == pytest.approx(0.05, rel=0.1)
    assert not sparse.bias.any()


def test_a_missing_factor_is_rejected(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = "model.encoder.layers.0.fc1.weight1"
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing.*{missing}"):
        LiteWhisperForConditionalGeneration.from_pretrained(tmp_path)


def test_one_layer_of_dense_weights_at_a_time(monkeypatch) -> None:
    """Counts the linear layers that are alive while the encoder is built."""
    alive: weakref.WeakSet[nn.Linear] = weakref.WeakSet()
    most = 0
    build = nn.Linear.__init__

    def counted(self, *args, **kwargs) -> None:
        nonlocal most
        build(self, *args, **kwargs)
        alive.add(self)
        most = max(most, len(alive))

    monkeypatch.setattr(nn.Linear, "__init__", counted)
    ranks = [dict.fromkeys(PROJECTIONS, 8)] * 5
    encoder = modeling.LiteWhisperEncoder(LiteWhisperConfig(**{**SIZES, "encoder_layers": 5}, low_rank_config=ranks))
    assert len(encoder.layers) == 5 == encoder.config.encoder_layers
    assert most <= len(PROJECTIONS)


def test_no_split_modules_exist() -> None:
    model = random_model()
    present = {type(module).__name__ for module in model.modules()}
    assert set(LiteWhisperForConditionalGeneration._no_split_modules) <= present
    assert set(modeling.LiteWhisperEncoder._no_split_modules) <= present


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_saved_and_read_back(tmp_path: Path, shards: str | None) -> None:
    model = random_model()
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == bool(shards)
    names = [name for file in files for name in load_file(file)]
    assert len(names) == len(set(names)) == len(model.state_dict()) - 1  # tied embeddings are stored once
    for folder_kwargs in ({}, {"device_map": "auto"}):
        loaded = LiteWhisperForConditionalGeneration.from_pretrained(tmp_path, **folder_kwargs).eval()
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(implementation: str) -> None:
    model = random_model()
    reference = dense_reference(model.state_dict(), model.config)
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = random_model()
    expected = logits(model)
    given = inputs(model.config)
    with torch.no_grad():
        result = (
            copy.deepcopy(model)
            .to(dtype)(given["input_features"].to(dtype), decoder_input_ids=given["decoder_input_ids"])
            .logits
        )
    assert result.dtype == dtype
    assert float((result.float() - expected).norm() / expected.norm()) < 0.03


def test_spec_augment_masks_what_whisper_masks() -> None:
    """Masking happens only in training and uses numpy's generator."""
    model = random_model()
    model.config.apply_spec_augment, model.config.mask_feature_prob = True, 0.3
    stock, given = model.to_whisper(), inputs(model.config)

    def seeded(whisper: nn.Module) -> torch.Tensor:
        np.random.seed(0)
        with torch.no_grad():
            return whisper(**given).logits

    evaluated = seeded(model)
    masked = seeded(model.train())
    assert not torch.allclose(masked, evaluated)
    torch.testing.assert_close(masked, seeded(stock.train()))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, gradients = random_model().train(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(
            input_features=inputs(model.config)["input_features"], labels=torch.tensor([[2, 3], [4, 5]])
        ).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert "model.encoder.layers.0.fc1.weight1" in gradients[0]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_encoder_compiles_as_one_graph() -> None:
    model = random_model()
    features = inputs(model.config)["input_features"]
    # This tests the graph, so a backend without a C++ compiler will do.
    compiled = torch.compile(model.get_encoder(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(features)[0], model.get_encoder()(features)[0])


REMOTE = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq
folder = sys.argv[1]
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == "LiteWhisperConfig"
for auto_class in (AutoModel, AutoModelForSpeechSeq2Seq):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "LiteWhisperForConditionalGeneration", type(model)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
assert "lite_whisper" not in sys.modules
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_remote_code_of_a_model_that_was_loaded_and_saved(tmp_path: Path) -> None:
    """Import, load, save; then load in a process that never imports the package, save there, and load that again."""
    random_model().save_pretrained(tmp_path / "first")
    LiteWhisperForConditionalGeneration.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": ""}
    for source, target in (("second", "third"), ("third", "fourth")):
        command = [sys.executable, "-c", REMOTE, str(tmp_path / source), str(tmp_path / target)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    first, fourth = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "fourth"))
    assert first == fourth
