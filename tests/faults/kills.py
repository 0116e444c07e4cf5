"""
Kills every stage again and again, runs it once more, and compares what comes out with an undisturbed run.

    python tests/faults/kills.py --kills 200

A stage is a command line of the package. This process imports everything and computes nothing, so that a forked child
is a run without the seconds that imports take. A child dies by SIGKILL, after a random time or at a random one of its
changes to the disk; where that is the writing of a file, half of it stays behind.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import safetensors.torch
import torch
from safetensors import serialize_file
from tqdm import tqdm

from lite_whisper.common import tensor_files as storage
from lite_whisper_commands import load

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, CALIBRATION, TEST = EXAMPLES / "whisper-digits", EXAMPLES / "digits/calibration", EXAMPLES / "digits/test"
LITE = "lite-digits"  # in the folder of the inputs
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}  # audit events
TIMES = ("time", "encoder_time", "decoder_time", "rtfx", "encoder_seconds", "decoder_seconds", "encoder_milliseconds")
VARYING = (*TIMES, "peak_memory", "crc32")
ALREADY_THERE = re.compile(r"^error: .* (exists|is a folder that is not empty); choose another", re.MULTILINE)
FAILED = 70  # the exit code of a child that ended in a traceback


@dataclass(frozen=True)
class Stage:
    """
    A command whose runs are killed.

    arguments : str, with {inputs} and {work} for the folder of what it reads and the one in which it writes
    output : str, what it writes in {work}, which is only ever seen as a whole; None where it grows
    """

    arguments: str
    output: str | None = None
    overwrite: bool = True


STAGES = {
    "convert": Stage(
        "convert --base-model {model} --dataset {inputs}/speech --ratio 0.4 --num-windows 4 --output {work}/lite",
        "lite",
    ),
    "liteasr": Stage(
        "convert --base-model {model} --dataset {inputs}/speech --recipe liteasr --thresholds 0.9:0.95 --num-windows 4 "
        "--calibration-file {work}/moments.safetensors --output {work}/lite",
        "lite",
    ),
    "evaluate": Stage(
        "evaluate {model} {inputs}/lite-digits --dataset {inputs}/test --batch-size 2 --output {work}/results "
        "--json {work}/figures.json",
    ),
    "recover": Stage(
        "recover {inputs}/lite-digits --base-model {model} --dataset {inputs}/speech --steps 5 "
        "--learning-rate 1e-4 --num-windows 2 --output {work}/recovered",
        "recovered",
    ),
    "transcribe": Stage(
        "transcribe {inputs}/test {inputs}/speech --model {model} --batch-size 2 --output {work}/out.jsonl",
        "out.jsonl",
    ),
    "subtitles": Stage(
        "transcribe {inputs}/test --model {model} --batch-size 2 --format srt --output {work}/subtitles",
        "subtitles",
        overwrite=False,
    ),
}


@dataclass(frozen=True)
class Kill:
    """When a run dies: after `seconds`, or at its `point`-th change to the disk."""

    seconds: float | None = None
    point: int | None = None


@dataclass
class Run:
    """
    How a run ended.

    code : int, of the exit, negative for a signal
    said : str, stdout and stderr together
    points : int, changes to the disk; 0 if it was killed
    """

    code: int
    said: str
    seconds: float
    points: int


@dataclass
class Trial:
    """The kills of one run, and what was wrong afterwards."""

    stage: str
    seed: int
    kills: list[Kill] = field(default_factory=list)
    rerun_failed: str = ""
    differs: str = ""


class Points:
    """Counts what a process does to the disk below a folder and dies at one of these points."""

    def __init__(self, folder: Path, fatal: int | None, generator: random.Random) -> None:
        self.count = 0
        self._folder, self._fatal, self._generator = str(folder), fatal, generator
        sys.addaudithook(self._audit)
        safetensors.torch.serialize_file = partial(self._written, serialize_file, place=1)
        torch.save = partial(self._written, torch.save, place=1)
        os.fsync = partial(self._synced, os.fsync)

    def _reached(self) -> bool:
        self.count += 1
        return self._fatal is not None and self.count > self._fatal

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            changes, path = event in CHANGES, arguments[0] if arguments else ""
        # shutil.rmtree names what it removes within a folder that it has opened.
        within = str(path).startswith(self._folder) or (event in ("os.remove", "os.rmdir") and arguments[-1] != -1)
        if changes and within and self._reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def _written(self, write: Callable, *arguments: Any, place: int, **options: Any) -> None:
        write(*arguments, **options)
        path = str(arguments[place])
        if path.startswith(self._folder) and self._reached():
            os.truncate(path, self._generator.randrange(os.path.getsize(path)))  # noqa: PTH202
            os.kill(os.getpid(), signal.SIGKILL)

    def _synced(self, sync: Callable, descriptor: int) -> None:
        sync(descriptor)
        if self._reached():
            os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - self._generator.randrange(60)))
            os.kill(os.getpid(), signal.SIGKILL)


class Workplace:
    """A folder with inputs, where stages run in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = folder / "inputs"
        self.references: dict[str, dict[str, Any]] = {}
        self.lengths: dict[str, Run] = {}
        self._runs = 0

    def prepare(self, stages: list[str]) -> None:
        """Makes the inputs, and the result of an undisturbed run of each stage."""
        for name, source, count in (("speech", CALIBRATION, 4), ("test", TEST, 6)):
            (self.inputs / name).mkdir(parents=True)
            for path in sorted(source.glob("*.flac"))[:count]:
                shutil.copy(path, self.inputs / name)
        rows = (TEST / "metadata.csv").read_text().splitlines(keepends=True)
        (self.inputs / "test/metadata.csv").write_text("".join(rows[:7]))
        (self.inputs / "speech/broken.flac").write_bytes(b"broken")
        made = self.run(
            "convert --base-model {model} --dataset {inputs}/speech --recipe liteasr --thresholds 0.9:0.95 "
            "--num-windows 4 --output {inputs}/lite-digits",
            self.inputs,
        )
        assert made.code == 0, made.said
        for stage in stages:
            work = self.folder / "undisturbed" / stage
            work.mkdir(parents=True)
            self.lengths[stage] = self.run(STAGES[stage].arguments, work)
            assert self.lengths[stage].code == 0, self.lengths[stage].said
            self.references[stage] = contents(work)
            if stage == "recover":  # or else there is little to compare
                assert "recovery did not help" not in self.lengths[stage].said

    def run(
        self,
        arguments: str,
        work: Path,
        kill: Kill | None = None,
        before: Callable[[], None] | None = None,
        generator: random.Random | None = None,
    ) -> Run:
        """Runs a command in a process of its own, which may be killed; `before` is called in it first."""
        self._runs += 1
        log = self.folder / f"run-{os.getpid()}-{self._runs}.log"
        log.touch()
        values = {"model": MODEL, "inputs": self.inputs, "work": work}
        command, *options = (argument.format(**values) for argument in arguments.split())
        start = time.monotonic()
        process = os.fork()
        if process == 0:
            code = FAILED
            try:
                with log.open("w") as file:
                    for descriptor in (1, 2):
                        os.dup2(file.fileno(), descriptor)
                storage.INTERVAL = 0.0  # what a pass keeps after five minutes is there, and damaged, after each batch
                points = Points(work, kill.point if kill else None, generator or random.Random(0))
                if before:
                    before()
                code = load(command)(options, f"lite-whisper {command}")
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
                print(f"\npoints {points.count}")
            except SystemExit as end:  # argparse
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = None
        if kill and kill.seconds is not None:
            while time.monotonic() < start + kill.seconds and status is None:
                time.sleep(min(0.005, max(0.0, start + kill.seconds - time.monotonic())))
                ended, found = os.waitpid(process, os.WNOHANG)
                status = found if ended else None
            if status is None:
                os.kill(process, signal.SIGKILL)
        if status is None:
            status = os.waitpid(process, 0)[1]
        said = log.read_text(errors="replace")
        log.unlink()
        code = os.waitstatus_to_exitcode(status)
        found_points = re.search(r"^points (\d+)$", said, re.MULTILINE)
        return Run(code, said, time.monotonic() - start, int(found_points[1]) if found_points else 0)

    def trial(self, stage: str, seed: int, most: int = 3) -> Trial:
        """Kills a stage up to `most` times in a row, lets it finish, and compares."""
        generator = random.Random(f"{stage} {seed}")
        trial, work = Trial(stage, seed), self.folder / f"{stage}-{seed}"
        what, length = STAGES[stage], self.lengths[stage]
        work.mkdir()
        options, replaces = "", what.overwrite and what.output is not None and generator.random() < 0.5
        if what.output and replaces:
            options = " --overwrite"
            _old(work / what.output)
        old = contents(work)
        for _ in range(generator.randint(1, most)):
            kill = Kill(generator.uniform(0, length.seconds))
            if generator.random() < 0.5:
                kill = Kill(point=generator.randrange(length.points))
            run = self.run(what.arguments + options, work, kill, generator=generator)
            if run.code == -signal.SIGKILL:
                trial.kills.append(kill)
                trial.differs = trial.differs or self._torn(stage, work, old)
            else:
                break
        else:
            run = self.run(what.arguments + options, work)
        done_before = trial.kills and run.code == 1 and not replaces and ALREADY_THERE.search(run.said)
        if run.code and not done_before:
            trial.rerun_failed = f"exit code {run.code}: {run.said[-2000:]}"
        elif not trial.differs:
            found = contents(work)
            if done_before:  # killed when nothing was left to do but to tidy up
                found = {name: value for name, value in found.items() if ".unfinished" not in name}
            trial.differs = differences(self.references[stage], found)
        if not trial.rerun_failed and not trial.differs:
            shutil.rmtree(work)
        return trial

    def _torn(self, stage: str, work: Path, old: dict[str, Any]) -> str:
        """What is under the name of the output after a kill, unless it is the whole of the old or the new."""
        output = STAGES[stage].output
        if output is None or not (work / output).exists():
            return ""
        now = {name: value for name, value in contents(work).items() if _is_of(name, output)}
        new = {name: value for name, value in self.references[stage].items() if _is_of(name, output)}
        before = {name: value for name, value in old.items() if _is_of(name, output)}
        return "" if now in (new, before) else f"torn output: {differences(new, now)}"


