"""Makes benchmarks count processor time in tests, which does not depend on other programs on the machine."""

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.benchmark import Timer

MODULES_WITH_TIMERS = ("lite_whisper.conversion.profile", "lite_whisper.kernels_lite_whisper")


def measure_processor_time(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replaces the package's timers; `replace` sets an attribute, like `setattr` or `monkeypatch.setattr`."""
    for module in MODULES_WITH_TIMERS:
        replace(importlib.import_module(module), "Timer", partial(Timer, timer=time.process_time))
