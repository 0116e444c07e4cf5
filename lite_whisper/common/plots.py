"""A plot as a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def saved_figure(path: Path, width: float = 6, height: float = 4) -> "Iterator[tuple[Figure, Axes]]":
    """
    Gives an empty figure and its axes, and writes it as PNG when the context ends.

    Args:
        path (`Path`): of the image; its suffix does not matter.
        width (`float`): in inches.
        height (`float`): in inches.
    """
    from matplotlib.figure import Figure  # not pyplot, which may open windows

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure, figure.subplots()
    figure.savefig(path, dpi=150, format="png")
