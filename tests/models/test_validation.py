"""Implausible sizes and wrong types in the JSON files of a model are rejected before memory is allocated."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conversions import MODEL, environment

from lite_whisper.common.errors import InputError
from lite_whisper.conversion.profile import profile
from lite_whisper.models.compression_json import read_compression
from lite_whisper.models.folders import base_model_of, load_compressed_model, load_processor

SPARE = 1_000_000_000  # bytes of address space, beyond what a process has that has loaded its packages
LOAD = """
import resource, sys
from pathlib import Path
from lite_whisper.models.folders import load_model
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]),) * 2)
for folder in sys.argv[2:]:
    try:
        load_model(folder)
        print("loaded")
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
"""
FAR_TOO_LARGE = (
    {"max_source_positions": 4_000_000},
    {"vocab_size": 8_000_000},
    {"vocab_size": 10**15},
    {"encoder_layers": 900},
    {"decoder_layers": 900},
    {"d_model": 16_384},
    {"encoder_ffn_dim": 3_000_000},
)


def changed(source: Path, folder: Path, name: str, **entries: Any) -> Path:
    """A copy of a model folder with other entries in one of its JSON files."""
    shutil.copytree(source, folder)
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | entries))
    return folder


@pytest.mark.slow
def test_models_far_larger_than_their_weights_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    folders = [
        str(changed(MODEL, tmp_path / str(place), "config.json", **sizes)) for place, sizes in enumerate(FAR_TOO_LARGE)
    ]
    command = [sys.executable, "-c", LOAD, str(SPARE), *folders]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for sizes, line in zip(FAR_TOO_LARGE, result.stdout.splitlines(), strict=True):
        assert line.startswith("InputError"), (sizes, line)
        assert re.search("but its weights hold 7,690,240|more than the 5,000,000,000", line), (sizes, line)


def test_a_model_of_which_only_the_sizes_are_used_is_no_larger_than_a_whisper(tmp_path: Path) -> None:
    folder = changed(MODEL, tmp_path / "model", "config.json", d_model=1 << 17, encoder_ffn_dim=1 << 19)
    with pytest.raises(InputError, match=r"more than the 5,000,000,000"):
        profile(str(folder), tmp_path / "profile.json")


def test_sizes_of_a_compressed_model_are_compared_too(converted: Path, tmp_path: Path) -> None:
    folder = changed(converted, tmp_path / "model", "config.json", vocab_size=8_000_000)
    with pytest.raises(InputError, match=r"describes a model of .* parameters, but its weights hold"):
        load_compressed_model(str(folder))


@pytest.mark.parametrize("setting", ["n_fft", "feature_size", "chunk_length", "hop_length", "sampling_rate"])
@pytest.mark.parametrize("size", [10**9, 0, -1, "400", 2.5])
def test_absurd_sizes_of_a_feature_extractor_are_refused(setting: str, size: Any, tmp_path: Path) -> None:
    folder = changed(MODEL, tmp_path / "model", "preprocessor_config.json", **{setting: size})
    with pytest.raises(InputError, match=f"^{setting} in .*preprocessor_config.json is .*, not an integer"):
        load_processor(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"base_model": ["openai/whisper-tiny"]}, "base_model in .* is not a string"),
        ({"base_model": None}, "base_model in .* is not a string"),
        ({"low_rank_config": []}, "does not name the base_model"),
        ({"base_model": "x", "calibration": "speech"}, "calibration in .* is not an object"),
        ({"base_model": "x", "recipe": []}, "recipe in .* is not an object"),
        ({"base_model": "x", "low_rank_config": {}}, "low_rank_config in .* is not a list"),
        ([], "not a JSON object"),
    ],
    ids=str,
)
def test_wrong_kinds_in_compression_json_are_named(content: Any, said: str, converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    (folder / "compression.json").write_text(json.dumps(content))
    for read in (read_compression, lambda folder: base_model_of(str(folder))):
        with pytest.raises(InputError, match=said):
            read(folder)


@pytest.mark.parametrize("name", ["compression.json", "config.json", "preprocessor_config.json"])
def test_deep_nesting_is_damage(name: str, converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    (folder / name).write_text('{"a":' * 100_000)
    with pytest.raises(InputError, match="damaged"):
        base_model_of(str(folder))
        load_processor(folder)
