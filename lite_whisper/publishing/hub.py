"""Publishes a model folder on the Hub in one commit."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..common.errors import InputError
from ..models.compression_json import COMPRESSION
from ..models.folders import CARD, PROCESSOR_FILES, WEIGHTS, fingerprint, load_compressed_model
from .card import EVALUATION, card_data, is_rendered, write_card, write_evaluation
from .eval_results import EVAL_RESULTS, write_eval_results

logger = logging.getLogger(__name__)

# The files of a model; other files in its folder are not uploaded.
UPLOADED = (
    *PROCESSOR_FILES,
    *WEIGHTS,
    "config.json",
    "configuration_*.py",
    "generation_config.json",
    "inference_*.py",
    "kernels_*.py",
    "modeling_*.py",
    "padding_*.py",
    "ranks.png",
    COMPRESSION,
    EVALUATION,
)
# Also uploaded; if missing, the repository keeps its own.
WRITTEN_BY_HAND = (CARD, "LICENSE*", f"{EVAL_RESULTS}/*.yaml")
# Files of an earlier model, deleted from the repository unless the new model replaces them.
REPLACED = (*UPLOADED, "model*.safetensors", "*.bin")


class PublishError(OSError):
    """Publishing failed and the repository is unchanged; the message says why and what to do."""


@dataclass(frozen=True)
class Destination:
    """
    Repository and branch to publish to.

    Args:
        repo_id (`str`): repository as org/name.
        private (`bool`, *optional*, defaults to `False`): whether to make a newly created repository private.
        revision (`str`, *optional*): branch to commit to, created if needed; default: main.
        create_pr (`bool`, *optional*, defaults to `False`): whether to open a pull request instead.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False


def check_destination(destination: Destination) -> None:
    """
    Checks the destination and the Hub login, so that errors are reported before long work.

    Raises:
        InputError: the repository name is invalid, or options conflict.
        PublishError: there is no login, the token is read-only, or the Hub cannot be reached.
    """
    try:
        validate_repo_id(destination.repo_id)
    except HFValidationError as error:
        raise InputError(f"{destination.repo_id} is not a valid repository name ({error}); give org/name") from error
    if "/" not in destination.repo_id:
        raise InputError(f"{destination.repo_id} has no owner; give org/name or user/name")
    if destination.create_pr and destination.revision:
        raise InputError("pull requests target the main branch; leave the revision out", setting="revision")
    with _explained("no work has started"):
        user = HfApi().whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError("the Hub token is read-only; log in with a token that has write access (hf auth login)")


