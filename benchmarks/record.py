"""
What a benchmark found, as JSON that says how it was found. Those that documents quote lie in `benchmarks/results/`.

    command     how it is measured again; of paths on this machine only the names
    commit      of the code that was measured, "-dirty" where files of it were changed
    date        on which it was written
    machine     processors and memory, and the GPU where there is one
    versions    of what computes
    recorded    "by the benchmark", or from where the figures were taken
    units       of every number in rows and figures; "1" where it has none
    rows        of the tables
    figures     single numbers by their names
    unknown     why a field is null
"""

import datetime
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from lite_whisper.common.files import temporary_name
from lite_whisper.models.compression_json import public_name

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "torch",
    "transformers",
    "ctranslate2",
    "faster-whisper",
    "onnxruntime",
    "onnx-asr",
    "openvino",
    "openvino-genai",
)


def write_results(
    rows: list[dict[str, Any]],
    path: Path,
    units: dict[str, str],
    figures: dict[str, float] | None = None,
    how: str | None = None,
) -> None:
    """
    Writes rows, and figures that belong to none, with all that is needed to measure them again.

    Args:
        rows (`list[dict]`): from columns to numbers and text; what is not known of a row is left out or `None`.
        path (`Path`): the JSON.
        units (`dict[str, str]`): of every column and figure that holds numbers.
        figures (`dict[str, float]`, *optional*): by their names.
        how (`str`, *optional*): the command by which they are measured again; that which runs by default.
    """
    results = {
        "command": how or command(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "recorded": "by the benchmark",
        "units": units,
        "rows": rows,
        "figures": figures or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_name(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def command() -> str:
    """The command that runs, in which files and folders of this machine have only their names."""
    words = [word.rpartition("=") for word in sys.argv[1:]]  # NAME=FOLDER
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return shlex.join(["python", str(script), *(f"{name}{sign}{public_name(value)}" for name, sign, value in words)])


def commit() -> str:
    """The commit that is checked out, "-dirty" where code was changed since; documents, results and cards are none."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    code = [".", ":!*.md", ":!benchmarks/results", ":!model_cards"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False).returncode
    return f"{head}-dirty" if changed else head


def machine() -> str:
    """The processors that this process may use, the memory, and the GPU where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    parts = [f"{cores} of {models[0]}" if models else cores, f"{psutil.virtual_memory().total / 1e9:.0f} GB"]
    return ", ".join(parts + ([torch.cuda.get_device_name()] if torch.cuda.is_available() else []))


def versions() -> dict[str, str]:
    """Of the packages that compute, as far as they are installed."""
    installed = {package: next(iter(metadata.distributions(name=package)), None) for package in PACKAGES}
    return {package: found.version for package, found in installed.items() if found}
