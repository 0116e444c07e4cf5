"""What goes wrong because of what the user gave, and how a command says so."""

import errno
import sys
from collections.abc import Callable

import torch
from safetensors import SafetensorError

FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# By these torch is known to have failed to write a file, which it does not say by a type of its own.
TORCH_WRITES = ("inline_container.cc", "PytorchStreamWriter", "unable to resize file")


class InputError(ValueError):
    """What the user gave cannot be used; the message names it, says what was expected and what to do.

    Args:
        message (`str`): the whole of it, which `str(error)` gives back.
        setting (`str`, *optional*): name of the setting that mends it, such as `"output"`. The command line names its
            option; the two are named alike: `"batch_size"` is `--batch-size`.
    """

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.setting = setting


def exit_code(command: Callable[[], None]) -> int:
    """Runs a command; what the user can mend ends in one line on stderr, anything else in a traceback."""
    try:
        command()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again, what was finished is not repeated", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        print(f"error: out of memory ({error}); lower --batch-size or use --device cpu", file=sys.stderr)
        return 1
    except (InputError, OSError, SafetensorError, RuntimeError) as error:
        of_torch = any(name in str(error) for name in TORCH_WRITES)
        if isinstance(error, RuntimeError) and not of_torch:
            raise
        # safetensors gives the number in its text only.
        full = any(code == getattr(error, "errno", None) or f"(os error {code})" in str(error) for code in FULL_DISK)
        advice = "; free some space or choose another disk, nothing half-written was left" if full or of_torch else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 1
    return 0
