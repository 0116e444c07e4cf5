"""Times of one machine in, a cost for the allocation of ranks out."""

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
    What the encoder of one Whisper takes on one machine, in microseconds per window.

    Args:
        machine (`dict[str, Any]`): what was measured on, for people to read.
        stock (`float`): stock Whisper's encoder.
        rest (`float`): all but the projections, in the inference mode of LiteWhisper.
        products (`dict[tuple[int, int], dict[int | str, float]]`): from the `(in_features, out_features)` of a
            projection to the time at some ranks; the key `"dense"` stands for the dense product.
    """

    machine: dict[str, Any]
    stock: float
    rest: float
    products: dict[tuple[int, int], dict[int | str, float]]

    def cost(self, spectrum: Spectrum, rank: int | None) -> float:
        """
        Microseconds of a projection at a rank, or dense (None); between the ranks that were measured, a straight line.

        Raises:
            InputError: no projection of this size was measured.
        """
        times = self.products.get((spectrum.in_features, spectrum.out_features))
        if times is None:
            raise InputError(
                f"the profile has no projection of {spectrum.in_features} inputs and {spectrum.out_features} outputs: "
                "it is of another model; make one with lite-whisper profile for this model",
                setting="profile",
            )
        if rank is None:
            return times[DENSE]
        ranks = sorted(key for key in times if isinstance(key, int))
        return float(np.interp(rank, ranks, [times[key] for key in ranks]))

    def encoder(self, spectra: EncoderSpectra, ranks: Ranks) -> float:
        """Microseconds of the encoder at these ranks, in the inference mode."""
        return self.rest + total_cost(spectra, ranks, self.cost)

    def budget(self, speedup: float) -> float:
        """
        Microseconds for all projections together with which the encoder is so many times as fast as stock Whisper's.

        Raises:
            InputError: the rest of the encoder takes longer than that already.
        """
        budget = self.stock / speedup - self.rest
        if budget <= 0:
            raise InputError(
                f"a speed-up of {speedup:g} cannot be reached: attention and all else but the projections takes "
                f"{self.rest / self.stock:.0%} of the time, so ask for less than {self.stock / self.rest:.2f}",
                setting="target_speedup",
            )
        return budget

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        products = [
            {"in_features": shape[0], "out_features": shape[1], "microseconds": times}
            for shape, times in self.products.items()
        ]
        table = {"machine": self.machine, "stock": self.stock, "rest": self.rest, "products": products}
        with temporary_name(path) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")


def load_time_table(path: Path) -> TimeTable:
    """
    Reads what `TimeTable.save` wrote.

    Raises:
        InputError: the file is missing, or something else.
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
            f"there is no file {path}; lite-whisper profile --output {path} makes it", setting="profile"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no table of times; lite-whisper profile makes one", setting="profile") from error
