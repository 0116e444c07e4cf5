"""Recovery and fine-tuning in two processes give the results of one process."""

import json
import re
from pathlib import Path

import pytest
import torch
from launch import launch
from safetensors.torch import load_file

from lite_whisper.cli import convert

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"
AUDIO = ROOT / "examples/digits/calibration"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a strongly compressed miniature model in `lite`."""
    folder = tmp_path_factory.mktemp("processes")
    command = ["--base-model", MODEL, "--dataset", AUDIO, "--output", folder / "lite", "--recipe", "liteasr"]
    command += ["--num-windows", 8, "--rank-multiple", 4, "--thresholds", "0.9:0.95"]
    assert convert.main([str(word) for word in command]) == 0
    return folder


def python(processes: int, workplace: Path, *arguments: object) -> str:
    """Runs Python with these arguments in the given number of processes and returns the standard output."""
    result = launch(processes, workplace, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_recovery_in_two_processes_equals_one(workplace: Path) -> None:
    """Losses and weights are the same, and only the main process writes output."""
    command = ["recover", "lite", "--base-model", MODEL, "--dataset", AUDIO, "--num-windows", 12, "--steps", 5]
    command += ["--learning-rate", 1e-4, "--device", "cpu"]
    python(1, workplace, "-m", "lite_whisper.cli", *command, "--batch-size", 4, "--output", "one")
    output = python(2, workplace, "-m", "lite_whisper.cli", *command, "--batch-size", 2, "--output", "two")
    assert output.count("written to two") == 1
    assert sorted(path.name for path in workplace.iterdir()) == ["lite", "one", "two"]
    one, two = (json.loads((workplace / name / "compression.json").read_text())["recovery"] for name in ("one", "two"))
    assert one["loss_after"] < one["loss_before"]
    for loss in ("loss_before", "loss_after"):
        assert two[loss] == pytest.approx(one[loss], rel=1e-4)
    start, *weights = (load_file(workplace / name / "model.safetensors") for name in ("lite", "one", "two"))
    changed = [name for name in start if not torch.equal(start[name], weights[0][name])]
    assert changed
    for name in changed:
        if not name.endswith("k_proj.bias"):  # cancels in the softmax, so its gradient is rounding error
            step = (weights[0][name] - start[name]).norm()
            assert (weights[0][name] - weights[1][name]).norm() < 0.05 * step, name


def test_fine_tuning_in_two_processes_equals_one(workplace: Path) -> None:
    """Losses before training and after each step are the same; the test set divides evenly."""
    command = [ROOT / "examples/finetune.py", "lite", "--train", ROOT / "examples/digits/test", "--test", AUDIO]
    command += ["--language", "en", "--use_cpu", "--report_to", "none", "--max_steps", 2, "--eval_strategy", "steps"]
    command += ["--eval_steps", 1, "--learning_rate", 1e-5, "--save_strategy", "no", "--gradient_checkpointing"]
    command += ["--per_device_eval_batch_size", 30]
    curves = []
    for name, processes, size in (("tuned", 1, 4), ("tuned-by-two", 2, 2)):
        printed = python(processes, workplace, *command, "--output_dir", name, "--per_device_train_batch_size", size)
        curves.append([float(loss) for loss in re.findall(r"'eval_loss': '?([\d.]+)", printed)])
        assert (workplace / name / "model.safetensors").exists()
    assert len(curves[0]) == 3 and curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)
