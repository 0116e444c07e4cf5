"""Files of calibration statistics: moments and sensitivities."""

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
    """
    Writes calibration statistics to a safetensors file.

    Args:
        moments (`EncoderMoments`): the moments, from `collect_moments`.
        path (`Path`): the file to write.
        origin (`dict[str, Any]`): describes the model and audio of the statistics, in JSON types.
        sensitivities (`Sensitivities`, *optional*): the sensitivities, from `collect_sensitivities`.
    """
    tensors = {}
    metadata = {"origin": json.dumps(origin)}
    by_suffix = {"": moments} | ({} if sensitivities is None else {".weighted": sensitivities.moments})
    for suffix, encoder_moments in by_suffix.items():
        for layer, layer_moments in enumerate(encoder_moments):
            for projection, m in layer_moments.items():
                tensors[f"{layer}.{projection}{suffix}.count"] = torch.tensor(
                    m.count, dtype=torch.int64 if isinstance(m.count, int) else torch.float64
                )
                tensors[f"{layer}.{projection}{suffix}.mean"] = m.mean.cpu()
                tensors[f"{layer}.{projection}{suffix}.scatter"] = m.scatter.cpu()
    if sensitivities is not None:
        metadata["languages"] = json.dumps(sensitivities.languages)
        tensors["windows"] = sensitivities.windows
        for layer, layer_sensitivities in enumerate(sensitivities.layers):
            for projection, sensitivity in layer_sensitivities.items():
                tensors[f"{layer}.{projection}.sensitivity"] = sensitivity.cpu()
    save_tensors(tensors, path, metadata)


def load_calibration(path: Path) -> tuple[EncoderMoments, Sensitivities | None, dict[str, Any]]:
    """
    Reads calibration statistics written by `save_calibration`.

    Args:
        path (`Path`): the file to read.

    Returns:
        `tuple[EncoderMoments, Sensitivities | None, dict[str, Any]]`: the moments, the sensitivities if the file
        contains them, and the origin of both.

    Raises:
        InputError: the file does not contain calibration statistics.
    """
    try:
        tensors, metadata = load_tensors(path)
        origin = json.loads(metadata["origin"])
        layers = 1 + max(int(name.split(".")[0]) for name in tensors if name[0].isdigit())

        def read_moments(suffix: str) -> EncoderMoments:
            return [
                {
                    projection: Moments(
                        tensors[f"{layer}.{projection}{suffix}.count"].item(),
                        tensors[f"{layer}.{projection}{suffix}.mean"],
                        tensors[f"{layer}.{projection}{suffix}.scatter"],
                    )
                    for projection in OBSERVED_SIDE
                }
                for layer in range(layers)
            ]

        # Files of earlier versions lack weighted moments or windows; the caller recomputes their sensitivities.
        if "languages" not in metadata or not {"0.q_proj.weighted.count", "windows"} <= tensors.keys():
            return read_moments(""), None, origin
        layer_sensitivities = [
            {projection: tensors[f"{layer}.{projection}.sensitivity"] for projection in PROJECTIONS}
            for layer in range(layers)
        ]
        languages = Counter(json.loads(metadata["languages"]))
        weighted = read_moments(".weighted")
        return read_moments(""), Sensitivities(layer_sensitivities, weighted, languages, tensors["windows"]), origin
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a file of calibration statistics ({error}); delete it to recompute them"
        ) from error
