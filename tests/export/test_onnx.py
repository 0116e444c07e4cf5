"""ONNX graphs against the model that they were made from, and the folder in onnx-asr."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_asr
import onnxruntime
import pytest
import torch
from conversions import MODEL, only_message
from random_models import SIZES, features_until, random_model, random_padded_model
from torch import nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import Clip
from lite_whisper.cli import export as command
from lite_whisper.common.errors import InputError
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.export import ExportSettings, export, onnx_folder
from lite_whisper.export.export import check_exportable
from lite_whisper.export.onnx_dtypes import ONNX_SUFFIXES, convert_graph
from lite_whisper.export.onnx_graphs import Graphs, trace
from lite_whisper.export.onnx_merge import merge_decoders
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration

RANKS = [{"q_proj": 8, "k_proj": 8, "v_proj": 8, "fc1": 24}, {"v_proj": 40}]
FRAMES, D_MODEL, HEADS = 2 * SIZES["max_source_positions"], SIZES["d_model"], SIZES["decoder_attention_heads"]
TOKENS = torch.randint(2, SIZES["vocab_size"], (3, 7), generator=torch.Generator().manual_seed(0))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(of: onnxruntime.InferenceSession, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in of.get_outputs()]
    return dict(zip(names, of.run(names, inputs), strict=True))


@pytest.fixture(scope="module")
def padded() -> LiteWhisperForConditionalGeneration:
    """Pairs, and tables of padding that hold something."""
    return random_padded_model(RANKS)


@pytest.fixture(scope="module")
def graphs(padded: LiteWhisperForConditionalGeneration) -> Graphs:
    return trace(padded)


@pytest.mark.parametrize("ends", [(5,), (12, 20), (31, 8, 4), (FRAMES,), (0,), (10, 0)], ids=str)
def test_the_encoder_computes_what_the_model_does(padded, graphs: Graphs, ends: tuple[int, ...]) -> None:
    features = features_until(*ends)
    with torch.no_grad():
        wanted = padded.get_encoder()(features)[0]
    found = run(session(graphs.encoder), input_features=features.numpy())["last_hidden_state"]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_padding_is_not_computed(graphs: Graphs) -> None:
    """Where the sound ends early, what enters the layers is shorter."""
    model = onnx.ModelProto()
    model.CopyFrom(graphs.encoder)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    model.graph.output.append(onnx.helper.make_tensor_value_info(norm.output[0], onnx.TensorProto.FLOAT, None))
    of = session(model)
    lengths = [run(of, input_features=features_until(end).numpy())[norm.output[0]].shape[1] for end in (6, FRAMES)]
    assert lengths == [3 + 2, FRAMES // 2]


def test_longer_features_are_cut(graphs: Graphs) -> None:
    features = features_until(12)
    longer = torch.cat([features, features[:, :, -1:].expand(-1, -1, 30)], dim=2)
    of = session(graphs.encoder)
    found, wanted = (run(of, input_features=each.numpy())["last_hidden_state"] for each in (longer, features))
    np.testing.assert_array_equal(found, wanted)


def decoded(decoder: onnx.ModelProto, states: torch.Tensor, tokens: torch.Tensor) -> Iterator[dict[str, np.ndarray]]:
    """What a merged decoder says at each step, the first of 4 tokens; states are kept as onnx-asr keeps them."""
    of = session(decoder)
    nothing = np.zeros((0, HEADS, 0, D_MODEL // HEADS), np.float32)
    kept = {value.name: nothing for value in of.get_inputs() if value.name.startswith("past_key_values")}
    for step in range(4, tokens.shape[1] + 1):
        given = tokens[:, :4] if step == 4 else tokens[:, step - 1 : step]
        inputs = {"input_ids": given.numpy(), "encoder_hidden_states": states.numpy()}
        outputs = run(of, **inputs, use_cache_branch=np.array([step > 4]), **kept)
        yield outputs
        for name in kept:
            state = outputs[name.replace("past_key_values", "present")]
            kept[name] = state if len(state) else kept[name]


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 0.02), ("int4", 0.3)])
def test_the_decoder_matches_the_model(padded, graphs: Graphs, dtype: str, tolerance: float, clips: int) -> None:
    tokens, states = TOKENS[:clips], torch.randn(clips, FRAMES // 2, D_MODEL)
    with torch.no_grad():
        wanted = padded(encoder_outputs=(states,), decoder_input_ids=tokens, output_attentions=True)
    copies = [onnx.ModelProto.FromString(graph.SerializeToString()) for graph in (graphs.first, graphs.following)]
    decoder = merge_decoders(*(convert_graph(graph, dtype) for graph in copies))
    onnx.checker.check_model(decoder)
    steps = list(decoded(decoder, states, tokens))
    logits, attended = (
        np.concatenate([step[name] for step in steps], axis)
        for name, axis in (("logits", 1), ("cross_attentions.0", 2))
    )
    scale = float(wanted.logits.abs().max())
    np.testing.assert_allclose(logits, wanted.logits, atol=tolerance * scale)
    np.testing.assert_allclose(attended, wanted.cross_attentions[0], atol=tolerance)


def test_shared_weights_are_stored_once(graphs: Graphs) -> None:
    def stored_bytes(model: onnx.ModelProto) -> int:
        return sum(weight.ByteSize() for weight in model.graph.initializer)

    assert stored_bytes(merge_decoders(graphs.first, graphs.following)) < 1.05 * max(
        stored_bytes(graphs.first), stored_bytes(graphs.following)
    )


def test_no_file_of_this_machine_is_named(graphs: Graphs) -> None:
    assert not [graph for graph in vars(graphs).values() if b".py" in graph.SerializeToString()]


@pytest.mark.parametrize("bits", [8, 4])
def test_all_products_are_quantized(graphs: Graphs, bits: int, capfd, caplog) -> None:
    handlers = logging.getLogger().handlers[:]
    encoder, decoder = (onnx.ModelProto.FromString(part.SerializeToString()) for part in (graphs.encoder, graphs.first))
    quantized = convert_graph(encoder, f"int{bits}")
    weights = {weight.name for weight in quantized.graph.initializer}
    assert not [node for node in quantized.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    products = [node for node in quantized.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 10 + 7 + 1  # a pair has two; and the directions of padding
    vocabulary = convert_graph(decoder, f"int{bits}").graph.initializer
    sizes = [np.prod(weight.dims) for weight in vocabulary if weight.data_type == onnx.TensorProto.FLOAT]
    assert (SIZES["vocab_size"] * D_MODEL in sizes) == (bits == 4)  # the embedding reads the codes of 8 bits
    assert logging.getLogger().handlers == handlers and not any(capfd.readouterr())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature in all data types, by the command."""
    output = tmp_path_factory.mktemp("export") / "digits"
    options = [MODEL, "--format", "onnx", "--output", output, "--dtype", ",".join(ONNX_SUFFIXES)]
    assert command.main(list(map(str, options))) == 0
    return output


