"""OpenVINO models against the model that they were made from, and the folder in openvino-genai."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from conversions import MODEL, only_message
from random_models import SIZES, features_until, random_padded_model
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.audio import Clip
from lite_whisper.cli import export as command
from lite_whisper.common.errors import InputError
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.export import ExportSettings, export, openvino_folder
from lite_whisper.export.onnx_graphs import Graphs
from lite_whisper.export.openvino_folder import write_openvino_folder
from lite_whisper.export.openvino_models import SCORES
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration

RANKS = [{"q_proj": 16, "k_proj": 8, "v_proj": 8, "fc1": 24}, {"v_proj": 40}]
FRAMES, D_MODEL = 2 * SIZES["max_source_positions"], SIZES["d_model"]
TOKENS = torch.randint(2, SIZES["vocab_size"], (3, 7), generator=torch.Generator().manual_seed(0))
FORBIDDEN = [7, 11]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TOLERANCES = [("float32", 2e-5), ("float16", 5e-3), ("int8", 0.05)]


@pytest.fixture(scope="module")
def padded() -> LiteWhisperForConditionalGeneration:
    """Pairs, tables of padding that hold something, and tokens that are never written."""
    model = random_padded_model(RANKS)
    model.generation_config.suppress_tokens = FORBIDDEN
    return model


@pytest.fixture(scope="module")
def small(
    padded: LiteWhisperForConditionalGeneration, processor: WhisperProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of that model in a data type, traced once."""
    graphs = openvino_folder.trace(padded)
    written: dict[str, Path] = {}

    def folder(dtype: str) -> Path:
        if dtype not in written:
            written[dtype] = tmp_path_factory.mktemp("openvino") / dtype
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(openvino_folder, "trace", lambda model: graphs)
                write_openvino_folder(padded, processor, [dtype], written[dtype])
        return written[dtype]

    return folder


def compiled(folder: Path, part: str) -> openvino.InferRequest:
    model = openvino.Core().compile_model(folder / f"openvino_{part}_model.xml", "CPU", EXACT)
    return model.create_infer_request()


