"""Safetensors files with a digest, and checkpoints of sums over a dataset."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import InputError
from .files import check_unchanged, temporary_name
from .processes import global_index, num_processes

INTERVAL = 300.0  # minimum seconds between two writes of a `Checkpoint`, whose file can be gigabytes in size


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically, with a digest that `load_tensors` verifies."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with temporary_name(path) as temporary:
        save_file(tensors, temporary, metadata=metadata | {"sha256": _digest(tensors, metadata)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Reads a file written by `save_tensors` and verifies its digest; older files without a digest are accepted.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, str]]`: the tensors, on the CPU, and the metadata.

    Raises:
        SafetensorError: it is not a safetensors file.
        ValueError: the contents do not match the digest.
    """
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    digest = metadata.pop("sha256", None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise ValueError("the contents do not match the digest")
    return tensors, metadata


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """
    A file of running sums over batches, from which an interrupted pass resumes with bit-identical results.

    Each process has its own file; the number of processes must stay the same.

    Args:
        path (`Path`): path of the file without the process number and the suffix `.safetensors`.
        origin (`dict`): all settings that affect the sums.
    """

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self._path = path.with_name(f"{path.name}_{global_index(0)}_of_{num_processes()}.safetensors")
        self._origin = origin
        self._written = time.monotonic()

    def restore(self, sums: dict[str, torch.Tensor]) -> dict[str, Any]:
        """
        Copies the stored sums, if any, into the given tensors.

        Args:
            sums (`dict[str, torch.Tensor]`): the tensors to fill, changed in place.

        Returns:
            `dict[str, Any]`: the notes stored with the sums; empty if there is no checkpoint.

        Raises:
            InputError: the file is damaged or was written with other settings.
        """
        if not self._path.exists():
            return {}
        try:
            tensors, metadata = load_tensors(self._path)
            origin, notes = json.loads(metadata["origin"]), json.loads(metadata["notes"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{self._path} is not a valid checkpoint ({error}); remove it to start again") from error
        check_unchanged(origin, self._origin, self._path)
        for name, total in sums.items():
            total.copy_(tensors[name])
        return notes

    def save(self, sums: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
        """Writes the sums and notes if the last write was at least `INTERVAL` seconds ago."""
        if time.monotonic() - self._written >= INTERVAL:
            metadata = {"origin": json.dumps(self._origin), "notes": json.dumps(notes)}
            save_tensors(sums, self._path, metadata)
            self._written = time.monotonic()
