"""Models with random weights, for tests that run under both major versions of transformers."""

import torch
from torch import nn

from lite_whisper import LiteWhisperConfig, LiteWhisperForConditionalGeneration

SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_ffn_dim": 256,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_ffn_dim": 256,
    "decoder_attention_heads": 4,
    "vocab_size": 100,
    "max_source_positions": 20,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 1,
}


def random_model(low_rank_config) -> LiteWhisperForConditionalGeneration:
    """A model with reproducible random weights."""
    torch.manual_seed(0)
    return LiteWhisperForConditionalGeneration(
        LiteWhisperConfig(low_rank_config=low_rank_config, init_std=0.1, **SIZES)
    ).eval()


def random_padded_model(low_rank_config) -> LiteWhisperForConditionalGeneration:
    """The same with random padding tables."""
    model = random_model(low_rank_config)
    model.config.constant_padding = {"rank": 5, "margin": 2, "enabled": True}
    padded = LiteWhisperForConditionalGeneration(model.config).eval()
    padded.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in padded.named_parameters():
        if "padding_states" in name:
            nn.init.normal_(parameter, std=0.3)
    return padded


def features_until(*ends: int) -> torch.Tensor:
    """Log-mel features of clips that end at these frames; the rest is padding."""
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(len(ends), 80, 2 * SIZES["max_source_positions"], generator=generator) * 2 - 1.25
    for clip, end in zip(features, ends, strict=True):
        clip[:, end:] = clip.min()
    return features


@torch.no_grad()
def encode(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The encoder's output."""
    return model.get_encoder()(features)[0]


def train(model: nn.Module, features: torch.Tensor) -> None:
    """Trains the parameters that require gradients for a few steps and asserts that the loss falls."""
    labels = torch.tensor([[1, 5, 9, 13], [1, 6, 10, 14]])
    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_features=features, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
