"""
Writes two Whisper models with random weights, to time whole transcriptions without downloading the real ones.

    python benchmarks/random_whisper.py --shape turbo --processor FOLDER --output FOLDER [--size fast] [--tokens 40]

Writes a stock Whisper to the subfolder `stock`, and a Whisper with the ranks of a published size and constant padding
to `compressed`. The processor and the generation config, including the languages, come from the Whisper in --processor.
The models write the same number of tokens for any audio, in every runtime: the position embeddings are ten times the
usual size, so the decoder follows the position, and only the last position leads to the end of the text. This way
`benchmarks/runtimes.py` and `benchmarks/transcription_profile.py` time equal work; error rates are meaningless.
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

PROMPT_TOKENS = 4  # start, language, task, no timestamps
PADDING = {"rank": RANK, "margin": MARGIN, "enabled": True}  # as `lite-whisper precompute-padding` writes it


@torch.no_grad()
def set_text_length(model: WhisperForConditionalGeneration, tokens: int) -> None:
    """Changes the weights so that the decoder writes `tokens` tokens after the prompt, then the end of the text."""
    decoder, end = model.model.decoder, model.generation_config.eos_token_id
    positions = decoder.embed_positions.weight
    positions.normal_(std=10 * model.config.init_std)
    direction = torch.zeros_like(positions[0])
    direction[0] = 1
    positions[:, 0] = 0
    positions[PROMPT_TOKENS + tokens - 1] = 1000 * direction
    decoder.embed_tokens.weight[end:] = 0  # a timestamp in the text would make transformers continue from there
    decoder.embed_tokens.weight[end] = 0.3 * direction  # large at the last position only


def main() -> None:
    """Writes both model folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--size", choices=SIZES, default="fast")
    parser.add_argument("--processor", required=True, help="folder of a Whisper with 80 or 128 mel bins")
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
        set_text_length(model, arguments.tokens)
        model.save_pretrained(arguments.output / name)
        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        WhisperProcessor(extractor, tokenizer).save_pretrained(arguments.output / name)


if __name__ == "__main__":
    main()
