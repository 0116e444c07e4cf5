"""Profiles for the number of examples (HYPOTHESIS_PROFILE=long for a long run), and limits of time and memory."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

MAX_GIGABYTES, MAX_SECONDS = 4, 120

common = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("gate", max_examples=40, derandomize=True, **common)
settings.register_profile("long", max_examples=2000, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Aborts a test that hangs, and makes allocations of more than a few gigabytes fail."""

    def abort(*_: object) -> None:
        raise KeyboardInterrupt(f"no result after {MAX_SECONDS} seconds")  # not caught by `except Exception`

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_GIGABYTES * 2**30, hard))
    previous = signal.signal(signal.SIGALRM, abort)
    signal.alarm(MAX_SECONDS * (1 + settings().max_examples // 100))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
