"""A clock for tests of what measures: time of this process, which other programs on the machine do not lengthen."""

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.benchmark import Timer

MEASURING = ("lite_whisper.conversion.profile", "lite_whisper.kernels_lite_whisper")


def measure_processor_time(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Lets the package's timers count the time of this process; `replace` sets an attribute, perhaps for a while."""
    for module in MEASURING:
        replace(importlib.import_module(module), "Timer", partial(Timer, timer=time.process_time))
