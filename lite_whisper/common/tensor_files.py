"""Tensors in safetensors files with a digest, and the sums of a long pass that an interrupted run goes on from."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import InputError
from .files import check_same, temporary_name
from .processes import global_index, num_processes

INTERVAL = 300.0  # seconds between two writes of a `Checkpoint`, whose files may have gigabytes


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file with a digest of all that it holds, by which `load_tensors` knows it to be whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with temporary_name(path) as temporary:
        save_file(tensors, temporary, metadata=metadata | {"sha256": _digest(tensors, metadata)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Reads what `save_tensors` wrote, or an earlier version without a digest: the tensors, on the CPU, and the metadata.

    Raises:
        SafetensorError: it is no safetensors file.
        ValueError: it is one, but not as it was written.
    """
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    digest = metadata.pop("sha256", None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise ValueError("what it holds is not what was written")
    return tensors, metadata


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """
    Sums over batches in a file, from which an interrupted pass over the same batches goes on, to the very same result.

    Of several processes each has a file of its own, for which there must be as many again.

    Args:
        path (`Path`): of the file, to which `.safetensors` and the process are added.
        origin (`dict`): what decides the outcome.
    """

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self._path = path.with_name(f"{path.name}_{global_index(0)}_of_{num_processes()}.safetensors")
        self._origin = origin
        self._written = time.monotonic()

    def restore(self, sums: dict[str, torch.Tensor]) -> dict[str, Any]:
        """
        Copies what is kept into the sums; returns what was noted with them, and nothing where there is nothing.

        Raises:
            InputError: the file is damaged, or was made from something else.
        """
        if not self._path.exists():
            return {}
        try:
            tensors, metadata = load_tensors(self._path)
            origin, notes = json.loads(metadata["origin"]), json.loads(metadata["notes"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{self._path} is no checkpoint ({error}); remove it to begin anew") from error
        check_same(origin, self._origin, self._path)
        for name, total in sums.items():
            total.copy_(tensors[name])
        return notes

    def keep(self, sums: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
        """Writes the sums, which stay as they are, unless that was done only a while ago."""
        if time.monotonic() - self._written >= INTERVAL:
            metadata = {"origin": json.dumps(self._origin), "notes": json.dumps(notes)}
            save_tensors(sums, self._path, metadata)
            self._written = time.monotonic()
