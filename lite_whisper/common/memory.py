"""Measurement of peak memory."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux only


class PeakMemory:
    """
    Context manager that measures the peak memory of a CUDA device or, for the CPU, of this process.

    Args:
        device (`torch.device`, *optional*): the CPU by default.

    Attributes:
        peak (`int`): peak memory in bytes; for the CPU on systems other than Linux, the peak since the process started.
        above_start (`int`): increase of the high-water mark within the context, in bytes.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif CLEAR_REFS.exists():
            ctypes.CDLL(None).malloc_trim(0)  # free heap memory would hide later allocations
            CLEAR_REFS.write_text("5")  # resets the kernel's high-water mark
        self._before = self._high_water_mark()
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = self._high_water_mark()
        self.above_start = self.peak - self._before

    def _high_water_mark(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if CLEAR_REFS.exists():
            return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
