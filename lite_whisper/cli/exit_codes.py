"""Exit codes and error messages: errors that the user can fix end in one line on stderr, others in a traceback."""

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

DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# Torch has no exception type for failed writes, only these fragments of messages.
TORCH_WRITE_ERRORS = ("inline_container.cc", "PytorchStreamWriter", "unable to resize file")


def run(parser: argparse.ArgumentParser, command: Callable[[], None]) -> int:
    """
    Runs a command and converts its errors to messages.

    Args:
        parser (`argparse.ArgumentParser`): parser of the command, whose options are named in messages.
        command (`Callable`): the command.

    Returns:
        `int`: the exit code.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    # Users of a command cannot act on the warnings and progress bars of transformers.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not huggingface_hub.constants.HF_DEBUG:
        huggingface_hub.utils.logging.set_verbosity_error()
    try:
        with logging_redirect_tqdm(), close_progress_bars():
            command()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume, finished work is not repeated", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        return _failed(f"out of memory ({error}); lower --batch-size or use --device cpu")
    except InputError as error:
        return _failed(explained(parser, error))
    except (OSError, SafetensorError, RuntimeError) as error:
        failed_write = any(name in str(error) for name in TORCH_WRITE_ERRORS)
        if isinstance(error, RuntimeError) and not failed_write:
            raise
        # safetensors gives the error number in its message only.
        disk_full = failed_write or any(
            code == getattr(error, "errno", None) or f"(os error {code})" in str(error) for code in DISK_FULL
        )
        advice = "; free some space or choose another disk (incomplete files are removed)" if disk_full else ""
        return _failed(f"{error}{advice}")
    return 0


def _failed(message: str) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return 1


def printable(text: str) -> str:
    """Escapes control characters, so that untrusted file names cannot control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def close_progress_bars() -> Iterator[None]:
    """Closes the progress bars left by an error, so that the message starts on a new line."""
    try:
        yield
    finally:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def explained(parser: argparse.ArgumentParser, error: InputError) -> str:
    """The message of an error, with the option to change if the command has it."""
    option = f"--{(error.setting or '').replace('_', '-')}"
    known = error.setting and re.search(rf"{option}\b", parser.format_help())
    return f"{error} ({option})" if known else str(error)
