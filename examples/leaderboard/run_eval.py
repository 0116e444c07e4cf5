"""
Transcribe a dataset of the Open ASR leaderboard with a LiteWhisper, as a submission to the leaderboard.

    PYTHONPATH=open_asr_leaderboard python run_eval.py --model_id org/name --revision COMMIT \
        --dataset ami_cleaned --split test --device 0 --batch_size 1024

It requires the folder `normalizer` of github.com/huggingface/open_asr_leaderboard, which loads the dataset and writes
the manifest. The model is loaded as remote code, so lite-whisper need not be installed. Before timing starts, it finds
the largest batch that fits into memory, warms up with the longest clips, and checks if compiled decoding is faster.
"""

import argparse
import io
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from accelerate.utils import find_executable_batch_size
from datasets import Audio, Dataset
from kaldialign import batch_error_rate
from normalizer import data_utils
from tqdm import tqdm
from transformers import AutoModelForSpeechSeq2Seq, CompileConfig, WhisperProcessor

RATE = 16_000
PROMPT_LENGTH = 4  # tokens before the text: start, language, task, no timestamps


class Recognizer:
    """
    A model that transcribes batches of clips.

    Args:
        arguments (`argparse.Namespace`): arguments of the script.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        device = "cpu" if arguments.device < 0 else f"cuda:{arguments.device}"
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            arguments.model_id,
            revision=arguments.revision,
            dtype=getattr(torch, arguments.dtype),
            trust_remote_code=True,
        )
        self.model = model.to(device).eval()
        self.processor = WhisperProcessor.from_pretrained(arguments.model_id, revision=arguments.revision)
        multilingual = getattr(model.generation_config, "is_multilingual", False)
        self.speech = {"language": "en", "task": "transcribe"} if multilingual else {}
        self.max_length = model.config.max_target_positions
        self.batch_size = 1
        self.compiled: dict[str, Any] = {}
        print(f"Model size: {sum(p.numel() for p in model.parameters()) / 1e9:.2f}B parameters")

    def __call__(self, audios: Sequence[np.ndarray], min_new_tokens: int | None = None) -> tuple[list[str], float]:
        """Transcribes at most one batch of 16 kHz clips; returns the texts and the seconds from samples to text."""
        start = self.now()
        # The decoder is compiled for a fixed batch size.
        filler = [audios[-1]] * (self.batch_size - len(audios) if self.compiled else 0)
        features = self.processor.feature_extractor(
            [*audios, *filler], sampling_rate=RATE, return_tensors="pt", device=str(self.model.device)
        )
        tokens = self.model.generate(
            features.input_features.to(self.model.device, self.model.dtype),
            **self.speech,
            **self.compiled,
            num_beams=1,
            do_sample=False,
            max_length=self.max_length,  # missing from the settings of some published models
            min_new_tokens=min_new_tokens,
        )
        texts = self.processor.batch_decode(tokens[: len(audios)], skip_special_tokens=True)
        return texts, self.now() - start

    def now(self) -> float:
        """Current time in seconds, after the device has finished its work."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def prepare(self, longest: Sequence[np.ndarray], batch_size: int, steps: int, mode: str) -> None:
        """
        Chooses the batch size and whether to compile, and warms up.

        Args:
            longest (`Sequence[np.ndarray]`): the longest clips of the dataset; repeated to fill the batch.
            batch_size (`int`): largest batch size to try; reduced by a tenth each time memory runs out.
            steps (`int`): warm-up batches before the timed one.
            mode (`str`): mode of `torch.compile`, or `none`.
        """

        @find_executable_batch_size(starting_batch_size=batch_size)
        def find_largest_batch(size: int) -> list[np.ndarray]:
            self.batch_size = size
            if hasattr(self.model, "optimize_for_inference"):  # absent from a stock Whisper, used for comparison
                self.model.optimize_for_inference(batch_size=size)
            audios = list(itertools.islice(itertools.cycle(longest), size))
            self(audios, self.max_length - PROMPT_LENGTH - 1)  # the maximum memory of a batch
            return audios

        audios = find_largest_batch()
        modes: dict[str, dict[str, Any]] = {"eager": {}}
        if mode != "none":
            modes[mode] = {
                "cache_implementation": "static",
                "compile_config": CompileConfig(mode=mode, fullgraph=False),
            }
        seconds = {}
        for name, settings in modes.items():
            self.compiled = settings
            try:
                seconds[name] = [self(audios)[1] for _ in range(steps + 1)][-1]
            except torch.OutOfMemoryError:
                print(f"{name} runs out of memory at this batch size")
        fastest = min(seconds, key=seconds.__getitem__)
        self.compiled = modes[fastest]
        print(f"batch size {self.batch_size}, {fastest}; seconds per batch: {seconds}")


