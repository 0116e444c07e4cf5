"""Draws recipes.png from the results of both recipes on the miniature: python docs/images/recipes.py"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
RECIPES = {"published": "published recipe (variance)", "loss-aware": "default recipe (loss-aware)"}

results = json.loads((HERE.parents[1] / "benchmarks/results/miniature-recipes.json").read_text())
rows = [row for row in results["rows"] if row["seed"] == 0]
sizes = [row["encoder parameters"] for row in rows]

figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
looks = (("#b3592d", "o", 6), ("#2d6bb3", "s", -19))
for (recipe, label), (colour, marker, height) in zip(RECIPES.items(), looks, strict=True):
    added = [row[recipe] for row in rows]
    below = [row[recipe] - row[f"{recipe} low"] for row in rows]
    above = [row[f"{recipe} high"] - row[recipe] for row in rows]
    axes.errorbar(sizes, added, (below, above), label=label, color=colour, marker=marker, capsize=4)
    for size, value in zip(sizes, added, strict=True):
        axes.annotate(f"{value:.2f}", (size, value), xytext=(8, height), textcoords="offset points", color=colour)
axes.set_xlabel("encoder parameters (millions; 5.07 before compression)")
axes.set_ylabel("word error added (points)")
uncompressed = results["figures"]["uncompressed"]
title = f"Miniature Whisper in noise of 8 dB; without compression it makes {uncompressed:.2f} %"
axes.set_title(title, fontsize="medium")
axes.set(xlim=(0.48, 1.12), ylim=(-3.5, 31))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "recipes.png", dpi=150)
