"""`examples/finetune.py` as the documentation calls it, and the resulting models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
from hub_stand_in import TOKEN, HubStandIn

from lite_whisper.cli import convert

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/whisper-digits"


def copy_recordings(source: str, folder: Path, count: int) -> Path:
    """Copies the first recordings of a bundled dataset into a new folder."""
    folder.mkdir()
    lines = (ROOT / "examples/digits" / source / "metadata.csv").read_text().splitlines(keepends=True)[: count + 1]
    (folder / "metadata.csv").write_text("".join(lines))
    for line in lines[1:]:
        shutil.copy(ROOT / "examples/digits" / source / line.split(",")[0], folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compressed model and with audio for training and testing."""
    folder = tmp_path_factory.mktemp("finetune")
    train = copy_recordings("calibration", folder / "train", 12)
    copy_recordings("test", folder / "test", 6)
    command = ["--base-model", MODEL, "--dataset", train, "--output", folder / "lite", "--recipe", "liteasr"]
    assert convert.main([str(word) for word in [*command, "--num-windows", 4, "--rank-multiple", 4]]) == 0
    return folder


def finetune(workplace: Path, output: str, *options: str, **environment: str) -> None:
    """Runs the script on the CPU."""
    command = [
        sys.executable,
        str(ROOT / "examples/finetune.py"),
        "lite",
        "--train",
        "train",
        "--test",
        "test",
    ]
    command += ["--language", "en", "--output_dir", output, "--use_cpu", "--report_to", "none", *options]
    variables = os.environ | {"HF_HOME": str(workplace / "cache"), "OMP_NUM_THREADS": "1"} | environment
    result = subprocess.run(command, cwd=workplace, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


TRANSCRIBE = """
import json, sys
from pathlib import Path
import soundfile
from transformers import pipeline
recognizer = pipeline("automatic-speech-recognition", sys.argv[1], trust_remote_code=True)
for file in sorted(Path(sys.argv[2]).glob("*.flac")):
    arguments = {"language": "en", "task": "transcribe", "num_beams": 1}
    print(json.dumps([file.name, recognizer(soundfile.read(file)[0], generate_kwargs=arguments)["text"]]))
assert "lite_whisper" not in sys.modules
"""


def test_the_pipeline_reproduces_the_word_error_rate_of_the_trainer(workplace: Path) -> None:
    """With remote code only and greedy decoding; also checks that training changed the model."""
    options = [
        "--max_steps",
        "6",
        "--per_device_train_batch_size",
        "4",
        "--learning_rate",
        "1e-4",
        "--spec_augment",
        "True",
    ]
    options += ["--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "3", "--load_best_model_at_end"]
    options += ["--metric_for_best_model", "wer", "--greater_is_better", "False", "--gradient_checkpointing", "--bf16"]
    finetune(workplace, "tuned", *options, "--gradient_accumulation_steps", "2")
    result = subprocess.run(
        [sys.executable, "-c", TRANSCRIBE, "tuned", "test"], cwd=workplace, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    transcripts = dict(json.loads(line) for line in result.stdout.splitlines())
    lines = (workplace / "test/metadata.csv").read_text().splitlines()[1:]
    references = {line.split(",")[0]: line.split(",")[1] for line in lines}
    names = sorted(references)
    error_rate = jiwer.wer([references[name] for name in names], [transcripts[name].strip() for name in names])
    assert json.loads((workplace / "tuned/eval_results.json").read_text())["eval_wer"] == pytest.approx(error_rate)
    weights = [(workplace / name / "model.safetensors").read_bytes() for name in ("lite", "tuned")]
    assert weights[0] != weights[1]


def losses(checkpoint: Path) -> list[tuple[int, float]]:
    """Returns the steps up to a checkpoint with their losses."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


@pytest.mark.long
def test_a_killed_run_resumes_exactly(workplace: Path) -> None:
    """Resuming from the second step gives the losses of an uninterrupted run."""
    options = ["--per_device_train_batch_size", "4", "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1"]
    options += ["--learning_rate", "1e-4", "--spec_augment", "True"]
    finetune(workplace, "whole", *options)
    (workplace / "killed").mkdir()
    shutil.copytree(workplace / "whole/checkpoint-2", workplace / "killed/checkpoint-2")
    finetune(workplace, "killed", *options, "--resume_from_checkpoint", "killed/checkpoint-2")
    whole, killed = (losses(workplace / name / "checkpoint-4") for name in ("whole", "killed"))
    assert killed == whole and [step for step, _ in whole] == [1, 2, 3, 4]
    assert len({loss for _, loss in whole}) == 4


@pytest.mark.long
def test_lora_resuming_and_pushing(workplace: Path, tmp_path: Path) -> None:
    """A second run resumes from the checkpoint of the first and pushes the merged model."""
    common = ["--per_device_train_batch_size", "4", "--save_steps", "2", "--lora_rank", "4", "--logging_steps", "1"]
    finetune(workplace, "adapted", *common, "--max_steps", "2")
    with HubStandIn({}, tokens={TOKEN: "write"}) as hub:
        resume = ["--max_steps", "4", "--resume_from_checkpoint", "adapted/checkpoint-2", "--push_to_hub"]
        resume += ["--hub_model_id", "org/adapted"]
        finetune(workplace, "adapted", *common, *resume, **hub.environment(tmp_path, TOKEN))
        pushed = hub.repositories["models", "org/adapted"].main.files
    assert {"model.safetensors", "modeling_lite_whisper.py", "tokenizer_config.json"} <= pushed.keys()
    assert [step for step, _ in losses(workplace / "adapted/checkpoint-4")] == [1, 2, 3, 4]
    config = json.loads((workplace / "adapted/config.json").read_text())
    before = json.loads((workplace / "lite/config.json").read_text())
    assert config["low_rank_config"] != before["low_rank_config"]  # the adapter was merged into the pairs
