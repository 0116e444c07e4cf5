"""
Runs what is typed in a shell, without the seconds that imports take.

    python tests/docs/forked.py < lanes.json > results.json

Lanes run side by side, the steps of a lane one after the other until one fails. This process imports everything and
computes nothing; a fork of it is `lite-whisper ...`, `python ...` or a program. What starts several processes, or
needs a shell or packages of its own, runs in one.
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

TORCHAO = Path(".venv/torchao")  # apart from the environment: transformers imports it wherever it finds it
OF_A_SHELL = ("accelerate ", "pip ", ". ", "--ray", "ray_cluster")


def words(command: str) -> list[str]:
    """The words of a command as bash finds them: without quotes, patterns as file names."""
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return said.stdout.split("\0")[:-1]


def load_everything() -> None:
    """Imports what the steps do, so that their forks need not."""
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
    """Runs a step in a fork of this process, which writes to `output`; returns the exit code."""
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
    """Runs a step: adds its exit code, what it said and how long it took."""
    start, language, text = time.monotonic(), step["language"], step["text"]
    with tempfile.TemporaryFile() as output:
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        if language == "python" and "torchao" in text:
            environment = os.environ | {"PYTHONPATH": str(TORCHAO.resolve())}
            code = subprocess.run([sys.executable, "-c", text], env=environment, **streams).returncode
        elif language == "bash" and any(each in text for each in OF_A_SHELL):
            environment = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
            code = subprocess.run(["bash", "-c", text], env=environment, **streams).returncode
        else:
            code = fork(language, text, output.fileno())
        output.seek(0)
        said = output.read().decode(errors="replace")
    return {**step, "code": code, "said": said, "seconds": time.monotonic() - start}


def run_lane(steps: list[dict[str, str]], results: Path) -> None:
    """Runs steps until one fails."""
    done: list[dict[str, Any]] = []
    for step in steps:
        done.append(run(step))
        results.write_text(json.dumps(done))
        if done[-1]["code"]:
            break


def main() -> None:
    """Runs the lanes on stdin; the results of each go to stdout."""
    lanes = json.load(sys.stdin)
    del sys.path[0]  # the folder of this file
    with contextlib.redirect_stdout(sys.stderr):
        load_everything()
    gc.freeze()  # or else every fork would look through what it was given, and so copy it
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
