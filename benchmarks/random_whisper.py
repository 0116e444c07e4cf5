"""
Two folders of a Whisper with random weights, to time whole transcriptions of models that are not at hand.

    python benchmarks/random_whisper.py --shape turbo --processor FOLDER --output FOLDER [--size fast] [--tokens 40]

Writes a stock Whisper into `stock`, and one with the ranks of a published size and constant padding into `compressed`;
processor and settings are those of a Whisper in the folder given, languages included. Whatever it hears, in any
runtime, such a model writes the same text of so many tokens: its decoder follows the positions, whose embeddings are
ten times the usual size, and the last position alone calls for the end. So `benchmarks/runtimes.py` and
`benchmarks/transcription_profile.py` time the same work in each, and error rates mean nothing.
"""

import argparse
from pathlib import Path

import torch
from encoder_speed import SHAPES, SIZES, published_ranks, whisper_arguments
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from lite_whisper.configuration_lite_whisper import LiteWhisperConfig
from lite_whisper.lowrank.padding import MARGIN, RANK
from lite_whisper.modeling_lite_whisper import LiteWhisperForConditionalGeneration

PROMPT = 4  # start, language, task, no times
PADDING = {"rank": RANK, "margin": MARGIN, "enabled": True}  # as `lite-whisper pad` learns it


@torch.no_grad()
def write_end(model: WhisperForConditionalGeneration, tokens: int) -> None:
    """Makes the decoder write so many tokens after its prompt, then the end of the text."""
    decoder, end = model.model.decoder, model.generation_config.eos_token_id
    positions = decoder.embed_positions.weight
    positions.normal_(std=10 * model.config.init_std)
    direction = torch.zeros_like(positions[0])
    direction[0] = 1
    positions[:, 0] = 0
    positions[PROMPT + tokens - 1] = 1000 * direction
    decoder.embed_tokens.weight[end:] = 0  # a time among the words would make transformers go on from there
    decoder.embed_tokens.weight[end] = 0.3 * direction  # loud at that position alone


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--size", choices=SIZES, default="fast")
    parser.add_argument("--processor", required=True, help="the folder of a Whisper with 80 or 128 mel bins")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = WhisperProcessor.from_pretrained(arguments.processor).tokenizer
    settings = GenerationConfig.from_pretrained(arguments.processor)
    shape = whisper_arguments(arguments.shape) | {"vocab_size": len(tokenizer)}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    shape |= {name: getattr(settings, name) for name in names}
    lite = LiteWhisperConfig(
        **shape, low_rank_config=published_ranks(arguments.shape, arguments.size), constant_padding=PADDING
    )
    models = {
        "stock": WhisperForConditionalGeneration(WhisperConfig(**shape)),
        "compressed": LiteWhisperForConditionalGeneration(lite),
    }
    for name, model in models.items():
        model.generation_config = settings
        write_end(model, arguments.tokens)
        model.save_pretrained(arguments.output / name)
        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        WhisperProcessor(extractor, tokenizer).save_pretrained(arguments.output / name)


if __name__ == "__main__":
    main()
