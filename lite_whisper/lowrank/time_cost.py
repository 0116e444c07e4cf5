"""Measured times of the target machine as a cost for rank allocation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError
from ..common.files import temporary_name
from .allocation import EncoderSpectra, Ranks, total_cost
from .spectrum import Spectrum

DENSE = "dense"


@dataclass(frozen=True)
class TimeTable:
    """
    A profile: measured times of one model's encoder on one machine, in microseconds per window.

    Args:
        machine (`dict[str, Any]`): a description of the machine, for information only.
        stock (`float`): the time of stock Whisper's encoder.
        rest (`float`): the time of everything except the projections, with optimised inference.
        products (`dict[tuple[int, int], dict[int | str, float]]`): maps the `(in_features, out_features)` of a
            projection to its times by rank; the key `"dense"` holds the time of the dense layer.
    """

    machine: dict[str, Any]
    stock: float
    rest: float
    products: dict[tuple[int, int], dict[int | str, float]]

    def cost(self, spectrum: Spectrum, rank: int | None) -> float:
        """
        The time of a projection at `rank`, or dense if `rank` is `None`, in microseconds. Times are linearly
        interpolated between measured ranks.

        Raises:
            InputError: the profile has no projection of this size.
        """
        times = self.products.get((spectrum.in_features, spectrum.out_features))
        if times is None:
            raise InputError(
                f"the profile has no projection with {spectrum.in_features} inputs and {spectrum.out_features} "
                "outputs, so it was made for another model; run lite-whisper profile for this model",
                setting="profile",
            )
        if rank is None:
            return times[DENSE]
        ranks = sorted(key for key in times if isinstance(key, int))
        return float(np.interp(rank, ranks, [times[key] for key in ranks]))

    def encoder(self, spectra: EncoderSpectra, ranks: Ranks) -> float:
        """The time of the encoder at these ranks with optimised inference, in microseconds."""
        return self.rest + total_cost(spectra, ranks, self.cost)

    def budget(self, speedup: float) -> float:
        """
        The time that remains for all projections at a given speed-up over stock Whisper's encoder, in microseconds.

        Raises:
            InputError: the rest of the encoder is already slower than this.
        """
        budget = self.stock / speedup - self.rest
        if budget <= 0:
            raise InputError(
                f"a speed-up of {speedup:g} cannot be reached: attention and other operations outside the projections "
                f"take {self.rest / self.stock:.0%} of the time; request a speed-up below "
                f"{self.stock / self.rest:.2f}",
                setting="target_speedup",
            )
        return budget

    def save(self, path: Path) -> None:
        """Writes the profile as JSON."""
        products = [
            {"in_features": shape[0], "out_features": shape[1], "microseconds": times}
            for shape, times in self.products.items()
        ]
        table = {"machine": self.machine, "stock": self.stock, "rest": self.rest, "products": products}
        with temporary_name(path) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")


def load_time_table(path: Path) -> TimeTable:
    """
    Reads a profile written by `TimeTable.save`.

    Raises:
        InputError: the file does not exist or is not a profile.
    """
    try:
        table = json.loads(path.read_text())
        products = {
            (entry["in_features"], entry["out_features"]): {
                rank if rank == DENSE else int(rank): float(time) for rank, time in entry["microseconds"].items()
            }
            for entry in table["products"]
        }
        return TimeTable(table["machine"], float(table["stock"]), float(table["rest"]), products)
    except FileNotFoundError as error:
        raise InputError(
            f"profile {path} does not exist; create it with lite-whisper profile --output {path}", setting="profile"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a profile; create one with lite-whisper profile", setting="profile") from error
