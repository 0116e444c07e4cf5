"""What the tests here share."""

import pytest
import torch


@pytest.fixture
def features() -> torch.Tensor:
    """Log-mel features of two windows."""
    return torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(1))
