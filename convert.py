"""The command line: compress the encoder of a Whisper and write a complete model folder."""

import argparse
import csv
import importlib.metadata
import logging
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lite_whisper.arguments import parse_arguments
from lite_whisper.audio import AudioDataset, Clip, feature_batches
from lite_whisper.common.errors import InputError, exit_code
from lite_whisper.common.files import check_output_folder, check_same, read_kept, temporary_name, unfinished, write_kept
from lite_whisper.common.processes import broadcast, is_main_process, join, num_processes, shard
from lite_whisper.common.tensor_files import Checkpoint
from lite_whisper.conversion.rewriting import merge, upgrade
from lite_whisper.conversion.saving import base_card, save_model_folder
from lite_whisper.conversion.sweep import plot_pareto
from lite_whisper.evaluation.decoding import transcribe
from lite_whisper.evaluation.word_error_rate import text_normalizer, word_error_rate
from lite_whisper.lowrank.allocation import (
    EncoderSpectra,
    Ranks,
    budget_ranks,
    discarded,
    threshold_ranks,
    threshold_ranks_within,
    total_cost,
)
from lite_whisper.lowrank.compression import compress, encoder_spectra
from lite_whisper.lowrank.moments import EncoderMoments, collect_moments
from lite_whisper.lowrank.sensitivity import Sensitivities, collect_sensitivities
from lite_whisper.lowrank.sequential import refit
from lite_whisper.lowrank.storage import load_moments, save_moments
from lite_whisper.lowrank.time_cost import load_time_table
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration
from lite_whisper.models.compression_json import public_name
from lite_whisper.models.folders import encoder_parameters, fingerprint, load_base_model, load_processor
from lite_whisper.models.published import PUBLISHED
from lite_whisper.publishing.command import destination, publish_folder
from lite_whisper.publishing.hub import check_destination
from lite_whisper.training.recovery import Recovery, recover

logger = logging.getLogger(__name__)


def calibration_settings(arguments: argparse.Namespace, weights: str) -> dict[str, Any]:
    """What decides the outcome of a calibration: the encoder, by its fingerprint, and the options."""
    return {
        "encoder_weights": weights,
        "datasets": arguments.dataset,
        "num_samples": arguments.num_samples,
        "noise": list(arguments.noise),
        "seed": arguments.seed,
        "dtype": arguments.dtype,
    }


class Calibration(NamedTuple):
    """
    What calibration found, and in which audio; sensitivities and the features of the audio where they are needed, of
    several processes each its share of these.
    """

    moments: EncoderMoments
    sensitivities: Sensitivities | None
    batches: list[torch.Tensor]
    origin: dict[str, Any]


def calibrate(
    arguments: argparse.Namespace,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    weights: str,
    path: Path | None,
    work: Path,
) -> Calibration:
    """
    Gathers what the recipe needs to know of the encoder; what the file at `path` holds is not computed again.

    The published recipe needs the moments alone and streams the audio. A part of what is computed is kept in `work`.
    """
    if path and path.is_dir():
        raise InputError(f"--moments {path} is a folder; name a file to keep the calibration in")
    streamed = arguments.recipe == "liteasr"
    settings = calibration_settings(arguments, weights)
    moments, sensitivities, origin = load_moments(path) if path and broadcast(path.exists()) else (None, None, settings)
    if arguments.dataset is None:
        settings = {**origin, "encoder_weights": weights}
    check_same(origin, settings, path or Path())
    if moments and streamed:
        return Calibration(moments, None, [], origin)
    audio = AudioDataset(arguments.dataset, seed=arguments.seed)
    extractor, windows = processor.feature_extractor, arguments.num_samples
    stream = shard(feature_batches(audio, extractor, windows, arguments.batch_size, arguments.noise, arguments.seed))
    batches = [] if streamed else list(stream)
    windows = math.ceil(windows / num_processes()) if streamed else sum(map(len, batches))
    if moments is None:
        part = Checkpoint(work / "part_of_moments", settings | {"batch_size": arguments.batch_size})
        moments = collect_moments(model, stream if streamed else batches, windows, part)
        origin = {**settings, "frames": moments[0]["q_proj"].count, "skipped": audio.skipped}
        if path and is_main_process():
            save_moments(moments, path, origin)
    if not streamed and sensitivities is None:
        part = Checkpoint(work / "part_of_sensitivities", settings | {"batch_size": arguments.batch_size})
        sensitivities = collect_sensitivities(model, batches, arguments.seed, windows, checkpoint=part)
        if path and is_main_process():
            save_moments(moments, path, origin, sensitivities)
    if audio.skipped:
        logger.warning("skipped %d clips that could not be read", len(audio.skipped))
    return Calibration(moments, sensitivities, batches, origin)


