"""Starts a program by `accelerate launch`, in several processes on the CPU (gloo)."""

import os
import subprocess
import sys
from pathlib import Path


def launch(processes: int, folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in a folder, in the given number of processes."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0"]  # any free port: other tests launch in parallel
    return subprocess.run(
        [sys.executable, *map(str, [*(launcher if processes > 1 else []), *words])],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