@pytest.mark.parametrize("ends", [(5,), (12, 20), (FRAMES,), (0,), (10, 0)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_encoder_computes_what_the_model_does(
    padded, small, ends: tuple[int, ...], dtype: str, tolerance: float
) -> None:
    features = features_until(*ends)
    with torch.no_grad():
        wanted = padded.get_encoder()(features)[0]
    encoder = compiled(small(dtype), "encoder")
    found = encoder.infer({"input_features": features.numpy()})["last_hidden_state"]
    np.testing.assert_allclose(found, wanted, atol=tolerance * float(wanted.abs().max()))


def test_padding_is_not_computed(small) -> None:
    """Where the sound ends early, what enters the layers is shorter."""
    core = openvino.Core()
    model = core.read_model(small("float32") / "openvino_encoder_model.xml")
    norm = next(operation for operation in model.get_ordered_ops() if operation.get_type_name() == "MVN")
    model.add_outputs([norm.output(0)])
    request = core.compile_model(model, "CPU", EXACT).create_infer_request()
    lengths = []
    for end in (6, FRAMES):
        request.infer({"input_features": features_until(end).numpy()})
        lengths.append(request.get_output_tensor(1).shape[1])
    assert lengths == [3 + 2, FRAMES // 2]


def says(decoder: openvino.InferRequest, tokens: torch.Tensor, states: torch.Tensor, beams: list[int]) -> np.ndarray:
    inputs = {"input_ids": tokens.numpy(), "encoder_hidden_states": states.numpy()}
    return decoder.infer({**inputs, "beam_idx": np.array(beams, np.int32)})["logits"].copy()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_decoder_matches_the_model(padded, small, dtype: str, tolerance: float) -> None:
    """Whatever was said before a reset, of more clips or fewer."""
    decoder = compiled(small(dtype), "decoder")
    for clips in (1, 3, 2):
        tokens, states = TOKENS[:clips], torch.randn(clips, FRAMES // 2, D_MODEL)
        with torch.no_grad():
            wanted = padded(encoder_outputs=(states,), decoder_input_ids=tokens).logits
        allowed = [token for token in range(SIZES["vocab_size"]) if token not in FORBIDDEN]
        beams = list(range(clips))
        parts = [says(decoder, part, states, beams) for part in tokens.split([4, 1, 2], dim=1)]
        found = np.concatenate(parts, axis=1)
        tolerated = tolerance * float(wanted.abs().max())
        np.testing.assert_allclose(found[..., allowed], wanted[..., allowed], atol=tolerated)
        assert found[..., FORBIDDEN].max() < -60_000
        decoder.reset_state()


def test_beams_go_on_from_others(padded, small) -> None:
    """From one clip, in the first step once, three beams, two of them from another one's text."""
    decoder = compiled(small("float32"), "decoder")
    states, (start, middle, end) = torch.randn(1, FRAMES // 2, D_MODEL), TOKENS.split([3, 3, 1], dim=1)
    says(decoder, start[:1], states, [0])
    each = states.expand(3, -1, -1)
    says(decoder, middle, each, [0, 0, 0])
    found = says(decoder, end, each, [2, 0, 2])
    texts = torch.cat([start[:1].expand(3, -1), middle[[2, 0, 2]], end], dim=1)
    with torch.no_grad():
        wanted = padded(encoder_outputs=(each,), decoder_input_ids=texts).logits[:, -1:]
    scale = float(wanted.abs().max())
    allowed = [np.delete(logits, FORBIDDEN, axis=2) for logits in (found, wanted.numpy())]
    np.testing.assert_allclose(*allowed, atol=2e-5 * scale)


def test_scores_of_the_attention_to_audio_have_the_name_that_is_looked_for(small) -> None:
    operations = openvino.Core().read_model(small("float32") / "openvino_decoder_model.xml").get_ordered_ops()
    sums = [operation for operation in operations if operation.get_type_name() == "Add"]
    names = [name for each in sums for name in each.output(0).get_names() if SCORES in name]
    assert names == [f"{SCORES}_0"]


def test_all_products_are_quantized(small) -> None:
    products, codes = [], []
    for part in ("encoder", "decoder"):
        operations = openvino.Core().read_model(small("int8") / f"openvino_{part}_model.xml").get_ops()
        products += [each for each in operations if each.get_type_name() == "MatMul"]
        constants = [each for each in operations if each.get_type_name() == "Constant"]
        codes.append(sum(each.get_element_type() == openvino.Type.i8 for each in constants))
    assert not [each for each in products if each.input_value(1).get_node().get_type_name() in ("Constant", "Convert")]
    # Of five pairs, seven other layers and the directions of padding; of ten layers and the vocabulary.
    assert codes == [10 + 7 + 1, 10 + 1]
    sizes = [(small(dtype) / "openvino_decoder_model.bin").stat().st_size for dtype, _ in TOLERANCES]
    assert sizes[2] < sizes[1] < 0.51 * sizes[0]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_file_of_this_machine_is_named(small, dtype: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in small(dtype).glob("*.xml")]
    assert len(texts) == 4 and not [text for text in texts if ".py" in text or ".onnx" in text]


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """The miniature's graphs are the same in all dtypes, and tracing takes longest."""
    trace, graphs = openvino_folder.trace, {}

    def once(model: WhisperForConditionalGeneration) -> Graphs:
        size = model.num_parameters()
        if size not in graphs:
            graphs[size] = trace(model)
        return graphs[size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_folder, "trace", once)
        yield


@pytest.fixture(scope="module", params=["float32", None, "int8"])
def folder(
    request: pytest.FixtureRequest, traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str | None, Path]:
    """The miniature in a dtype, by the command; None is the default."""
    output = tmp_path_factory.mktemp("export") / "digits"
    dtype = ["--dtype", request.param] if request.param else []
    assert command.main([str(MODEL), "--format", "openvino", "--output", str(output), *dtype]) == 0
    return request.param, output


def test_the_folder_is_complete(folder: tuple[str | None, Path]) -> None:
    _, path = folder
    parts = ("encoder_model", "decoder_model", "tokenizer", "detokenizer")
    models = {f"openvino_{part}.{end}" for part in parts for end in ("xml", "bin")}
    files = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"}
    old = {"vocab.json", "merges.txt", "added_tokens.json"}
    assert {file.name for file in path.iterdir()} == models | files | old | {"tokenizer.json"}
    assert json.loads((path / "config.json").read_text())["model_type"] == "whisper"


def test_openvino_genai_gives_the_transcripts_of_transformers(
    folder: tuple[str | None, Path],
    base_model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    test_clips: list[Clip],
) -> None:
    dtype, path = folder
    pipeline = openvino_genai.WhisperPipeline(path, "CPU", **EXACT)
    found = [pipeline.generate(clip.samples.tolist()) for clip in test_clips]
    wanted = [text.strip() for text in transcribe(base_model, processor, test_clips, 4).texts]
    same = sum(result.texts[0].strip() == text for result, text in zip(found, wanted, strict=True))
    assert same == len(wanted) if dtype != "int8" else same >= len(wanted) - 2
    assert {result.language for result in found} == {"en"}


def test_openvino_genai_gives_segments_and_words(folder: tuple[str | None, Path], test_clips: list[Clip]) -> None:
    pipeline = openvino_genai.WhisperPipeline(folder[1], "CPU", word_timestamps=True)
    clip = test_clips[0]
    result = pipeline.generate(clip.samples.tolist(), return_timestamps=True, word_timestamps=True)
    assert "".join(chunk.text for chunk in result.chunks) == "".join(word.word for word in result.words)
    times = [time for word in result.words for time in (word.start_ts, word.end_ts)]
    assert len(times) > 4 and times == sorted(times) and 0.5 < times[-1] <= len(clip.samples) / 16000 + 0.1


def test_config_of_a_compressed_model_is_that_of_whisper(small) -> None:
    config = json.loads((small("float32") / "config.json").read_text())
    assert config["model_type"] == "whisper" and config["architectures"] == ["WhisperForConditionalGeneration"]
    assert not {"auto_map", "low_rank_config", "constant_padding"} & set(config)


@pytest.mark.parametrize(
    ("to", "dtypes", "message"),
    [
        ("openvino", "float32,int8", "one data type, not float32, int8"),
        ("openvino", "int4", "openvino does not support int4; choose from float32, float16, int8"),
        ("faster-whisper", "int4", "faster-whisper does not support int4; choose from float32, float16, int8"),
    ],
)
def test_dtypes_of_another_format_are_rejected(to: str, dtypes: str, message: str, tmp_path, capsys) -> None:
    options = [str(MODEL), "--format", to, "--output", str(tmp_path / "out"), "--dtype", dtypes]
    assert command.main(options) == 1
    said = only_message(capsys.readouterr().err)
    assert message in said and "--dtype" in said
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main([str(MODEL), "--format", "openvino", "--output", str(tmp_path / "out")]) == 1
    message = only_message(capsys.readouterr().err)
    assert "openvino_tokenizers" in message and "pip install 'lite-whisper[openvino]'" in message


def test_other_models_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(InputError, match="are quantised"):
        export(ExportSettings(str(tmp_path), tmp_path / "out", format="openvino"))


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graphs: object, scratch: Path, *_: object) -> None:
        assert scratch.is_dir()
        raise RuntimeError("OpenVINO failed")

    monkeypatch.setattr(openvino_folder, "trace", lambda model: None)
    monkeypatch.setattr(openvino_folder, "_write_models", fails)
    with pytest.raises(RuntimeError, match="OpenVINO failed"):
        export(ExportSettings(str(MODEL), tmp_path / "out", format="openvino"))
    assert list(tmp_path.iterdir()) == []
