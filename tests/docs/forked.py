"""
Runs shell commands and programs without the seconds that imports take.

    python tests/docs/forked.py < lanes.json > results.json

Lanes run in parallel; the steps of a lane run in order until one fails. This process imports everything and computes
nothing; a fork of it runs `lite-whisper ...`, `python ...` or a program. Steps that start several processes, or need a
shell or other packages, run in a shell.
"""

import contextlib
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

TORCHAO = Path(".venv/torchao")  # outside the environment: transformers imports it wherever it is installed
SHELL_STEPS = ("accelerate ", "pip ", ". ", "--ray", "ray_cluster")


def words(command: str) -> list[str]:
    """Splits a command into words as bash does: without quotes, with patterns expanded."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


def load_everything() -> None:
    """Imports everything that the steps import, so that their forks do not have to."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers
    from matplotlib import pyplot  # noqa: F401

    import lite_whisper

    for name in ("pipeline", "Seq2SeqTrainer", "WhisperForConditionalGeneration", "WhisperProcessor", "AutoProcessor"):
        getattr(transformers, name)
    root = Path(lite_whisper.__file__).parent
    for folder in ("cli", "conversion", "evaluation", "publishing", "training", "transcription"):
        for file in sorted((root / folder).glob("*.py")):
            if file.stem != "__main__":
                __import__(f"lite_whisper.{folder}.{file.stem}")
    sys.path.append(str(Path(__file__).parents[1]))
    from processor_time import measure_processor_time

    measure_processor_time()  # lanes run side by side, and other tests beside them


def become(language: str, text: str) -> int:
    """Does in this process what a step does in one of its own; returns the exit code."""
    if language == "python":
        sys.modules["__main__"] = module = ModuleType("__main__")
        sys.path.insert(0, "")
        exec(compile(text, "program", "exec"), module.__dict__)
        return 0
    program, *sys.argv[:] = words(text)
    if program == "python":
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    sys.argv.insert(0, program)
    (script,) = entry_points(group="console_scripts", name=program)
    return script.load()()


def fork(language: str, text: str, output: int) -> int:
    """Runs a step in a fork of this process that writes to `output`; returns the exit code."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            code = become(language, text) or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(step: dict[str, str]) -> dict[str, Any]:
    """Runs a step and adds its exit code, output and duration."""
    start, language, text = time.monotonic(), step["language"], step["text"]
    with tempfile.TemporaryFile() as output:
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        if language == "python" and "torchao" in text:
            environment = os.environ | {"PYTHONPATH": str(TORCHAO.resolve())}
            code = subprocess.run([sys.executable, "-c", text], env=environment, **streams).returncode
        elif language == "bash" and any(each in text for each in SHELL_STEPS):
            environment = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
            code = subprocess.run(["bash", "-c", text], env=environment, **streams).returncode
        else:
            code = fork(language, text, output.fileno())
        output.seek(0)
        written = output.read().decode(errors="replace")
    return {**step, "code": code, "output": written, "seconds": time.monotonic() - start}


def run_lane(steps: list[dict[str, str]], results: Path) -> None:
    """Runs steps until one fails."""
    done: list[dict[str, Any]] = []
    for step in steps:
        done.append(run(step))
        results.write_text(json.dumps(done))
        if done[-1]["code"]:
            break


def main() -> None:
    """Reads lanes from stdin, runs them and writes their results to stdout."""
    lanes = json.load(sys.stdin)
    del sys.path[0]  # the folder of this file
    with contextlib.redirect_stdout(sys.stderr):
        load_everything()
    gc.freeze()  # otherwise the collector of every fork would touch, and so copy, all pages
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.json" for index in range(len(lanes))]
        processes = []
        for lane, file in zip(lanes, files, strict=True):
            process = os.fork()
            if process == 0:
                try:
                    run_lane(lane, file)
                finally:
                    os._exit(0)
            processes.append(process)
        for process in processes:
            os.waitpid(process, 0)
        json.dump([json.loads(file.read_text()) for file in files], sys.stdout)


if __name__ == "__main__":
    main()
