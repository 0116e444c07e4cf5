"""
Writes benchmark results as JSON, with the context needed to reproduce them.

Results that the documents quote are in `benchmarks/results/`. The fields:

    command     the command that reproduces the results; paths on this machine are reduced to names
    commit      commit of the measured code, with "-dirty" if the code had uncommitted changes
    date        date of writing
    machine     processors, memory, and the GPU if there is one
    versions    versions of the packages that compute
    recorded    "by the benchmark", or the source of the figures
    units       unit of each number in rows and figures; "1" for numbers without one
    rows        rows of the tables
    figures     single numbers by name
    unknown     reasons for fields that are null
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
    Writes results with the context needed to reproduce them.

    Args:
        rows (`list[dict]`): rows of the table; unknown values are omitted or `None`.
        path (`Path`): JSON file to write.
        units (`dict[str, str]`): unit of each column and figure that holds numbers.
        figures (`dict[str, float]`, *optional*): single numbers by name.
        how (`str`, *optional*): command that reproduces the results; default: the running command.
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
    """Returns the running command, with paths on this machine reduced to names."""
    words = [word.rpartition("=") for word in sys.argv[1:]]  # splits arguments such as NAME=FOLDER
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return shlex.join(["python", str(script), *(f"{name}{sign}{public_name(value)}" for name, sign, value in words)])


def commit() -> str:
    """Returns the current commit, with "-dirty" if code has changed; documents, results and cards do not count."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    code = [".", ":!*.md", ":!benchmarks/results", ":!model_cards"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False).returncode
    return f"{head}-dirty" if changed else head


def machine() -> str:
    """Describes the processors available to this process, the memory, and the GPU if there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    parts = [f"{cores} of {models[0]}" if models else cores, f"{psutil.virtual_memory().total / 1e9:.0f} GB"]
    return ", ".join(parts + ([torch.cuda.get_device_name()] if torch.cuda.is_available() else []))


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages that compute."""
    installed = {package: next(iter(metadata.distributions(name=package)), None) for package in PACKAGES}
    return {package: found.version for package, found in installed.items() if found}
