"""Draws recipes.png from the table of both recipes in docs/results/miniature.md: python docs/images/recipes.py"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
NUMBERS = r"(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)"  # added errors and their interval
ROW = rf"^\| ([\d.]+) M \(\d+ %\) \| 0 \| {NUMBERS} \| {NUMBERS} \|$"
RECIPES = {"published recipe (variance)": 1, "default recipe (loss-aware)": 4}

table = (HERE.parent / "results/miniature.md").read_text()
rows = [tuple(map(float, row)) for row in re.findall(ROW, table, flags=re.MULTILINE)]
assert len(rows) == 3

figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
looks = (("#b3592d", "o", 6), ("#2d6bb3", "s", -19))
for (label, column), (colour, marker, height) in zip(RECIPES.items(), looks, strict=True):
    sizes, added = [row[0] for row in rows], [row[column] for row in rows]
    below = [row[column] - row[column + 1] for row in rows]
    above = [row[column + 2] - row[column] for row in rows]
    axes.errorbar(sizes, added, (below, above), label=label, color=colour, marker=marker, capsize=4)
    for size, value in zip(sizes, added, strict=True):
        axes.annotate(f"{value:.2f}", (size, value), xytext=(8, height), textcoords="offset points", color=colour)
axes.set_xlabel("encoder parameters (millions; 5.07 before compression)")
axes.set_ylabel("word error added (points)")
axes.set_title("Miniature Whisper in noise of 8 dB; without compression it makes 10.80 %", fontsize="medium")
axes.set(xlim=(0.48, 1.12), ylim=(-3.5, 31))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "recipes.png", dpi=150)
