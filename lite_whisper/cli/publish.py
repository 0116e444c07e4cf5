"""The command `lite-whisper publish`, and the publishing step of other commands."""

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
from .report import add_scoring


def destination(arguments: argparse.Namespace, repo_id: str) -> Destination:
    """The destination given by the options of `add_hub`."""
    return Destination(repo_id, arguments.private, arguments.revision, arguments.create_pr)


def check_login(arguments: argparse.Namespace, repo_id: str) -> None:
    """Checks, before long work, that the model can be published afterwards."""
    if not arguments.dry_run:
        check_destination(destination(arguments, repo_id))


def publish_folder(
    arguments: argparse.Namespace, folder: Path, repo_id: str, manifests: Sequence[Path] = (), scoring: str = "plain"
) -> None:
    """Publishes a model folder, or with `--dry-run` lists the files that would be uploaded."""
    if arguments.dry_run:
        files = {*files_to_upload(folder), Path(CARD), *([Path(EVALUATION)] if manifests else [])}
        if any(read_settings(path)["dataset"] in SHORT_FORM for path in manifests):
            files.add(Path(LEADERBOARD))
        for file in sorted(files):
            size = f"{(folder / file).stat().st_size / 1e6:12.3f} MB" if (folder / file).exists() else f"{'new':>15}"
            print(f"{size}  {exit_codes.printable(str(file))}")
        print(f"would be uploaded to {repo_id}; nothing was uploaded")
        return
    check_login(arguments, repo_id)  # before anything in the folder is changed
    commit = publish(folder, destination(arguments, repo_id), prepare_upload(folder, repo_id, manifests, scoring))
    print(f"published as {commit.pr_url or commit.commit_url}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser of `lite-whisper publish`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Upload a model folder to the Hub in one commit, with a model card rendered from its data. "
        "Log in first with hf auth login.",
    )
    parser.add_argument(
        "folder", type=Path, help="model folder written by convert.py, or by save_pretrained of model and processor"
    )
    parser.add_argument("repo_id", help="repository on the Hub as org/name, created if needed")
    parser.add_argument(
        "--manifests",
        nargs="+",
        type=Path,
        default=[],
        help="manifests written by lite-whisper evaluate for this model and for those it is compared with; their "
        "figures go into the card",
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
