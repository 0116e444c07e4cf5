"""No code of a model is run, and nobody is asked whether it may be, with a terminal and without."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conversions import MODEL, TEST_CLIPS, environment

from lite_whisper.publishing.card import render_card

LOAD = """
import sys
from pathlib import Path
from lite_whisper.models.folders import load_model
for folder in sys.argv[1:]:
    try:
        load_model(folder)
        print(Path(folder).name, "loaded", flush=True)
    except Exception as error:
        print(Path(folder).name, error, flush=True)
"""
KINDS = {
    "feature extractor": "requires custom Python code, which is never run",
    "tokenizer": "requires custom Python code, which is never run",
    "model of the processor": "has an audio_tokenizer",
    "all files": "loaded",  # transformers does not need the code
}
RAN = "custom code ran"


def edit(path: Path, **entries: Any) -> None:
    """Changes entries of a JSON object; None removes one."""
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= entries
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def hostile(folder: Path, kind: str) -> Path:
    """Makes a model folder bring code that says so when it is run."""
    says = f"import os; os.write(2, b'{RAN}')\n"
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(says + "class Evil: pass\ndef generate(): pass\n")
    if kind == "feature extractor":
        path, auto_map = folder / "preprocessor_config.json", {"AutoFeatureExtractor": "evil.Evil"}
        edit(path, feature_extractor_type=None, auto_map=auto_map)
    elif kind == "tokenizer":
        path, auto_map = folder / "tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        edit(path, tokenizer_class="EvilTokenizer", auto_map=auto_map)
    elif kind == "model of the processor":
        other = folder / "other"
        other.mkdir()
        (other / "evil.py").write_text(says)
        edit(other / "config.json", model_type="evil", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
        named = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": str(other)}
        edit(folder / "processor_config.json", processor_class="WhisperProcessor", audio_tokenizer=named)
    else:
        auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSpeechSeq2Seq", "AutoProcessor"), "evil.Evil")
        edit(folder / "config.json", auto_map=auto_map)
        edit(folder / "preprocessor_config.json", auto_map={**auto_map, "AutoFeatureExtractor": "evil.Evil"})
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    return folder


def run(command: list[str], terminal: bool, cache: Path) -> tuple[int, str]:
    """The exit code and all that a command says, where somebody answers yes to whatever it asks, or nobody is there."""
    variables = environment() | {"HF_MODULES_CACHE": str(cache)}
    there, here = pty.openpty()
    os.write(there, b"y\n" * 9)
    try:
        result = subprocess.run(
            command,
            stdin=here if terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=cache.parent,
            timeout=60,
            text=True,
        )
    finally:
        os.close(there)
        os.close(here)
    return result.returncode, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "no terminal"])
def test_code_in_a_model_folder_is_not_run(terminal: bool, converted: Path, tmp_path: Path) -> None:
    folders = []
    for kind in KINDS:
        source = converted if kind == "tokenizer" else MODEL
        folders.append(str(hostile(Path(shutil.copytree(source, tmp_path / kind)), kind)))
    code, output = run([sys.executable, "-c", LOAD, *folders], terminal, tmp_path / "modules")
    assert code == 0 and "[y/N]" not in output and RAN not in output, output
    for kind, said in KINDS.items():
        (line,) = [line for line in output.splitlines() if line.startswith(kind)]
        assert said in line


@pytest.mark.slow
def test_a_command_says_in_one_line_that_it_runs_no_code(tmp_path: Path) -> None:
    folder = hostile(Path(shutil.copytree(MODEL, tmp_path / "model")), "feature extractor")
    command = [str(Path(sys.executable).with_name("lite-whisper")), "transcribe", "--model", str(folder)]
    command += [str(TEST_CLIPS / "test_000.flac"), "--output", str(tmp_path / "out.jsonl")]
    code, output = run(command, True, tmp_path / "modules")
    assert code == 1
    assert re.fullmatch(r"error: .* requires custom Python code, which is never run; give a model .*\n", output), output


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "no terminal"])
def test_the_processor_as_card_and_guide_load_it_asks_nothing(terminal: bool, converted: Path, tmp_path: Path) -> None:
    """They load the model's code by `trust_remote_code`; a processor loaded without would ask, and wait 15 s."""
    guide = Path(__file__).parents[2] / "docs/guide/use.md"
    program = ["import sys; from transformers import AutoProcessor; name = folder = sys.argv[1]; revision = 'main'"]
    for text in (str(render_card("x", {"base_model": "x"})), guide.read_text()):
        lines = re.findall(r"processor = AutoProcessor.*", text)
        assert lines
        program += lines
    command = [sys.executable, "-c", "\n".join(program), str(converted)]
    code, output = run(command, terminal, tmp_path / "modules")
    assert code == 0 and "[y/N]" not in output, output