def check_folder(folder: Path) -> None:
    """
    Checks that a model folder is complete and contains no symbolic links.

    Raises:
        InputError: a file needed to load the model from the Hub is missing, or a file is a symbolic link.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    processor = "save the processor there, or complete the folder with lite-whisper upgrade"
    needed = {
        "config.json": "a model folder",
        "model*.safetensors": "weights in safetensors",
        "modeling_*.py": "the Python files; save the model with save_pretrained",
        "tokenizer_config.json": f"a tokenizer; {processor}",
        "*processor_config.json": f"a feature extractor; {processor}",
        "generation_config.json": "generation settings; save the model with save_pretrained",
    }
    for pattern, requirement in needed.items():
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(f"{folder} has no {pattern}: it needs {requirement}")
    for name in sorted([*filter(_is_model_file, _relative_paths(folder)), EVAL_RESULTS]):
        if (folder / name).is_symlink():  # it might point to unrelated local files
            raise InputError(
                f"{folder / name} is a link to {(folder / name).readlink()}; replace it with the file to publish it"
            )


def _relative_paths(folder: Path) -> list[str]:
    """Paths in a model folder and its results folder, relative to the model folder."""
    return [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *(folder / EVAL_RESULTS).glob("*"))]


def _is_model_file(name: str) -> bool:
    return any(_matches(name, pattern) for pattern in (*UPLOADED, *WRITTEN_BY_HAND))


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern in which `*` does not match a slash."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def files_to_upload(folder: Path) -> list[Path]:
    """
    The files of a model folder to upload, relative to it. Other files are left out with a warning.

    Raises:
        InputError: as in `check_folder`.
    """
    check_folder(folder)
    every = sorted(_relative_paths(folder))
    files = [name for name in every if (folder / name).is_file() and _is_model_file(name)]
    if others := [name for name in every if name not in files and name != EVAL_RESULTS]:
        logger.warning("left out, not part of a model: %s", ", ".join(others))
    return list(map(Path, files))


def prepare_upload(folder: Path, repo_id: str, manifests: Sequence[Path] = (), scoring: str = "plain") -> list[Path]:
    """
    Adds the figures of manifests to a model folder and renders its card for the repository.

    A card that was edited by hand is kept.

    Returns:
        `list[Path]`: the files to upload, relative to the folder.

    Raises:
        InputError: as in `check_folder`, `write_evaluation` and `write_eval_results`.
    """
    check_folder(folder)
    card = folder / CARD
    rendered = (folder / COMPRESSION).exists() and (not card.exists() or is_rendered(folder))
    if manifests:
        card_data(folder)
        write_evaluation(folder, manifests, fingerprint(load_compressed_model(str(folder))[0]), scoring)
        write_eval_results(folder)
    if rendered:
        write_card(folder, repo_id)
    elif card.exists():
        logger.warning("%s was edited by hand and is kept; delete it to render a new one", card)
    return files_to_upload(folder)


def publish(folder: Path, destination: Destination, files: Sequence[Path]) -> CommitInfo:
    """
    Uploads files of a model folder in one commit, which also deletes leftover files of an earlier model.

    Uses `create_commit` rather than `upload_folder`, which may create several commits, so that the repository always
    holds either the old or the new model. Files uploaded before an interruption are not sent again.

    Args:
        folder (`Path`): the model folder.
        destination (`Destination`): repository and branch.
        files (`Sequence[Path]`): the files to upload, from `prepare_upload`.

    Returns:
        `CommitInfo`: the commit, with `oid`, `commit_url` and `pr_url`.

    Raises:
        InputError: as in `check_destination`, or a private repository was requested but it exists and is public.
        PublishError: the Hub rejected the upload, or the connection was lost.
    """
    check_destination(destination)
    api, repo_id = HfApi(), destination.repo_id
    branch = destination.revision or "main"
    with _explained(f"{folder} is complete; publish it later: lite-whisper publish {folder} {repo_id}"):
        api.create_repo(repo_id, private=destination.private or None, exist_ok=True)
        if destination.private and not api.model_info(repo_id).private:
            raise InputError(
                f"{repo_id} exists and is public; choose another name or leave private out", setting="private"
            )
        if destination.revision:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        new = {path.as_posix() for path in files}
        old = set(api.list_repo_files(repo_id, revision=branch)) - new
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in sorted(old) if any(_matches(name, pattern) for pattern in REPLACED)
        ]
        operations += [CommitOperationAdd(name, folder / name) for name in sorted(new)]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=f"Upload {repo_id.split('/')[-1]}",
            revision=destination.revision,
            create_pr=destination.create_pr,
        )


ADVICE_BY_STATUS = {
    401: "the Hub token is invalid; log in with hf auth login, or set HF_TOKEN",
    403: "the Hub token has no write access there; log in with another (hf auth login), or choose another owner",
    404: "not found on the Hub; check the name and the revision",
    409: "the repository was changed at the same time; try again",
    429: "too many requests to the Hub",
}


@contextmanager
def _explained(outcome: str) -> Iterator[None]:
    """Converts errors of the Hub and the connection to a `PublishError` with advice."""
    try:
        yield
    except InputError:
        raise
    except (HTTPError, LocalTokenNotFoundError, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(cause, (HTTPError, LocalTokenNotFoundError)):
            cause = cause.__cause__  # huggingface_hub wraps the error of a file upload
        raise PublishError(f"{_reason(cause)}. The repository on the Hub is unchanged; {outcome}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "not logged in to the Hub; log in with hf auth login, or set HF_TOKEN"
    response = getattr(error, "response", None)
    if response is None:
        action = "connection to the Hub" if isinstance(error, HTTPError) else "upload"
        return f"the {action} failed ({error or type(error).__name__}); try again later"
    message = getattr(error, "server_message", None) or response.reason_phrase
    advice = ADVICE_BY_STATUS.get(response.status_code, "the Hub reported an error; try again later")
    wait = response.headers.get("Retry-After")
    return f"{advice}{f', try again in {wait} s' if wait else ''} ({response.status_code}: {message})"
