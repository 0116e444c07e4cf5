"""Factors as ordinary linear layers, quantised by torchao (only installed with transformers 4.57)."""

import pytest
from random_models import encode, random_model
from torch import nn

from lite_whisper.training.linear_pairs import from_linear_pairs, to_linear_pairs

quantization = pytest.importorskip("torchao.quantization")
RANKS = [dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), 32)] * 2


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_quantises_the_factors(features, scheme: str) -> None:
    lite = random_model(RANKS)
    expected = encode(lite, features)
    to_linear_pairs(lite)
    encoder = lite.get_encoder()
    quantization.quantize_(encoder, getattr(quantization, scheme)())
    first = encoder.layers[0].fc1.first.weight
    assert type(first) is not nn.Parameter and "Int8" in type(first).__name__ + repr(first)
    result = encode(lite, features)
    assert 0 < float((result - expected).norm() / expected.norm()) < 0.1
    with pytest.raises(ValueError, match="before quantising"):
        from_linear_pairs(lite)