def decode(audio: dict[str, Any]) -> np.ndarray:
    """Decodes a clip of `datasets` to 16 kHz mono samples."""
    samples, rate = soundfile.read(io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"], dtype="float32")
    mono = samples.mean(axis=1) if samples.ndim > 1 else samples
    return soxr.resample(mono, rate, RATE) if rate != RATE else mono


def load(arguments: argparse.Namespace) -> Dataset:
    """Loads the scored clips of a dataset, longest first if it has a column of durations."""
    dataset = data_utils.prepare_data(data_utils.load_data(arguments)).cast_column("audio", Audio(decode=False))
    if arguments.max_eval_samples > 0:
        dataset = dataset.select(range(min(arguments.max_eval_samples, len(dataset))))
    return dataset.sort("audio_length_s", reverse=True) if "audio_length_s" in dataset.column_names else dataset


def transcribe(recognizer: Recognizer, dataset: Dataset, arguments: argparse.Namespace) -> dict[str, list]:
    """Transcribes the dataset; returns the columns of the manifest under the names used by the leaderboard."""
    extra_keys = data_utils.CHUNK_METADATA_KEYS if data_utils.is_chunked_dataset(arguments.dataset_path) else []
    names = ("references", "predictions", "audio_length", "transcription_time", "audio_filepaths", *extra_keys)
    columns: dict[str, list] = {name: [] for name in names}
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(decode, dataset[: arguments.batch_size]["audio"])
        size = min(arguments.batch_size, len(dataset))
        recognizer.prepare(list(decoded), size, arguments.warmup_steps, arguments.torch_compile)
        for start in tqdm(range(0, len(dataset), recognizer.batch_size)):
            rows = dataset[start : start + recognizer.batch_size]
            audios = list(pool.map(decode, rows["audio"]))
            texts, seconds = recognizer(audios)
            columns["references"] += rows["original_text"]
            columns["predictions"] += texts
            columns["audio_length"] += [len(audio) / RATE for audio in audios]
            columns["transcription_time"] += [seconds / len(audios)] * len(audios)
            columns["audio_filepaths"] += data_utils.extract_audio_filepaths_from_batch(rows, len(audios))
            for name in extra_keys:
                columns[name] += rows[name]
    return columns


def report(manifest: str, columns: dict[str, list]) -> None:
    """Prints the word error rate as computed by the leaderboard, and the real-time factor."""
    lines = data_utils.merge_chunked_manifest(data_utils.read_manifest(manifest))
    texts = ([tuple(data_utils.normalizer(line[name]).split()) for line in lines] for name in ("text", "pred_text"))
    rtfx = sum(columns["audio_length"]) / sum(columns["transcription_time"])
    print(f"WER: {100 * batch_error_rate(*texts, merge_compounds=True)['err_rate']:.2f} % RTFx: {rtfx:.2f}")
    print(f"manifest: {manifest}")


def main() -> None:
    """Writes the manifest of one dataset to the folder `results`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", required=True)
    parser.add_argument("--revision", help="commit of the model, whose code is executed")
    parser.add_argument("--dataset_path", default="hf-audio/open-asr-leaderboard")
    parser.add_argument("--dataset", required=True, help="configuration of the dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", type=int, default=-1, help="index of the GPU, or -1 for the CPU")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch_size", type=int, default=1024, help="largest batch size to try")
    parser.add_argument("--max_eval_samples", type=int, default=-1)
    parser.add_argument("--warmup_steps", type=int, default=2)
    parser.add_argument(
        "--torch_compile", default="reduce-overhead", metavar="MODE", help="mode of torch.compile, or none"
    )
    parser.set_defaults(streaming=False)  # the dataset is downloaded before timing starts
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    columns = transcribe(Recognizer(arguments), load(arguments), arguments)
    manifest = data_utils.write_manifest(
        columns["references"],
        columns["predictions"],
        arguments.model_id,
        arguments.dataset_path,
        arguments.dataset,
        arguments.split,
        audio_length=columns["audio_length"],
        transcription_time=columns["transcription_time"],
        audio_filepaths=columns["audio_filepaths"],
        extra_fields={name: columns[name] for name in data_utils.CHUNK_METADATA_KEYS if name in columns},
    )
    report(manifest, columns)


if __name__ == "__main__":
    main()
