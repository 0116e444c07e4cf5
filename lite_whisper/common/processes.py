"""Processes that `accelerate launch` starts share one piece of work; a process of its own has all of it."""

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

PATIENCE = timedelta(days=7)  # one may work long while others wait; of those that died the launcher knows


def available_device(device: str | None) -> str:
    """The device that was asked for, or else cuda where there is a GPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def join(device: str | None) -> str:
    """
    Makes the processes known to each other; before anything is sharded.

    Args:
        device (`str`, *optional*): that was asked for; of several processes on GPUs each has its own.

    Returns:
        `str`: the device of this process.
    """
    device = available_device(device)
    state = PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)
    if not state.is_main_process:
        logging.disable(logging.WARNING)  # what all have to say is said once
    if not state.use_distributed:
        return device
    atexit.register(_leave)
    return str(state.device)


def _leave() -> None:
    """Ends the group: its threads may abort a process that exits while they run."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return PartialState().is_main_process


def num_processes() -> int:
    """How many processes there are."""
    return PartialState().num_processes


def shard(items: Iterable[T]) -> Iterator[T]:
    """This process's part of what all of them go through: of N processes every N-th item."""
    state = PartialState()
    return islice(items, state.process_index, None, state.num_processes)


def global_index(index: int) -> int:
    """Which place an item of `shard` has among the items of all."""
    state = PartialState()
    return index * state.num_processes + state.process_index


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes, which have one shape."""
    return reduce(tensor, "sum") if PartialState().use_distributed else tensor


def all_gather(items: list[T]) -> list[T]:
    """The items of all processes, in the same order in each; tensors in them must be on the CPU."""
    return gather_object(items)


def broadcast(value: T) -> T:
    """What the main process says, whatever the others say; tensors in it must be on the CPU."""
    return broadcast_object_list([value])[0]
