"""The command `lite-whisper recover`."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from ..arguments import NOISE, device_name, noise_range, positive
from ..audio import AudioDataset
from ..common.errors import InputError, exit_code
from ..common.files import check_output_folder, unfinished
from ..common.processes import is_main_process, join
from ..conversion.saving import save_model_folder
from ..models.compression_json import COMPRESSION, public_name
from ..models.folders import base_model_of, fingerprint, load_base_model, load_compressed_model, load_processor
from .recovery import Recovery, recover


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The arguments of `lite-whisper recover`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train the low-rank factors of a compressed model to agree with the model before compression, on "
        "audio without transcripts.",
    )
    parser.add_argument("model", help="Hub id or folder of the compressed model")
    parser.add_argument("--teacher", help="the Whisper that it was made from (default: the one it names)")
    parser.add_argument("--dataset", nargs="+", action="extend", required=True, help="audio, as in convert")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder at --output")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=Recovery.minutes, help="that it may take (default 10)")
    length.add_argument("--steps", type=positive, help="instead of a time")
    parser.add_argument("--num-samples", type=positive, default=100, help="windows of audio (default 100)")
    parser.add_argument("--noise", type=noise_range, default=NOISE, metavar="LOW:HIGH", help="as in convert")
    parser.add_argument("--seed", type=int, default=0, help="of the samples, the noise and their order (default 0)")
    parser.add_argument("--batch-size", type=positive, default=Recovery.batch_size, help="windows per step (default 8)")
    parser.add_argument("--learning-rate", type=float, default=Recovery.learning_rate)
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe (autocast)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Recovers the model that the arguments name and writes the result."""
    check_output_folder(arguments.output, arguments.overwrite)
    if arguments.output.resolve() == Path(arguments.model).resolve():
        raise InputError(f"--output is {arguments.model} itself; choose another folder")
    student, files = load_compressed_model(arguments.model)
    teacher_name = arguments.teacher or base_model_of(arguments.model)
    teacher, teacher_files = load_base_model(teacher_name)
    stored_dtype = student.dtype
    report = json.loads((files / COMPRESSION).read_text()) if (files / COMPRESSION).exists() else {}
    origin = {"student": fingerprint(student), "teacher": fingerprint(teacher), "num_samples": arguments.num_samples}
    origin["datasets"] = [public_name(source) for source in arguments.dataset]
    settings = Recovery(
        steps=arguments.steps,
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        noise=arguments.noise,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    student.float().to(join(arguments.device))  # type: ignore[arg-type]
    teacher.float()
    with unfinished(arguments.output, is_main_process()) as work:
        recovery = recover(
            student,
            teacher,
            load_processor(teacher_files).feature_extractor,
            AudioDataset(arguments.dataset, seed=arguments.seed),
            arguments.num_samples,
            work,
            settings,
            origin,
            arguments.bf16,
        )
        if not is_main_process():
            return
        student.to(dtype=stored_dtype)  # type: ignore[call-arg]
        report = {
            "base_model": public_name(teacher_name),
            "low_rank_config": student.config.low_rank_config,
            **report,
            "recovery": {**recovery, "datasets": origin["datasets"], "num_samples": arguments.num_samples},
        }
        save_model_folder(student, files, arguments.output, report)
    print(f"loss on the audio held out: {recovery['loss_before']:.4f} before, {recovery['loss_after']:.4f} after")
    print(f"written to {arguments.output}")


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper recover") -> int:
    """Runs `lite-whisper recover`; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    arguments = parse_arguments(argv, program)
    with logging_redirect_tqdm():
        return exit_code(lambda: run(arguments))
