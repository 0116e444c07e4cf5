"""Model folders with damaged files either load exactly the weights in the file or raise a clear error."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from lite_whisper.cli import merge as merge_command
from lite_whisper.common.errors import InputError
from lite_whisper.configuration_lite_whisper import MAX_LAYERS, PROJECTIONS, SIZES
from lite_whisper.models.folders import load_base_model, load_compressed_model, load_model

MINIATURE = Path(__file__).parents[2] / "examples/whisper-digits"
RANKS = [{"q_proj": 4, "k_proj": 4, "fc1": 16, "fc2": 8}, {"v_proj": 8, "out_proj": 16}]
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
SMALL = dict(zip(SIZES, (16, 2, 2, 32, 1, 2, 32, 10, 8, 8, 20), strict=True))
FACTOR = "model.encoder.layers.0.fc1.weight1"  # shape (16, 16), so that its transpose fits too
TIED = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
# A selection of those that transformers adds to every configuration.
OTHER_SETTINGS = ("_attn_implementation", "dtype", "id2label", "is_decoder", "label2id", "num_labels", "torch_dtype")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
junk = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5)
values = (
    st.sampled_from(
        [-1, 0, 1, 2, 3, 8, 16, 17, 10**9, 2**63, 16.0, "16", "float16", "float8_e4m3fn", "int8", [], {}, [{}]]
    )
    | junk
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny LiteWhisper with random weights, and the stock Whisper with the same outputs."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    lite = LiteWhisperForConditionalGeneration(LiteWhisperConfig(low_rank_config=RANKS, **SMALL, **TOKENS)).eval()
    root = tmp_path_factory.mktemp("models")
    for name, model in {"lite": lite, "stock": lite.to_whisper()}.items():
        model.save_pretrained(root / name)
        for processor_file in ("preprocessor_config.json", "tokenizer_config.json"):
            (root / name / processor_file).write_text("{}")
    return {name: root / name for name in ("lite", "stock")}


def damaged(folders: dict[str, Path], kind: str, **files: bytes) -> Path:
    """Copies a folder and replaces the contents of some files, given by name without suffix."""
    folder = folders[kind].with_name(f"damaged-{kind}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[kind], folder)
    for name, content in files.items():
        (folder / f"{name}.{'safetensors' if name == 'model' else 'json'}").write_bytes(content)
    return folder


def check(folder: Path) -> bool:
    """Loads a folder in every way and checks that its weights are complete; returns whether it could be loaded."""
    loaded = []
    for load in (load_compressed_model, load_base_model):
        try:
            model, _ = load(str(folder))
        except (InputError, OSError, SafetensorError) as error:
            assert str(error) and "\n" not in str(error).strip()
            continue
        loaded.append(model)
        stored = load_file(folder / "model.safetensors")
        assert model.state_dict().keys() - TIED <= stored.keys() <= model.state_dict().keys()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    try:
        loaded.append(LiteWhisperForConditionalGeneration.from_pretrained(folder))
    except Exception as error:
        assert str(error)
    for model in loaded:
        stored = load_file(folder / "model.safetensors")
        for name, weight in model.state_dict().items():
            expected = stored[name if name in stored else TIED[name]]
            torch.testing.assert_close(weight, expected.to(weight), rtol=0, atol=0, equal_nan=True)
        features = torch.zeros(1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        try:
            with torch.no_grad():
                model(input_features=features.to(model.dtype), decoder_input_ids=torch.tensor([[1, 2]]))
        except Exception as error:
            assert str(error)
    return bool(loaded)


kinds = st.sampled_from(["lite", "lite", "stock"])


def change_setting(draw: Any, config: dict[str, Any]) -> None:
    """Makes one random change to a configuration."""
    ranks = config.get("low_rank_config")
    valid = isinstance(ranks, list) and ranks and all(isinstance(layer, dict) for layer in ranks)
    kind = draw(st.sampled_from(["set", "drop", "size", "other", *(["rank", "layers"] if valid else [])]))
    if kind == "drop" and config:
        del config[draw(st.sampled_from(sorted(config)))]
    elif kind == "set" and config:
        config[draw(st.sampled_from(sorted(config)))] = draw(values)
    elif kind == "size":
        config[draw(st.sampled_from(SIZES))] = draw(values)
    elif kind == "other":
        config[draw(st.sampled_from(OTHER_SETTINGS) | st.text(max_size=9))] = draw(values)
    elif kind == "rank":
        layer = draw(st.sampled_from(ranks))
        layer[draw(st.sampled_from(PROJECTIONS) | st.text(max_size=9))] = draw(values)
    elif kind == "layers":
        config["low_rank_config"] = draw(st.lists(st.sampled_from([*ranks, {}]), max_size=4))


@given(kind=kinds, data=st.data())
def test_invalid_settings(kind: str, data: st.DataObject, folders: dict[str, Path]) -> None:
    config = json.loads((folders[kind] / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        change_setting(data.draw, config)
    check(damaged(folders, kind, config=json.dumps(config).encode()))


@st.composite
def broken(draw: Any, content: bytes, within: int) -> bytes:
    """Truncates contents, or replaces bytes within the first `within`."""
    start = draw(st.integers(0, min(within, len(content))))
    if draw(st.booleans()):
        return content[:start]
    return content[:start] + draw(st.binary(max_size=9)) + content[start + draw(st.integers(0, 9)) :]


@given(kind=kinds, name=st.sampled_from(["config", "generation_config"]), data=st.data())
def test_broken_json(kind: str, name: str, data: st.DataObject, folders: dict[str, Path]) -> None:
    content = (folders[kind] / f"{name}.json").read_bytes()
    check(damaged(folders, kind, **{name: data.draw(broken(content, len(content)))}))


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"low_rank_config": [{"fc1": 10**9}, {}]}, "rank 1000000000 of layer 0 fc1 exceeds"),
        ({"low_rank_config": [{"fc1": 2**80}, {}]}, "exceeds"),
        ({"low_rank_config": 7}, "must be a list of dicts"),
        ({"low_rank_config": {"fc1": 8}}, "must be a list of dicts"),
        ({"low_rank_config": [8, 8]}, "must be a list of dicts"),
        ({"low_rank_config": None}, "weights are missing"),
        ({"low_rank_config": [{}, {}]}, "weights are missing"),
        ({"decoder_layers": 10**9}, f"more than {MAX_LAYERS}"),
        ({"decoder_layers": 2}, "weights are missing"),
        ({"encoder_layers": 10**9, "low_rank_config": None}, f"more than {MAX_LAYERS}"),
        ({"encoder_attention_heads": -2}, "encoder_attention_heads is -2"),
        ({"vocab_size": 10**12}, "damaged"),
        ({"d_model": 10**12}, "damaged"),
        ({"num_labels": 10**9}, "num_labels"),
        (b'{"model_type": "lite-whisper", "low_rank_config": ' + DEEP, "damaged"),
        (DEEP, "damaged"),
        (b"[]", "unknown type"),
        (b"[7]", "damaged"),
        (b"null", "damaged"),
        (b"", "not a valid JSON"),
        (b"\xff\xfe", "not a valid JSON"),
    ],
)
def test_sizes_that_would_exhaust_memory_or_time(config: Any, message: str, folders: dict[str, Path]) -> None:
    whole = json.loads((folders["lite"] / "config.json").read_text())
    content = config if isinstance(config, bytes) else json.dumps(whole | config).encode()
    folder = damaged(folders, "lite", config=content)
    with pytest.raises((InputError, OSError), match=message):
        load_compressed_model(str(folder))
    with pytest.raises(Exception, match=r"."):
        LiteWhisperForConditionalGeneration.from_pretrained(folder)


def test_a_stock_whisper_of_absurd_size(folders: dict[str, Path]) -> None:
    whole = json.loads((folders["stock"] / "config.json").read_text())
    for size in ("encoder_layers", "decoder_layers"):
        folder = damaged(folders, "stock", config=json.dumps(whole | {size: 10**9}).encode())
        with pytest.raises(InputError, match=f"{size} is 1000000000"):
            load_base_model(str(folder))


def exchange(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    name, other = draw(st.sampled_from(sorted(tensors))), draw(st.sampled_from(sorted(tensors)))
    tensors[name], tensors[other] = tensors[other], tensors[name]


def rename(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    tensors[draw(st.sampled_from([*tensors, "proj_out.weight"]) | st.text(max_size=9))] = tensors.pop(
        any_name(tensors, draw)
    )


def any_name(tensors: dict[str, torch.Tensor], draw: Any) -> str:
    """The name of one of the tensors."""
    return draw(st.sampled_from(sorted(tensors)))


def reshape(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    name = any_name(tensors, draw)
    shape = draw(st.sampled_from([(-1,), (1, -1), tensors[name].shape[::-1]]))
    tensors[name] = tensors[name].reshape(shape)


def resize(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    name = any_name(tensors, draw)
    shape = [draw(st.sampled_from([size, size + 1, max(size - 1, 0), 0])) for size in tensors[name].shape]
    tensors[name] = torch.full(shape, 0.5).to(tensors[name])


def retype(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    name = any_name(tensors, draw)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool)
    tensors[name] = tensors[name].to(draw(st.sampled_from(dtypes)))


def poison(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    name = any_name(tensors, draw)
    if tensors[name].is_floating_point() and tensors[name].numel():
        tensors[name] = tensors[name].clone()
        tensors[name].flatten()[-1] = draw(st.sampled_from([math.nan, math.inf]))


def drop(tensors: dict[str, torch.Tensor], draw: Any) -> None:
    del tensors[any_name(tensors, draw)]


def write_tensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """Serialises tensors to a safetensors file."""
    return save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})


@pytest.mark.slow
@given(
    kind=kinds,
    changes=st.lists(
        st.sampled_from([exchange, rename, reshape, resize, retype, poison, drop]), min_size=1, max_size=3
    ),
    data=st.data(),
)
def test_other_tensors(kind: str, changes: list[Callable], data: st.DataObject, folders: dict[str, Path]) -> None:
    tensors = load_file(folders[kind] / "model.safetensors")
    for change in changes:
        change(tensors, data.draw)
    check(damaged(folders, kind, model=write_tensors(tensors)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(FACTOR), f"missing.*{FACTOR}"),
        (lambda tensors: tensors.clear(), "contain no weights"),
        (lambda tensors: tensors.update({FACTOR: tensors[FACTOR][:, :15]}), "damaged"),
        (lambda tensors: tensors.update({FACTOR: tensors[FACTOR] / 0}), f"NaN or infinity.*{FACTOR}"),
        (lambda tensors: tensors.update({"model.more": tensors[FACTOR]}), "model.more"),
    ],
)
def test_weights_that_do_not_fit_the_model(change: Callable, message: str, folders: dict[str, Path]) -> None:
    tensors = load_file(folders["lite"] / "model.safetensors")
    change(tensors)
    with pytest.raises(InputError, match=message):
        load_compressed_model(str(damaged(folders, "lite", model=write_tensors(tensors))))


def test_a_missing_weight_of_a_stock_whisper(folders: dict[str, Path]) -> None:
    tensors = load_file(folders["stock"] / "model.safetensors")
    del tensors["model.encoder.conv1.bias"]
    with pytest.raises(InputError, match=r"lack model\.encoder\.conv1\.bias"):
        load_base_model(str(damaged(folders, "stock", model=write_tensors(tensors))))


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Splits a safetensors file into header and data."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.slow
@given(kind=kinds, data=st.data())
def test_wrong_headers(kind: str, data: st.DataObject, folders: dict[str, Path]) -> None:
    header, tensors = split_file((folders[kind] / "model.safetensors").read_bytes())
    entry = header[data.draw(st.sampled_from(sorted(header)))]
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "format"]))
    offsets = st.integers(-9, len(tensors) + 9) | st.sampled_from([2**31, 2**63, 2**64 - 1, 2**64])
    dtypes = st.sampled_from(["F16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "X"])
    entry[field] = data.draw(st.lists(offsets, min_size=1, max_size=3) | dtypes | values)
    text = json.dumps(header).encode()
    valid = struct.pack("<Q", len(text))
    lengths = st.sampled_from([0, 1, len(text) - 1, len(text) + 1, 2**31, 2**32, 2**63, 2**64 - 1])
    length = data.draw(st.just(valid) | lengths.map(lambda number: struct.pack("<Q", number)))
    check(damaged(folders, kind, model=length + text + tensors))


@pytest.mark.slow
@given(kind=kinds, data=st.data())
def test_broken_bytes_of_weights(kind: str, data: st.DataObject, folders: dict[str, Path]) -> None:
    content = (folders[kind] / "model.safetensors").read_bytes()
    check(
        damaged(folders, kind, model=data.draw(broken(content, data.draw(st.sampled_from([16, 9999, len(content)])))))
    )


@given(data=st.data())
def test_wrong_shard_indexes(data: st.DataObject, folders: dict[str, Path], tmp_path: Path) -> None:
    model = LiteWhisperForConditionalGeneration.from_pretrained(folders["lite"])
    folder = folders["lite"].with_name("shards")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    part = index if data.draw(st.booleans()) else index["weight_map"]
    name = data.draw(st.sampled_from(sorted(part)) | st.text(max_size=9))
    files = st.sampled_from([*sorted(set(index["weight_map"].values())), "/etc/passwd", "..", "config.json", ""])
    if data.draw(st.booleans()) and name in part:
        del part[name]
    else:
        part[name] = data.draw(files | values)
    path.write_text(json.dumps(index))
    try:
        loaded, _ = load_compressed_model(str(folder))
    except (InputError, OSError, SafetensorError) as error:
        assert str(error)
    else:
        state = loaded.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_an_undamaged_folder_is_loaded(folders: dict[str, Path]) -> None:
    """Without this, all other tests could pass without loading any model."""
    assert check(folders["lite"]) and check(folders["stock"])


PROCESSOR_FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"feature_size": "x", "version": 7}', DEEP])
def test_broken_files_of_a_processor(content: bytes, tmp_path: Path) -> None:
    for name in PROCESSOR_FILES:
        if (MINIATURE / name).exists():
            folder = Path(shutil.copytree(MINIATURE, tmp_path / name))
            (folder / name).write_bytes(content)
            try:
                load_model(str(folder))
            except (InputError, OSError) as error:
                assert str(error)


def test_commands_report_damage_in_one_line(folders: dict[str, Path], tmp_path: Path, capsys) -> None:
    tensors = load_file(folders["lite"] / "model.safetensors")
    del tensors[FACTOR]
    folder = damaged(folders, "lite", model=write_tensors(tensors))
    capsys.readouterr()
    assert merge_command.main([str(folder), "--output", str(tmp_path / "output")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and str(folder) in errors[0] and FACTOR in errors[0]
    assert not (tmp_path / "output").exists()