def measure(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: Sequence[Clip],
    arguments: argparse.Namespace,
    stored_dtype: torch.dtype,
) -> dict[str, float]:
    """Sizes of a model and, where there are clips, its word error rate and encoder time, both in the inference mode."""
    figures: dict[str, float] = {
        "encoder_parameters": encoder_parameters(model),
        "total_parameters": model.num_parameters(),
        "weight_bytes": model.num_parameters() * stored_dtype.itemsize,
    }
    if clips:
        if isinstance(model, LiteWhisperForConditionalGeneration):
            model.optimize_for_inference(batch_size=arguments.batch_size)
        transcripts = transcribe(model, processor, clips, arguments.batch_size)
        if isinstance(model, LiteWhisperForConditionalGeneration):
            model.optimize_for_inference(False)
        normalize = text_normalizer(arguments.normalizer, processor.tokenizer)
        figures["word_error_rate"] = word_error_rate([clip.text or "" for clip in clips], transcripts.texts, normalize)
        figures["encoder_milliseconds"] = transcripts.encoder_time.milliseconds_per_window
    return figures


def print_report(before: dict[str, float], after: dict[str, float]) -> None:
    """Prints the figures of both models as a table."""
    rows = {
        "encoder parameters": ("encoder_parameters", 1e6, "M"),
        "total parameters": ("total_parameters", 1e6, "M"),
        "weights on disk": ("weight_bytes", 1e6, "MB"),
        "word error rate": ("word_error_rate", 1, "%"),
        "encoder, per window": ("encoder_milliseconds", 1, "ms"),
    }
    print(f"\n{'':20}{'before':>14}{'after':>14}{'after/before':>14}")
    for label, (key, unit, name) in rows.items():
        if key in before:
            ratio = f"{after[key] / before[key]:13.1%}" if before[key] else f"{'-':>13}"
            print(f"{label:20}{before[key] / unit:11.2f} {name:<2}{after[key] / unit:11.2f} {name:<2} {ratio}")


def encoder_budget(arguments: argparse.Namespace, parameters: int, positions: int) -> int:
    """
    How many parameters the encoder may have.

    Args:
        arguments (`argparse.Namespace`): from `parse_arguments`.
        parameters (`int`): that it has now.
        positions (`int`): how many of them are position embeddings, which the published sizes leave out.
    """
    if arguments.encoder_params:
        return arguments.encoder_params
    if arguments.ratio:
        return int(arguments.ratio * parameters)
    preset = arguments.preset or "plain"
    published = PUBLISHED.get(Path(arguments.model).name)
    if published:
        return int(published[preset][0] * 1e6) + positions
    large = PUBLISHED["whisper-large-v3"]
    return int(large[preset][0] / large[""][0] * (parameters - positions)) + positions


def prepare(
    arguments: argparse.Namespace, work: Path
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor, Path, torch.dtype, Calibration]:
    """The model and its processor, the folder of its files, the dtype in which it is stored, and its calibration."""
    model, base_folder = load_base_model(arguments.model)
    processor = load_processor(base_folder)
    weights, stored_dtype = fingerprint(model), model.dtype
    model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))  # type: ignore[call-arg]
    path = arguments.moments or (None if arguments.recipe == "liteasr" else work / "moments.safetensors")
    calibration = calibrate(arguments, model, processor, weights, path, work)
    if torch.promote_types(model.dtype, stored_dtype) != model.dtype:
        # Calibration may be rough, the result may not.
        model = load_base_model(arguments.model)[0].to(arguments.device)
    return model, processor, base_folder, stored_dtype, calibration


def clips_to_transcribe(arguments: argparse.Namespace) -> list[Clip]:
    """The clips of `--evaluate`, which must have transcripts."""
    clips = list(AudioDataset(arguments.evaluate)) if arguments.evaluate else []
    if not all(clip.text for clip in clips):
        raise InputError("--evaluate needs transcripts: a folder with metadata.csv, or a dataset with a text column")
    return clips


def projections_budget(model: WhisperForConditionalGeneration, spectra: EncoderSpectra, budget: int) -> int:
    """What the projections may cost where the whole encoder may have `budget` parameters."""
    return budget - encoder_parameters(model) + int(total_cost(spectra, [{} for _ in spectra]))


