"""Markers used by the tests of transformers."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{mark}: of transformers")
