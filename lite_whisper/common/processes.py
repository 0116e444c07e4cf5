"""Sharing work among the processes started by `accelerate launch`; a single process does all of it."""

import atexit
import logging
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

T = TypeVar("T")

TIMEOUT = timedelta(days=7)  # some processes may wait long for others; the launcher detects crashes


def available_device(device: str | None) -> str:
    """Returns the requested device, by default `"cuda"` if a GPU is available and `"cpu"` otherwise."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def join(device: str | None) -> str:
    """
    Initialises the process group; call it before any work is sharded.

    Args:
        device (`str`, *optional*): the requested device, see `available_device`; each process on GPUs gets its own.

    Returns:
        `str`: the device of this process.
    """
    device = available_device(device)
    state = PartialState(cpu=torch.device(device).type == "cpu", timeout=TIMEOUT)
    if not state.is_main_process:
        logging.disable(logging.WARNING)  # only the main process logs warnings
    if not state.use_distributed:
        return device
    atexit.register(_leave)
    return str(state.device)


def _leave() -> None:
    """Destroys the process group, whose threads could otherwise crash the process at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the main process, the only one that writes output."""
    return PartialState().is_main_process


def num_processes() -> int:
    """Returns the number of processes."""
    return PartialState().num_processes


def shard(items: Iterable[T]) -> Iterator[T]:
    """Yields this process's share of the items: with N processes, every N-th item."""
    state = PartialState()
    return islice(items, state.process_index, None, state.num_processes)


def global_index(index: int) -> int:
    """Converts the index of an item of `shard` to its index among all items."""
    state = PartialState()
    return index * state.num_processes + state.process_index


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over all processes; it has the same shape in each."""
    return reduce(tensor, "sum") if PartialState().use_distributed else tensor


def all_gather(items: list[T]) -> list[T]:
    """Concatenates the items of all processes, in the same order in each; tensors in them must be on the CPU."""
    return gather_object(items)


def broadcast(value: T) -> T:
    """Returns the main process's value in every process; tensors in it must be on the CPU."""
    return broadcast_object_list([value])[0]