def ranks_by_time(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, spectra: EncoderSpectra, parameters: int
) -> tuple[Ranks, dict[str, Any]]:
    """
    Ranks that lose least within a time: that of `--target-speedup`, or what so many parameters of the encoder take.

    Returns:
        The ranks, and what there is to say of them.
    """
    table, multiple = load_time_table(arguments.profile), arguments.rank_multiple
    if arguments.target_speedup:
        budget = table.budget(arguments.target_speedup)
    else:
        by_parameters = budget_ranks(spectra, projections_budget(model, spectra, parameters), multiple)
        budget = total_cost(spectra, by_parameters, table.cost)
    ranks = budget_ranks(spectra, budget, multiple, table.cost)
    speedup = table.stock / table.encoder(spectra, ranks)
    print(f"speed-up of the encoder in the inference mode, by the profile: {speedup:.2f}")
    account = {"cost": "time", "predicted_speedup": round(speedup, 3), "profiled_on": table.machine}
    if arguments.target_speedup:
        change = total_cost(spectra, ranks) - total_cost(spectra, [{} for _ in spectra])
        account["target_speedup"] = arguments.target_speedup
        account["encoder_parameters"] = encoder_parameters(model) + int(change)
    return ranks, account


def compress_liteasr(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, calibration: Calibration
) -> tuple[LiteWhisperForConditionalGeneration, dict[str, Any]]:
    """The published recipe; returns the model and what there is to say of it."""
    spectra = encoder_spectra(model, calibration.moments)
    ranks = threshold_ranks(spectra, arguments.thresholds, arguments.rank_multiple)
    return compress(model, calibration.moments, ranks), {
        "recipe": {"name": "liteasr", "thresholds": arguments.thresholds, "rank_multiple": arguments.rank_multiple},
        "calibration": calibration.origin,
        "variance_kept": [
            {
                projection: spectrum.share(of_layer[projection]) if projection in of_layer else 1.0
                for projection, spectrum in spectra_of_layer.items()
            }
            for spectra_of_layer, of_layer in zip(spectra, ranks, strict=True)
        ],
    }


def compress_loss_aware(
    arguments: argparse.Namespace, model: WhisperForConditionalGeneration, calibration: Calibration, work: Path
) -> tuple[LiteWhisperForConditionalGeneration, dict[str, Any]]:
    """The default recipe: errors in units of the loss, one budget, sequential refit."""
    moments, sensitivities, batches, origin = calibration
    assert sensitivities is not None
    spectra = encoder_spectra(model, moments, sensitivities)
    parameters = encoder_parameters(model)
    budget = encoder_budget(arguments, parameters, model.get_encoder().embed_positions.weight.numel())
    if budget >= parameters and not arguments.target_speedup:
        logger.warning("the encoder has %d parameters and may keep %d: nothing is compressed", parameters, budget)
    recipe = {"name": "loss-aware", "encoder_parameters": budget, "rank_multiple": arguments.rank_multiple}
    if arguments.cost == "time":
        ranks, of_time = ranks_by_time(arguments, model, spectra, budget)
        recipe |= of_time
    else:
        ranks = budget_ranks(spectra, projections_budget(model, spectra, budget), arguments.rank_multiple)
    frames = model.config.max_source_positions
    return refit(model, batches, ranks, sensitivities, folder=work / "layers", origin=origin), {
        "recipe": recipe,
        "calibration": {**origin, "languages": dict(sensitivities.languages.most_common())},
        # in nats per window of audio
        "predicted_loss": [
            {projection: frames / 2 * loss for projection, loss in of_layer.items()}
            for of_layer in discarded(spectra, ranks)
        ],
    }


def convert(arguments: argparse.Namespace) -> None:
    """Compresses the model that the arguments name and writes the result."""
    clips = clips_to_transcribe(arguments)
    with unfinished(arguments.output, is_main_process()) as work:
        model, processor, base_folder, stored_dtype, calibration = prepare(arguments, work)
        if arguments.recipe == "liteasr":
            lite, account = compress_liteasr(arguments, model, calibration)
        else:
            lite, account = compress_loss_aware(arguments, model, calibration, work)
        if arguments.recover and any(lite.config.low_rank_config):
            account["recovery"] = recover(
                lite.float(),
                model.float(),
                processor.feature_extractor,
                AudioDataset(arguments.dataset, seed=arguments.seed),
                arguments.num_samples,
                work / "recovery",
                Recovery(minutes=arguments.recover, noise=arguments.noise, seed=arguments.seed),
                {"recipe": account["recipe"], "calibration": account["calibration"]},
            )
            model.to(arguments.device)  # type: ignore[arg-type]
        before = measure(model, processor, clips, arguments, stored_dtype)
        after = measure(lite, processor, clips, arguments, stored_dtype)
        if not is_main_process():
            return
        lite.to(dtype=stored_dtype)  # type: ignore[call-arg]
        origin = account["calibration"]
        report = {
            "base_model": public_name(arguments.model),
            "base_card": base_card(base_folder),
            **account,
            "calibration": {**origin, "datasets": [public_name(source) for source in origin["datasets"]]},
            "low_rank_config": lite.config.low_rank_config,
            "evaluation": {
                "datasets": [public_name(source) for source in arguments.evaluate or []],
                "normalizer": arguments.normalizer,
            },
            "before": before,
            "after": after,
            "versions": {
                name: importlib.metadata.version(name) for name in ("lite-whisper", "torch", "transformers", "numpy")
            },
        }
        save_model_folder(lite, base_folder, arguments.output, report)
    print_report(before, after)
    print(f"\nwritten to {arguments.output} (what was done: compression.json, the ranks: ranks.png)")


