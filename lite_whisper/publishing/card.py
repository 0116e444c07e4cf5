"""Renders model cards from `compression.json` and evaluation manifests."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..common.errors import InputError
from ..common.files import read_json, temporary_name
from ..evaluation.report import Evaluation, Result, differences, eval_results, figures, score
from ..models.compression_json import COMPRESSION, read_compression
from ..models.folders import CARD

TEMPLATE = Path(__file__).parent / "card_template.md"
TAGS = ["lite-whisper", "whisper", "low-rank", "audio", "speech"]
EVALUATION = "evaluation.json"

Data = dict[str, Any]
"""Contents of a JSON file."""


def write_card(folder: Path, name: str) -> None:
    """Renders and writes the card of a model folder; `name` is a Hub id or the name of the folder."""
    with temporary_name(folder / CARD) as temporary:
        rendered_card(folder, name).save(temporary)


def is_rendered(folder: Path) -> bool:
    """Whether the card of a model folder is unchanged since `write_card`, so that it can be rendered again."""
    text = (folder / CARD).read_text(encoding="utf-8")
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "")
    return text.strip() == str(rendered_card(folder, title)).strip()


def rendered_card(folder: Path, name: str) -> ModelCard:
    """
    Renders the card of a model folder.

    Raises:
        InputError: `compression.json` or `evaluation.json` is missing or invalid.
    """
    data = card_data(folder)
    try:
        return render_card(name, *data)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, jinja2.TemplateError) as error:
        raise InputError(
            f"cannot render a model card from {COMPRESSION} and {EVALUATION} in {folder} ({error}); copy both files "
            "from the original model folder"
        ) from error


def card_data(folder: Path) -> tuple[Data, Data | None]:
    """
    Reads `compression.json` and, if it exists, `evaluation.json`.

    Raises:
        InputError: `compression.json` is missing, or a file is damaged.
    """
    compression = read_compression(folder)
    evaluation_file = folder / EVALUATION
    evaluation = read_json(evaluation_file, "evaluate and publish again") if evaluation_file.exists() else None
    if compression is None:
        raise InputError(
            f"{folder} has no {COMPRESSION}, from which model cards are rendered; write its README.md by hand"
        )
    return compression, evaluation


def write_evaluation(
    folder: Path, manifests: Sequence[Path], encoder_weights: str, scoring: str = "plain", note: str = ""
) -> None:
    """
    Writes the figures of manifests to `evaluation.json`, without references and transcripts.

    Args:
        folder (`Path`): the model folder.
        manifests (`Sequence[Path]`):
            Manifests of the model and of the models to compare it with; differences are relative to the first model.
        encoder_weights (`str`): the model's `fingerprint`, which identifies its own manifests.
        scoring (`str`, *optional*, defaults to `"plain"`): how word errors are counted, one of `SCORINGS`.
        note (`str`, *optional*): a remark on the datasets for the readers of the card.

    Raises:
        InputError: none of the manifests belongs to this model.
    """
    evaluations = score(manifests, scoring)
    own = {e.result.model for e in evaluations if e.settings["encoder_weights"] == encoder_weights}
    if len(own) != 1:
        raise InputError(
            f"the manifests contain {len(own) or 'no'} models with the weights of {folder}, not one; evaluate that "
            "folder and give its manifests"
        )
    data = {
        "model": own.pop(),
        "encoder_parameters": {e.result.model: e.settings["encoder_parameters"] for e in evaluations},
        "scoring": scoring,
        "note": note,
        "normalizer": _normalizers(evaluations),
        "results": [asdict(e.result) for e in evaluations],
        "differences": [
            {"model": result.model, "base": base.model, "dataset": result.dataset, **difference._asdict()}
            for result, base, difference in differences(evaluations)
        ],
    }
    with temporary_name(folder / EVALUATION) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def _normalizers(evaluations: Sequence[Evaluation]) -> str:
    """The name of the normalizer; if datasets use different ones, each name with its datasets."""
    normalizers: dict[str, str] = {}
    for e in evaluations:
        name, dataset = e.settings["normalizer"], e.result.dataset
        if normalizers.setdefault(dataset, name) != name:
            raise InputError(f"the manifests of {dataset} use different normalizers; give manifests made with one")
    sets = {name: [key for key, used in normalizers.items() if used == name] for name in normalizers.values()}
    if len(sets) == 1:
        return next(iter(sets))
    return " and ".join(f"{name} ({', '.join(datasets)})" for name, datasets in sets.items())


def render_card(name: str, compression: Data, evaluation: Data | None = None) -> ModelCard:
    """
    Renders a model card.

    Args:
        name (`str`): Hub id or folder from which the model is loaded.
        compression (`dict`):
            Contents of `compression.json`; base model, recipe and calibration suffice for a planned conversion.
        evaluation (`dict`, *optional*): contents of `evaluation.json`.
    """
    base, base_card = compression["base_model"], compression.get("base_card", {})
    sources = compression.get("calibration", {}).get("datasets", [])
    results = [Result(**result) for result in evaluation["results"]] if evaluation else []
    own = own_results(evaluation) if evaluation else []
    measured = eval_results(figure for r in own for figure in figures(r)) or _conversion_result(compression)
    metadata = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        base_model_relation="quantized" if _is_hub_id(base) else None,  # the Hub's closest term for a smaller model
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        license=base_card.get("license"),
        language=base_card.get("language"),
        datasets=list(dict.fromkeys(each.split(":")[0] for each in sources if _is_hub_id(each))) or None,
        metrics=["wer"] if measured else None,
        tags=TAGS,
        model_name=name.split("/")[-1] if measured else None,
        eval_results=measured or None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=name,
        compression=compression,
        command=recipe_command(name, compression),
        evaluation=evaluation,
        table=_table(name, evaluation, results),
    )


def own_results(evaluation: Data) -> list[Result]:
    """The results of the model itself in `evaluation.json`."""
    return [Result(**result) for result in evaluation["results"] if result["model"] == evaluation["model"]]


def _is_hub_id(source: str) -> bool:
    return "/" in source


def _conversion_result(compression: Data) -> list[EvalResult]:
    """The word error rate measured by the conversion, if it evaluated exactly one dataset."""
    measured = compression.get("evaluation", {}).get("datasets", [])
    if len(measured) != 1:
        return []
    return eval_results([(measured[0], "wer", compression["after"]["word_error_rate"])])


def recipe_command(name: str, compression: Data) -> str | None:
    """The command that reproduces a compression; None if the recipe or calibration is unknown."""
    recipe, calibration = compression.get("recipe"), compression.get("calibration")
    if not recipe or not calibration:
        return None
    size = ["--encoder-params", str(recipe.get("encoder_parameters"))]
    if recipe.get("cost") == "time":
        size = ["--target-speedup", str(recipe["target_speedup"])] if "target_speedup" in recipe else size
        size += ["--cost", "time", "--profile", "profile.json"]
    if recipe["name"] == "liteasr":
        size = ["--recipe", "liteasr", "--thresholds", ":".join(map(str, recipe["thresholds"]))]
    options = {
        "--rank-multiple": recipe["rank_multiple"],
        "--num-windows": calibration["num_windows"],
        "--noise": ":".join(f"{level:g}" for level in calibration["noise"]) or "none",
        "--seed": calibration["seed"],
        "--dtype": calibration["dtype"],
        "--output": name.split("/")[-1],
    }
    words = ["lite-whisper", "convert", "--base-model", compression["base_model"], *size, "--dataset"]
    words += [*calibration["datasets"], *(str(word) for pair in options.items() for word in pair)]
    recovery = compression.get("recovery", {})
    if recovery and "datasets" not in recovery:  # otherwise recovered later by `lite-whisper recover`
        words += ["--recover", f"{recovery['minutes']:g}"]
    if compression.get("constant_padding"):
        words.append("--constant-padding")
    return " ".join(map(shlex.quote, words))


def _table(name: str, evaluation: Data | None, results: Sequence[Result]) -> list[list[str]]:
    """Table of word error rates with a row per dataset and a column per model, including the header."""
    if evaluation is None:
        return []
    models, sets = (list(dict.fromkeys(getattr(r, field) for r in results)) for field in ("model", "dataset"))
    rates = {(r.dataset, r.model): r.wer for r in results}
    titles = [name if model == evaluation["model"] else model for model in models]
    sizes = [f"{evaluation['encoder_parameters'][model] / 1e6:.2f} M" for model in models]
    rows = [["set", *titles], ["encoder parameters", *sizes]]
    rows += [[each, *(f"{rates[each, m]:.2f}" if (each, m) in rates else "" for m in models)] for each in sets]
    if len(sets) > 1 and len(rates) == len(models) * len(sets):
        rows.append(["mean", *(f"{np.mean([rates[each, m] for each in sets]):.2f}" for m in models)])
    return rows
