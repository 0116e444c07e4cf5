"""The ranks with which speed is measured, and a benchmark that nothing else runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig

from lite_whisper import LiteWhisperConfig
from lite_whisper.modeling_lite_whisper import LiteWhisperEncoder

ROOT = Path(__file__).parents[1]
FACTS = json.loads((ROOT / "tests/data/published_checkpoints.json").read_text())


@pytest.fixture(scope="module")
def encoder_speed():
    """The script `benchmarks/encoder_speed.py` as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import encoder_speed

    yield encoder_speed
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("size", ["acc", "plain", "fast"])
@pytest.mark.parametrize("shape", ["tiny", "base", "small", "medium", "large-v3", "turbo"])
def test_ranks_give_the_published_sizes(encoder_speed, shape: str, size: str) -> None:
    ranks = encoder_speed.published_ranks(shape, size)
    arguments = WhisperConfig(**encoder_speed.whisper_arguments(shape)).to_dict()
    with torch.device("meta"):
        encoder = LiteWhisperEncoder(LiteWhisperConfig(**{**arguments, "low_rank_config": ranks}))
    # The published sizes leave the fixed position embeddings out.
    parameters = sum(p.numel() for name, p in encoder.named_parameters() if "embed_positions" not in name)
    name = f"lite-whisper-{'large-v3-turbo' if shape == 'turbo' else shape}" + ("" if size == "plain" else f"-{size}")
    assert parameters == pytest.approx(1e6 * FACTS["checkpoints"][name]["encoder"], rel=0.005)
    assert all(rank % 16 == 0 for layer_ranks in ranks for rank in layer_ranks.values())


def test_known_ranks_are_kept(encoder_speed) -> None:
    for name, known in FACTS["known_ranks"].items():
        shape = "turbo" if "turbo" in name else "large-v3"
        size = next((size for size in ("acc", "fast") if name.split()[0].endswith(size)), "plain")
        assert encoder_speed.published_ranks(shape, size)[: len(known)] == known


@pytest.mark.long
def test_recovery_speed_runs() -> None:
    command = [ROOT / "benchmarks/recovery_speed.py", "--shapes", "tiny", "--steps", 3, "--batch-size", 1]
    words = [sys.executable, *map(str, command), "--device", "cpu", "--threads", "1"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"tiny fast, batch 1, float32, CPU, 1 threads: [\d.]+ steps/s", result.stdout)
