"""
Copies the measurements of finished models into their cards in `model_cards/`.

    python benchmarks/cards.py FOLDER... --manifests MANIFEST... [--note TEXT]

Each FOLDER is a model written by `lite-whisper convert` or `convert-presets` and has the same name as its card. Each
MANIFEST was written by `lite-whisper evaluate`; list the manifests of the base model first, and at least one for every
FOLDER. `compression.json`, `ranks.png`, `evaluation.json` and the card are written to `model_cards/`, and all figures,
with the command that measured them, to `benchmarks/results/cards-BASE.json`. The note appears below the error rates and
tells readers what they should know about the test sets.
"""

import argparse
import shlex
import shutil
from pathlib import Path
from typing import Any

from record import ROOT, write_results
from render import RESULTS

from lite_whisper.evaluation.manifest import read_settings
from lite_whisper.models.compression_json import COMPRESSION
from lite_whisper.models.folders import fingerprint, load_compressed_model
from lite_whisper.publishing.card import card_data, write_card, write_evaluation

CARDS = ROOT / "model_cards"
RANKS = "ranks.png"
UNITS = {
    **{"wer": "%", "cer": "%", "substitutions": "words", "deletions": "words", "insertions": "words", "words": "words"},
    **{"rtfx": "s/s", "encoder_seconds": "s", "decoder_seconds": "s", "peak_memory": "B", "fallbacks": "utterances"},
    "audio_seconds": "s",
}


def evaluation_commands(settings: list[dict[str, Any]]) -> str:
    """Returns the commands that reproduce manifests with these settings, one per language."""
    by_language: dict[str, list[dict[str, Any]]] = {}
    for manifest in settings:
        by_language.setdefault(manifest["generation"]["language"] or "", []).append(manifest)
    return " && ".join(evaluation_command(manifests) for manifests in by_language.values())


def evaluation_command(settings: list[dict[str, Any]]) -> str:
    """Returns the command that reproduces manifests in a single language."""
    models, sets = (list(dict.fromkeys(manifest[name] for manifest in settings)) for name in ("model", "dataset"))
    words = ["lite-whisper", "evaluate", *models, "--dataset", *sets]
    for name in ("device", "dtype", "batch_size", "normalizer"):
        words += [f"--{name.replace('_', '-')}", str(settings[0][name])]
    if language := settings[0]["generation"]["language"]:
        words += ["--language", language]
    return shlex.join(words)


def main() -> None:
    """Writes the cards and the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders of the models")
    parser.add_argument("--manifests", nargs="+", type=Path, required=True, metavar="MANIFEST", help="their manifests")
    parser.add_argument("--note", default="", metavar="TEXT", help="text below the error rates")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        card = CARDS / folder.name
        for name in (COMPRESSION, RANKS):
            shutil.copyfile(folder / name, card / name)
        write_evaluation(
            card, arguments.manifests, fingerprint(load_compressed_model(str(folder))[0]), note=arguments.note
        )
        write_card(card, card.name)
    _, evaluation = card_data(card)  # every card holds the figures of all models
    assert evaluation is not None
    settings = list(map(read_settings, arguments.manifests))
    figures = {
        f"{difference['model']} on {difference['dataset']}: {name} above the base model": difference[name]
        for difference in evaluation["differences"]
        for name in ("points", "low", "high")
    }
    units = UNITS | dict.fromkeys(figures, "points")
    path = RESULTS / f"cards-{settings[0]['base_model'].split('/')[-1]}.json"
    write_results(evaluation["results"], path, units, figures, evaluation_commands(settings))


if __name__ == "__main__":
    main()