def sweep(arguments: argparse.Namespace) -> None:
    """Measures both recipes at several sizes, from one calibration, and writes a table and a plot."""
    clips = clips_to_transcribe(arguments)
    with unfinished(arguments.output, is_main_process()) as work:
        model, processor, _, stored_dtype, calibration = prepare(arguments, work)
        moments, sensitivities, batches, origin = calibration
        assert sensitivities is not None
        variances, losses = encoder_spectra(model, moments), encoder_spectra(model, moments, sensitivities)
        settings = {
            **origin,
            **{name: getattr(arguments, name) for name in ("evaluate", "normalizer", "rank_multiple")},
        }
        kept = work / "sweep.json"
        beginning: dict[str, Any] = {"settings": settings, "rows": []}
        table = broadcast(read_kept(kept) if is_main_process() and kept.exists() else beginning)
        check_same(table["settings"], settings, kept)
        rows = table["rows"]

        def add(recipe: str, ratio: float, build: Callable[[], WhisperForConditionalGeneration]) -> None:
            if not any((row["recipe"], row["ratio"]) == (recipe, ratio) for row in rows):
                figures = measure(build(), processor, clips, arguments, stored_dtype)
                rows.append({"recipe": recipe, "ratio": ratio, **figures})
                if is_main_process():
                    write_kept(kept, table)

        add("uncompressed", 1.0, lambda: model)
        for ratio in arguments.sweep:
            budget = projections_budget(model, losses, int(ratio * encoder_parameters(model)))
            published = threshold_ranks_within(variances, budget, arguments.rank_multiple)
            add("liteasr", ratio, partial(compress, model, moments, published))
            ranks = budget_ranks(losses, budget, arguments.rank_multiple)
            layers = work / f"layers-{ratio}"
            add("loss-aware", ratio, partial(refit, model, batches, ranks, sensitivities, folder=layers, origin=origin))
        if not is_main_process():
            return
        wanted = [row for row in rows if row["ratio"] in (1.0, *arguments.sweep)]
        with temporary_name(arguments.output) as temporary:
            temporary.mkdir()
            with (temporary / "sweep.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, wanted[0])
                writer.writeheader()
                writer.writerows(wanted)
            plot_pareto(wanted, temporary / "pareto.png")
    print(f"\n{'recipe':14}{'ratio':>8}{'encoder':>13}{'word error rate':>18}")
    for row in wanted:
        size, rate = row["encoder_parameters"] / 1e6, row["word_error_rate"]
        print(f"{row['recipe']:14}{row['ratio']:8.2f}{size:11.2f} M{rate:16.2f} %")
    print(f"\nwritten to {arguments.output} (sweep.csv, pareto.png)")


def run(arguments: argparse.Namespace) -> None:
    """Does what the arguments ask for, once the output is known to be writable."""
    source = arguments.model or arguments.merge or arguments.upgrade
    if arguments.profile:
        load_time_table(arguments.profile)  # what is wrong with it should be known before the calibration
    check_output_folder(arguments.output, arguments.overwrite, "sweep.csv" if arguments.sweep else "config.json")
    if arguments.output.resolve() == Path(source).resolve():
        raise InputError(f"--output is {source} itself; choose another folder")
    if arguments.push_to_hub and not arguments.dry_run:
        check_destination(destination(arguments, arguments.push_to_hub))
    arguments.device = join(arguments.device)
    if arguments.model:
        sweep(arguments) if arguments.sweep else convert(arguments)
    if not is_main_process():
        return
    if not arguments.model:
        if arguments.merge:
            merge(arguments.merge, arguments.output)
        else:
            upgrade(arguments.upgrade, arguments.base_model, arguments.output)
        print(f"written to {arguments.output}")
    if arguments.push_to_hub:
        publish_folder(arguments, arguments.output, arguments.push_to_hub)


def main(argv: Sequence[str] | None = None, program: str = "convert.py") -> int:
    """Runs the command line; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    arguments = parse_arguments(argv, program)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
