"""Model folders published with four Hub files, before padding had one of its own, still load, by both ways."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import encode, features_until, random_padded_model
from safetensors.torch import load_file

from lite_whisper import LiteWhisperForConditionalGeneration

# The files of commit 9060c2c, unchanged: git show 9060c2c:modeling_lite_whisper.py and so on. The suffix keeps tools
# from taking them for code of this version.
PUBLISHED_FILES = Path(__file__).parents[1] / "data/four_hub_files"
RANKS = [{"q_proj": 8, "k_proj": 4, "v_proj": 4, "fc1": 12}, {}]

REMOTE_CODE = """
import sys
import torch
from transformers import AutoModelForSpeechSeq2Seq
source, target = sys.argv[1:]
model = AutoModelForSpeechSeq2Seq.from_pretrained(source, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert "lite_whisper" not in sys.modules
features = torch.load(f"{source}/features.pt")
with torch.no_grad():
    outputs = [model.get_encoder()(features)[0], model.optimize_for_inference().get_encoder()(features)[0]]
model.save_pretrained(target)
torch.save(outputs, f"{target}/outputs.pt")
"""


def run_remote_code(source: Path, target: Path, features: torch.Tensor) -> list[torch.Tensor]:
    """Loads and saves a model by remote code in a new process; returns the outputs of plain and optimised layers."""
    torch.save(features, source / "features.pt")
    environment = {"HF_HOME": str(source.parent / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REMOTE_CODE, str(source), str(target)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=source.parent)
    assert result.returncode == 0, result.stderr
    return torch.load(target / "outputs.pt")


def hub_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*_lite_whisper.py"))


@pytest.mark.slow
def test_folders_with_four_hub_files_load_by_remote_code_and_by_the_package(tmp_path: Path) -> None:
    model, features = random_padded_model(RANKS), features_until(14, 9)
    expected = encode(model, features)
    old, saved, upgraded = (tmp_path / name for name in ("old", "saved", "upgraded"))
    model.save_pretrained(old)
    for path in old.glob("*_lite_whisper.py"):
        path.unlink()
    for path in PUBLISHED_FILES.glob("*.py.txt"):
        shutil.copy(path, old / path.stem)
    assert len(hub_files(old)) == 4

    for outputs in run_remote_code(old, saved, features):
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert hub_files(saved) == hub_files(old)
    assert load_file(saved / "model.safetensors").keys() == load_file(old / "model.safetensors").keys()
    assert (saved / "config.json").read_text() == (old / "config.json").read_text()

    loaded = LiteWhisperForConditionalGeneration.from_pretrained(saved).eval()
    assert torch.equal(encode(loaded, features), expected)
    loaded.save_pretrained(upgraded)
    assert len(hub_files(upgraded)) == 5
    for outputs in run_remote_code(upgraded, saved, features):
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
