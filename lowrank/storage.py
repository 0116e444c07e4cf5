"""Files that keep what took long to compute: moments and sensitivities, also of a part, and layers that were fitted."""

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..configuration_lite_whisper import PROJECTIONS
from ..errors import InputError
from ..processes import count, place
from ..saving import check_same, temporary_name
from .calibration import OBSERVED_SIDE, EncoderMoments, Moments
from .sensitivity import Sensitivities
from .spectrum import Factors

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
        self._path = path.with_name(f"{path.name}_{place(0)}_of_{count()}.safetensors")
        self._origin = json.loads(json.dumps(origin))
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


def save_moments(
    moments: EncoderMoments, path: Path, origin: dict[str, Any], sensitivities: Sensitivities | None = None
) -> None:
    """Writes moments, and sensitivities where there are any, to a safetensors file; `origin` says from what."""
    tensors = {}
    metadata = {"origin": json.dumps(origin)}
    for layer, of_layer in enumerate(moments):
        for projection, m in of_layer.items():
            tensors[f"{layer}.{projection}.count"] = torch.tensor(m.count)
            tensors[f"{layer}.{projection}.mean"] = m.mean.cpu()
            tensors[f"{layer}.{projection}.scatter"] = m.scatter.cpu()
    if sensitivities is not None:
        metadata["languages"] = json.dumps(sensitivities.languages)
        for layer, totals in enumerate(sensitivities.layers):
            for projection, total in totals.items():
                tensors[f"{layer}.{projection}.sensitivity"] = total.cpu()
    save_tensors(tensors, path, metadata)


def load_moments(path: Path) -> tuple[EncoderMoments, Sensitivities | None, dict[str, Any]]:
    """
    Reads what `save_moments` wrote: the moments, the sensitivities if they are there, and the origin of both.

    Raises:
        InputError: the file is not one of moments.
    """
    try:
        tensors, metadata = load_tensors(path)
        origin = json.loads(metadata["origin"])
        layers = 1 + max(int(name.split(".")[0]) for name in tensors)
        moments = [
            {
                projection: Moments(
                    int(tensors[f"{layer}.{projection}.count"]),
                    tensors[f"{layer}.{projection}.mean"],
                    tensors[f"{layer}.{projection}.scatter"],
                )
                for projection in OBSERVED_SIDE
            }
            for layer in range(layers)
        ]
        if "languages" not in metadata:
            return moments, None, origin
        sensitivities = [
            {projection: tensors[f"{layer}.{projection}.sensitivity"] for projection in PROJECTIONS}
            for layer in range(layers)
        ]
        return moments, Sensitivities(sensitivities, Counter(json.loads(metadata["languages"]))), origin
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a file of moments ({error}); remove it to compute them anew") from error


def save_layer(factors: dict[str, Factors], path: Path, origin: dict[str, Any]) -> None:
    """Writes the factors of one layer's projections to a safetensors file; `origin` says how they were made."""
    tensors = {
        f"{projection}.{name}": value
        for projection, of_projection in factors.items()
        for name, value in of_projection._asdict().items()
    }
    save_tensors(tensors, path, {"origin": json.dumps(origin)})


def load_layer(path: Path, origin: dict[str, Any]) -> dict[str, Factors]:
    """
    Reads what `save_layer` wrote.

    Raises:
        InputError: the file is damaged, or was made in another way than `origin` says.
    """
    try:
        tensors, metadata = load_tensors(path)
        kept = json.loads(metadata["origin"])
        projections = {name.split(".")[0] for name in tensors}
        factors = {
            projection: Factors(*(tensors[f"{projection}.{name}"] for name in Factors._fields))
            for projection in projections
        }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a fitted layer ({error}); remove it to fit it anew") from error
    check_same(kept, json.loads(json.dumps(origin)), path.parent)
    return factors
