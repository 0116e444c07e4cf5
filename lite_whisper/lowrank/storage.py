"""Files that keep what took long to compute: moments and sensitivities."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..common.errors import InputError
from ..common.tensor_files import load_tensors, save_tensors
from ..configuration_lite_whisper import PROJECTIONS
from .moments import OBSERVED_SIDE, EncoderMoments, Moments
from .sensitivity import Sensitivities


def save_calibration(
    moments: EncoderMoments, path: Path, origin: dict[str, Any], sensitivities: Sensitivities | None = None
) -> None:
    """Writes moments, and sensitivities where there are any, to a safetensors file; `origin` says from what."""
    tensors = {}
    metadata = {"origin": json.dumps(origin)}
    kinds = {"": moments} | ({} if sensitivities is None else {".weighted": sensitivities.moments})
    for kind, of_kind in kinds.items():
        for layer, of_layer in enumerate(of_kind):
            for projection, m in of_layer.items():
                tensors[f"{layer}.{projection}{kind}.count"] = torch.tensor(
                    m.count, dtype=torch.int64 if isinstance(m.count, int) else torch.float64
                )
                tensors[f"{layer}.{projection}{kind}.mean"] = m.mean.cpu()
                tensors[f"{layer}.{projection}{kind}.scatter"] = m.scatter.cpu()
    if sensitivities is not None:
        metadata["languages"] = json.dumps(sensitivities.languages)
        tensors["windows"] = sensitivities.windows
        for layer, totals in enumerate(sensitivities.layers):
            for projection, total in totals.items():
                tensors[f"{layer}.{projection}.sensitivity"] = total.cpu()
    save_tensors(tensors, path, metadata)


def load_calibration(path: Path) -> tuple[EncoderMoments, Sensitivities | None, dict[str, Any]]:
    """
    Reads what `save_calibration` wrote: the moments, the sensitivities if they are there, and the origin of both.

    Raises:
        InputError: the file is not one of moments.
    """
    try:
        tensors, metadata = load_tensors(path)
        origin = json.loads(metadata["origin"])
        layers = 1 + max(int(name.split(".")[0]) for name in tensors if name[0].isdigit())

        def of_kind(kind: str) -> EncoderMoments:
            return [
                {
                    projection: Moments(
                        tensors[f"{layer}.{projection}{kind}.count"].item(),
                        tensors[f"{layer}.{projection}{kind}.mean"],
                        tensors[f"{layer}.{projection}{kind}.scatter"],
                    )
                    for projection in OBSERVED_SIDE
                }
                for layer in range(layers)
            ]

        # Earlier versions kept no weighted moments, or no windows; their sensitivities are computed anew.
        if "languages" not in metadata or not {"0.q_proj.weighted.count", "windows"} <= tensors.keys():
            return of_kind(""), None, origin
        sensitivities = [
            {projection: tensors[f"{layer}.{projection}.sensitivity"] for projection in PROJECTIONS}
            for layer in range(layers)
        ]
        languages = Counter(json.loads(metadata["languages"]))
        found = Sensitivities(sensitivities, of_kind(".weighted"), languages, tensors["windows"])
        return of_kind(""), found, origin
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a file of moments ({error}); remove it to compute them anew") from error