def test_the_folder_is_complete(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    parts = ("encoder_model", "decoder_model_merged")
    graphs = {f"onnx/{part}{suffix}.onnx" for part in parts for suffix in ONNX_SUFFIXES.values()}
    assert graphs <= files
    for name in ("vocab.json", "added_tokens.json", "merges.txt"):
        original, written = ((where / name).read_text(encoding="utf-8") for where in (MODEL, folder))
        if name.endswith("json"):
            assert json.loads(original).items() <= json.loads(written).items()
        else:
            merges = [[line for line in text.splitlines() if not line.startswith("#")] for text in (written, original)]
            assert merges[0] == merges[1]
    config, generation, before = (
        json.loads(path.read_text())
        for path in (folder / "config.json", folder / "generation_config.json", MODEL / "generation_config.json")
    )
    assert config["model_type"] == "whisper" and not {"auto_map", "low_rank_config"} & set(config)
    for name in ("lang_to_id", "task_to_id", "is_multilingual", "alignment_heads", "suppress_tokens"):
        assert generation.get(name) == before.get(name)


@pytest.mark.parametrize("suffix", ["", "?fp16", "?quantized"])
def test_onnx_asr_gives_the_transcripts_of_transformers(
    folder: Path,
    base_model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    test_clips: list[Clip],
    suffix,
) -> None:
    providers = ["CPUExecutionProvider"]
    asr = onnx_asr.load_model("whisper", folder, quantization=suffix.strip("?") or None, providers=providers)
    found = [str(asr.recognize(clip.samples, sample_rate=16000)).strip() for clip in test_clips]
    wanted = [text.strip() for text in transcribe(base_model, processor, test_clips, 4).texts]
    same = sum(one == other for one, other in zip(found, wanted, strict=True))
    assert same == len(wanted) if suffix != "?quantized" else same >= len(wanted) - 2


def test_large_weights_are_stored_in_a_separate_file(
    padded, graphs: Graphs, processor: WhisperProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers.js looks into config.json for them."""
    monkeypatch.setattr(onnx_folder, "trace", lambda model: graphs)
    monkeypatch.setattr(onnx_folder, "MAX_FILE_BYTES", 300_000)
    onnx_folder.write_onnx_folder(padded, processor, ["float32"], tmp_path / "large")
    config = json.loads((tmp_path / "large/config.json").read_text())
    assert config["model_type"] == "lite-whisper"
    names = ["encoder_model.onnx", "decoder_model_merged.onnx"]
    assert config["transformers.js_config"] == {"use_external_data_format": dict.fromkeys(names, 1)}
    for name in names:
        graph, weights = (tmp_path / f"large/onnx/{name}{end}" for end in ("", "_data"))
        assert graph.stat().st_size < 200_000 and graph.stat().st_mode == weights.stat().st_mode
    encoder = onnxruntime.InferenceSession(tmp_path / "large/onnx/encoder_model.onnx")
    features = features_until(12)
    found, wanted = (run(of, input_features=features.numpy()) for of in (encoder, session(graphs.encoder)))
    np.testing.assert_array_equal(found["last_hidden_state"], wanted["last_hidden_state"])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main([str(MODEL), "--format", "onnx", "--output", str(tmp_path / "out")]) == 1
    message = only_message(capsys.readouterr().err)
    assert "onnxscript" in message and "pip install 'lite-whisper[onnx]'" in message


def test_unsupported_layers_are_rejected() -> None:
    model = random_model(RANKS)
    model.model.encoder.layers[0].fc2 = nn.Sequential(nn.Linear(256, 64))
    with pytest.raises(InputError, match="Sequential; merge adapters"):
        check_exportable(model, "a model")


def test_adapters_and_quantised_models_are_rejected_before_loading(tmp_path: Path) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(InputError, match=r"the layers of .* are quantised"):
        export(ExportSettings(str(tmp_path), tmp_path / "out"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="has an adapter; merge it"):
        export(ExportSettings(str(tmp_path), tmp_path / "out"))


def test_a_failure_leaves_nothing(graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        assert len(list(tmp_path.rglob("onnx"))) == 1
        raise RuntimeError("the exporter failed")

    monkeypatch.setattr(onnx_folder, "trace", lambda model: graphs)
    monkeypatch.setattr(onnx_folder, "merge_decoders", fails)
    with pytest.raises(RuntimeError, match="the exporter failed"):
        export(ExportSettings(str(MODEL), tmp_path / "out", dtype=("float32",)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_kept(folder: Path, capsys) -> None:
    before = sorted(folder.rglob("*"))
    assert command.main([str(MODEL), "--format", "onnx", "--output", str(folder)]) == 1
    assert "--overwrite" in only_message(capsys.readouterr().err)
    assert sorted(folder.rglob("*")) == before
