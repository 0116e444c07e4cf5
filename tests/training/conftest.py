"""Fixtures shared by the training tests."""

import pytest
import torch


@pytest.fixture
def features() -> torch.Tensor:
    """Random features of two windows."""
    return torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(1))
