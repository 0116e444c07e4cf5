"""Timing of work on a device."""

import time

import torch


def now(device: torch.device) -> float:
    """Returns a monotonic time in seconds after all work queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
