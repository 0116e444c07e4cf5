"""
Takes what is known of finished models into their cards in `model_cards/`.

    python benchmarks/cards.py FOLDER... --manifests MANIFEST... [--note TEXT]

FOLDER is a model as `lite-whisper convert` or `family` has written it, called as its card is. A MANIFEST is one that
`lite-whisper evaluate` has written, those of the base model first, of every FOLDER at least one. `compression.json`,
`ranks.png`, `evaluation.json` and the card are written into `model_cards/`, and all figures with what they were
measured by into `benchmarks/results/cards-BASE.json`. A note stands below the error rates: what the reader has to know
of the sets.
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
    """The commands that measure again what manifests with these settings hold: one for each language."""
    by_language: dict[str, list[dict[str, Any]]] = {}
    for each in settings:
        by_language.setdefault(each["generation"]["language"] or "", []).append(each)
    return " && ".join(evaluation_command(each) for each in by_language.values())


def evaluation_command(settings: list[dict[str, Any]]) -> str:
    """The command for manifests in one language."""
    models, sets = (list(dict.fromkeys(each[name] for each in settings)) for name in ("model", "dataset"))
    words = ["lite-whisper", "evaluate", *models, "--dataset", *sets]
    for name in ("device", "dtype", "batch_size", "normalizer"):
        words += [f"--{name.replace('_', '-')}", str(settings[0][name])]
    if language := settings[0]["generation"]["language"]:
        words += ["--language", language]
    return shlex.join(words)


def main() -> None:
    """Writes cards and results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--manifests", nargs="+", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--note", default="", metavar="TEXT")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        card = CARDS / folder.name
        for name in (COMPRESSION, RANKS):
            shutil.copyfile(folder / name, card / name)
        write_evaluation(
            card, arguments.manifests, fingerprint(load_compressed_model(str(folder))[0]), note=arguments.note
        )
        write_card(card, card.name)
    _, evaluation = card_data(card)  # each holds the figures of all
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
