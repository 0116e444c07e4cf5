"""Models whose layers cover every form of optimised inference, and their outputs."""

import torch
from torch import nn

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration

D_MODEL, HEADS, POSITIONS = 64, 4, 40
# The head dimension is 16; test_fewest_multiply_adds checks the expected reductions.
LAYERS = {
    "keys and values": ({"q_proj": 12, "k_proj": 4, "v_proj": 6, "out_proj": 20, "fc1": 12}, (True, True, 8)),
    "keys and values of dense neighbours": ({"k_proj": 4, "v_proj": 6}, (True, True, 8)),
    "keys": ({"q_proj": 20, "k_proj": 12, "v_proj": 30, "fc2": 16}, (True, False, 16)),
    "keys alone": ({"k_proj": 14}, (True, False, 16)),
    "values": ({"q_proj": 20, "k_proj": 30, "v_proj": 14, "out_proj": 8}, (False, True, 16)),
    "none": ({"q_proj": 20, "k_proj": 20, "v_proj": 20, "out_proj": 20, "fc1": 30, "fc2": 30}, (False, False, 16)),
    "dense": ({}, (False, False, 16)),
}


def random_model(*ranks: dict[str, int], **sizes) -> LiteWhisperForConditionalGeneration:
    """A model with one layer per dict of ranks and random biases, so that zeros hide no term."""
    torch.manual_seed(0)
    arguments = {
        "d_model": D_MODEL,
        "encoder_layers": len(ranks),
        "encoder_ffn_dim": 4 * D_MODEL,
        "encoder_attention_heads": HEADS,
        "decoder_layers": 1,
        "decoder_ffn_dim": D_MODEL,
        "decoder_attention_heads": HEADS,
        "vocab_size": 100,
        "max_source_positions": POSITIONS,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 1,
        "init_std": 0.15,
        **sizes,
    }
    model = LiteWhisperForConditionalGeneration(LiteWhisperConfig(low_rank_config=list(ranks), **arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model.eval()


def every_layer() -> LiteWhisperForConditionalGeneration:
    return random_model(*(ranks for ranks, _ in LAYERS.values()))


def features(model: nn.Module, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return torch.randn(shape, generator=generator).to(model.dtype)


@torch.no_grad()
def encoded(model: nn.Module) -> torch.Tensor:
    return model.get_encoder()(features(model))[0].float()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return ((actual - expected).abs().max() < tolerance * expected.abs().max()).item()