def _is_of(name: str, output: str) -> bool:
    return name == output or name.startswith(f"{output}/")


def _old(path: Path) -> None:
    """Puts something there that may be replaced."""
    if path.suffix:
        path.write_text("old")
        return
    path.mkdir()
    (path / "config.json").write_text("{}")


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder by name, hidden files too, without what differs between runs: times and memory."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.suffix == ".safetensors":
            found[name] = _tensors(path.read_bytes())
        elif path.suffix == ".jsonl":
            found[name] = sorted(_lines(path), key=lambda line: str(line.get("index")))
        elif path.suffix == ".json":
            found[name] = _steady(_json(path.read_bytes()))
        elif path.name == "summary.csv":
            found[name] = [line.split(",")[:8] for line in path.read_text().splitlines()]
        elif path.suffix == ".md":  # the card tells the encoder's time
            found[name] = re.sub(r"^.*\bms\b.*$", "", path.read_text(), flags=re.MULTILINE)
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(data: bytes) -> Any:
    """The header, whose metadata has no order, and the tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return _json(data[8 : 8 + size]), data[8 + size :]


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        if line:
            value = _steady(_json(line))
            yield value if isinstance(value, dict) else {"torn": value}


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _steady(each) for name, each in value.items() if name not in VARYING}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Names that are missing, not expected, or of other contents; empty where there are none."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "left over": sorted(found.keys() - expected.keys()),
        "other": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def campaign(workplace: Workplace, stages: list[str], kills: int, jobs: int, seed: int = 0) -> list[Trial]:
    """Trials of every stage until so many kills, all stages together, have hit a run that had not ended."""
    trials: list[Trial] = []
    wanted = {stage: kills // len(stages) + (place < kills % len(stages)) for place, stage in enumerate(stages)}
    numbers = dict.fromkeys(stages, seed)
    with multiprocessing.get_context("fork").Pool(jobs) as pool, tqdm(total=kills, unit="kill", disable=False) as bar:
        while any(wanted.values()):
            tasks = []
            for stage, left in wanted.items():
                most = min(3, left)  # two kills a trial on average
                for _ in range((left + 1) // 2):
                    tasks.append((workplace, stage, numbers[stage], most))
                    numbers[stage] += 1
            for trial in pool.imap_unordered(_trial, tasks):
                trials.append(trial)
                wanted[trial.stage] = max(0, wanted[trial.stage] - len(trial.kills))
                bar.update(len(trial.kills))
                if trial.rerun_failed or trial.differs:
                    kinds = ", ".join(map(str, trial.kills))
                    bar.write(f"{trial.stage} {trial.seed} ({kinds}): {trial.rerun_failed}{trial.differs}")
    return trials


def _trial(task: tuple[Workplace, str, int, int]) -> Trial:
    workplace, *options = task
    return workplace.trial(*options)


def main() -> int:
    """Runs the trials and prints a table; returns 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="over all stages (default 200)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each stage (default 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not outlast a fork
    with tempfile.TemporaryDirectory(prefix="lite-whisper-kills-") as folder:
        workplace = Workplace(Path(folder).resolve())
        workplace.prepare(arguments.stages)
        trials = campaign(workplace, arguments.stages, arguments.kills, arguments.jobs, arguments.seed)
    print(f"\n{'stage':12}{'seconds':>9}{'points':>8}{'runs':>7}{'kills':>7}{'by time':>9}{'failed':>8}{'differs':>9}")
    totals = [0] * 5
    for stage in arguments.stages:
        these = [trial for trial in trials if trial.stage == stage]
        kills = [kill for trial in these for kill in trial.kills]
        figures = [
            len(these),
            len(kills),
            sum(kill.seconds is not None for kill in kills),
            sum(bool(trial.rerun_failed) for trial in these),
            sum(bool(trial.differs) for trial in these),
        ]
        totals = [total + figure for total, figure in zip(totals, figures, strict=True)]
        length = workplace.lengths[stage]
        print(f"{stage:12}{length.seconds:9.1f}{length.points:8}" + _columns(figures))
    print(f"{'all':29}" + _columns(totals))
    return int(any(trial.rerun_failed or trial.differs for trial in trials))


def _columns(figures: list[int]) -> str:
    return "".join(f"{figure:{width}}" for figure, width in zip(figures, (7, 7, 9, 8, 9), strict=True))


if __name__ == "__main__":
    sys.exit(main())
