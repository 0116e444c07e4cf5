"""How a command ends: what the user can mend in one line on stderr, anything else in a traceback."""

import argparse
import errno
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import huggingface_hub.utils.logging
import torch
import transformers
from safetensors import SafetensorError
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..common.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# By these torch is known to have failed to write a file, which it does not say by a type of its own.
TORCH_WRITES = ("inline_container.cc", "PytorchStreamWriter", "unable to resize file")


def run(parser: argparse.ArgumentParser, command: Callable[[], None]) -> int:
    """
    Runs a command.

    Args:
        parser (`argparse.ArgumentParser`): the one of the command, by which its options are known.
        command (`Callable`): what it does.

    Returns:
        `int`: the exit code.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    # What transformers warns of, and shows the progress of, whoever runs a command can do nothing about.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not huggingface_hub.constants.HF_DEBUG:
        huggingface_hub.utils.logging.set_verbosity_error()
    try:
        with logging_redirect_tqdm(), bars_closed():
            command()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again, what was finished is not repeated", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        return _failed(f"out of memory ({error}); lower --batch-size or use --device cpu")
    except InputError as error:
        return _failed(explained(parser, error))
    except (OSError, SafetensorError, RuntimeError) as error:
        of_torch = any(name in str(error) for name in TORCH_WRITES)
        if isinstance(error, RuntimeError) and not of_torch:
            raise
        # safetensors gives the number in its text only.
        full = any(code == getattr(error, "errno", None) or f"(os error {code})" in str(error) for code in FULL_DISK)
        advice = "; free some space or choose another disk, nothing half-written was left" if full or of_torch else ""
        return _failed(f"{error}{advice}")
    return 0


def _failed(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return 1


def printable(text: str) -> str:
    """Text in which names of files, which others may have chosen, control no terminal: escapes are shown instead."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def bars_closed() -> Iterator[None]:
    """Ends the line of every progress bar that an error leaves behind, so that the message has one of its own."""
    try:
        yield
    finally:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def explained(parser: argparse.ArgumentParser, error: InputError) -> str:
    """The message of an error, with the option that mends it where the command has it."""
    option = f"--{(error.setting or '').replace('_', '-')}"
    known = error.setting and re.search(rf"{option}\b", parser.format_help())
    return f"{error} ({option})" if known else str(error)
