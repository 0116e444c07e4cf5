"""How much memory a stretch of a program takes at the most."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

RESET = Path("/proc/self/clear_refs")  # Linux only


class PeakMemory:
    """
    The largest memory while the context lasts: of the device, or of this process where the device is the CPU.

    Args:
        device (`torch.device`, *optional*): the CPU by default.

    Attributes:
        peak (`int`): bytes; on the CPU of other systems than Linux the largest since the process began.
        above_start (`int`): bytes above what was taken at its start.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif RESET.exists():
            ctypes.CDLL(None).malloc_trim(0)  # what lies free in the heap would hide later allocations
            RESET.write_text("5")  # the kernel's high-water mark starts again from here
        self._before = self._high_water_mark()
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = self._high_water_mark()
        self.above_start = self.peak - self._before

    def _high_water_mark(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if RESET.exists():
            return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
