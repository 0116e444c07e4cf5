"""Plots written to image files."""

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
    Yields an empty figure and its axes, and writes the figure as PNG when the context exits.

    Args:
        path (`Path`): the image file, a PNG whatever its suffix.
        width (`float`, *optional*, defaults to 6): width in inches.
        height (`float`, *optional*, defaults to 4): height in inches.
    """
    from matplotlib.figure import Figure  # pyplot might open windows

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure, figure.subplots()
    figure.savefig(path, dpi=150, format="png")
