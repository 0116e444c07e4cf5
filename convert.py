"""The main program: compress the encoder of a Whisper and write a complete model folder."""

import argparse
import sys
from collections.abc import Sequence

try:
    from lite_whisper.cli import exit_codes
    from lite_whisper.cli.convert import build_parser, parse_arguments, print_conversion, print_sweep
    from lite_whisper.cli.publish import check_login, publish_folder
    from lite_whisper.common.processes import is_main_process
    from lite_whisper.conversion import convert
    from lite_whisper.conversion.rewriting import merge, upgrade
    from lite_whisper.conversion.sweep import sweep
except KeyboardInterrupt:  # the packages take seconds to load
    print("\ninterrupted", file=sys.stderr)
    sys.exit(130)


def run(arguments: argparse.Namespace) -> None:
    """Does what the arguments ask for; of several processes the main one prints and publishes."""
    if arguments.push_to_hub:
        check_login(arguments, arguments.push_to_hub)
    if arguments.merge:
        merge(arguments.merge, arguments.output, arguments.overwrite)
        print(f"written to {arguments.output}")
    elif arguments.upgrade:
        upgrade(arguments.upgrade, arguments.base_model, arguments.output, arguments.overwrite)
        print(f"written to {arguments.output}")
    elif arguments.sweep:
        result = sweep(arguments.settings, arguments.sweep)
        if is_main_process():
            print_sweep(result)
    else:
        conversion = convert(arguments.settings)
        if is_main_process():
            print_conversion(conversion)
    if arguments.push_to_hub and is_main_process():
        publish_folder(arguments, arguments.output, arguments.push_to_hub)


def main(argv: Sequence[str] | None = None, program: str = "convert.py") -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser(program)
    arguments = parse_arguments(parser, argv)
    return exit_codes.run(parser, lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
