"""The command `lite-whisper publish`, and how others publish what they have made."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.leaderboard import SHORT_FORM
from ..evaluation.manifest import read_settings
from ..models.folders import CARD
from ..publishing.card import EVALUATION
from ..publishing.eval_results import LEADERBOARD
from ..publishing.hub import Destination, check_destination, files_to_upload, prepare_upload, publish
from . import exit_codes
from .options import add_hub
from .score import add_scoring


def destination(arguments: argparse.Namespace, repo_id: str) -> Destination:
    """Where the options of `add_hub` say that a model goes."""
    return Destination(repo_id, arguments.private, arguments.revision, arguments.create_pr)


def check_login(arguments: argparse.Namespace, repo_id: str) -> None:
    """Makes sure, before long work, that the model can be published afterwards."""
    if not arguments.dry_run:
        check_destination(destination(arguments, repo_id))


def publish_folder(
    arguments: argparse.Namespace, folder: Path, repo_id: str, manifests: Sequence[Path] = (), scoring: str = "plain"
) -> None:
    """Publishes a model folder as the options of `add_hub` say, or lists its files."""
    if arguments.dry_run:
        files = {*files_to_upload(folder), Path(CARD), *([Path(EVALUATION)] if manifests else [])}
        if any(read_settings(path)["dataset"] in SHORT_FORM for path in manifests):
            files.add(Path(LEADERBOARD))
        for file in sorted(files):
            size = f"{(folder / file).stat().st_size / 1e6:12.3f} MB" if (folder / file).exists() else f"{'new':>15}"
            print(f"{size}  {exit_codes.printable(str(file))}")
        print(f"would be uploaded to {repo_id}; nothing was")
        return
    check_login(arguments, repo_id)  # before anything in the folder is changed
    commit = publish(folder, destination(arguments, repo_id), prepare_upload(folder, repo_id, manifests, scoring))
    print(f"published as {commit.pr_url or commit.commit_url}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper publish`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Upload a model folder to the Hub, in one commit, with a card rendered from the data in it. "
        "Log in first with hf auth login.",
    )
    parser.add_argument(
        "folder", type=Path, help="that convert.py has written, or save_pretrained of model and processor"
    )
    parser.add_argument("repo_id", help="org/name; created if needed")
    parser.add_argument(
        "--manifests",
        nargs="+",
        type=Path,
        default=[],
        help="that lite-whisper evaluate has written, of this model and of those to compare it with: their figures go "
        "into the card",
    )
    add_scoring(parser)
    add_hub(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "lite-whisper publish") -> int:
    """Runs `lite-whisper publish`; returns the exit code."""
    parser = build_parser(program)
    arguments = parser.parse_args(argv)
    return exit_codes.run(
        parser,
        lambda: publish_folder(arguments, arguments.folder, arguments.repo_id, arguments.manifests, arguments.scoring),
    )
