"""From a model folder to a repository on the Hub, in one commit."""

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

# What a model consists of; whatever else lies in its folder stays there.
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
# Also uploaded; where there is none, that of the repository stays.
WRITTEN_BY_HAND = (CARD, "LICENSE*", f"{EVAL_RESULTS}/*.yaml")
# What an earlier model may have left in the repository and the new one would be mixed with.
REPLACED = (*UPLOADED, "model*.safetensors", "*.bin")


class PublishError(OSError):
    """The Hub did not take a model; the message says why and what to do, and the repository is as it was."""


@dataclass(frozen=True)
class Destination:
    """
    Where a model goes.

    Args:
        repo_id (`str`): as org/name.
        private (`bool`, *optional*, defaults to `False`): whether a repository that is created may be seen by its owner
            only.
        revision (`str`, *optional*): the branch, created where it is missing; main by default.
        create_pr (`bool`, *optional*, defaults to `False`): whether the commit becomes a pull request instead.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False


def check_destination(destination: Destination) -> None:
    """
    Makes sure, before long work, that somebody is logged in who may write.

    Raises:
        InputError: the name cannot be that of a repository, or the options exclude each other.
        PublishError: nobody is logged in, the token may only read, or the Hub cannot be reached.
    """
    try:
        validate_repo_id(destination.repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{destination.repo_id} cannot be the name of a repository ({error}); give org/name"
        ) from error
    if "/" not in destination.repo_id:
        raise InputError(f"{destination.repo_id} names no owner; give org/name, or your user name before the slash")
    if destination.create_pr and destination.revision:
        raise InputError("a pull request goes to the main branch; name no other", setting="revision")
    with _explained("nothing has begun"):
        user = HfApi().whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError("the Hub token may only read; log in with one that may write (hf auth login)")


def check_folder(folder: Path) -> None:
    """
    Makes sure that a model folder is complete, and that its files are its own.

    Raises:
        InputError: something is missing without which the model could not be loaded from the Hub, or is a link.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    processor = "save the processor there, or have lite-whisper convert --upgrade write a whole folder"
    needed = {
        "config.json": "a model folder",
        "model*.safetensors": "weights in safetensors",
        "modeling_*.py": "the Python files; save the model with save_pretrained",
        "tokenizer_config.json": f"a tokenizer; {processor}",
        "*processor_config.json": f"a feature extractor; {processor}",
        "generation_config.json": "generation settings; save the model with save_pretrained",
    }
    for pattern, what in needed.items():
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(f"{folder} has no {pattern}: it needs {what}")
    for name in sorted([*filter(_belongs, _names(folder)), EVAL_RESULTS]):
        if (folder / name).is_symlink():  # to what else lies on this machine, perhaps
            raise InputError(
                f"{folder / name} is a link to {(folder / name).readlink()}; put the file itself there to publish it"
            )


def _names(folder: Path) -> list[str]:
    """What lies where files of a model may lie, relative to its folder."""
    return [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *(folder / EVAL_RESULTS).glob("*"))]


def _belongs(name: str) -> bool:
    return any(_matches(name, pattern) for pattern in (*UPLOADED, *WRITTEN_BY_HAND))


def _matches(name: str, pattern: str) -> bool:
    """Whether a path in a repository is of a pattern, whose `*` stands for no slash."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def files_to_upload(folder: Path) -> list[Path]:
    """
    The files of a model folder that belong on the Hub, relative to it; a warning names the others.

    Raises:
        InputError: as in `check_folder`.
    """
    check_folder(folder)
    every = sorted(_names(folder))
    files = [name for name in every if (folder / name).is_file() and _belongs(name)]
    if others := [name for name in every if name not in files and name != EVAL_RESULTS]:
        logger.warning("left out, because they are no files of a model: %s", ", ".join(others))
    return list(map(Path, files))


def prepare_upload(folder: Path, repo_id: str, manifests: Sequence[Path] = (), scoring: str = "plain") -> list[Path]:
    """
    Puts the figures of manifests and the card under its final name into a model folder.

    A card that somebody has edited is kept as it is.

    Returns:
        `list[Path]`: the files to upload, relative to the folder.

    Raises:
        InputError: as in `check_folder` and `write_eval_results`, or a manifest is of another model.
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
        logger.warning("%s was written by hand and is kept; remove it to have it rendered from the data", card)
    return files_to_upload(folder)


def publish(folder: Path, destination: Destination, files: Sequence[Path]) -> CommitInfo:
    """
    Uploads files of a model folder in one commit; files of an earlier model that are not among them are removed.

    The commit comes last and whole (`create_commit`, where `upload_folder` may make several), so the repository holds
    the old model or the new one. What was uploaded before an interruption is not sent again.

    Args:
        folder (`Path`): the model folder.
        destination (`Destination`): where it goes.
        files (`Sequence[Path]`): from `prepare_upload`.

    Returns:
        `CommitInfo`: what huggingface_hub says of the commit: `oid`, `commit_url`, `pr_url`.

    Raises:
        InputError: as in `check_destination`, or the repository is public and was to be private.
        PublishError: the Hub refused, or the connection was lost.
    """
    check_destination(destination)
    api, repo_id = HfApi(), destination.repo_id
    branch = destination.revision or "main"
    with _explained(f"{folder} is complete, so run this later: lite-whisper publish {folder} {repo_id}"):
        api.create_repo(repo_id, private=destination.private or None, exist_ok=True)
        if destination.private and not api.model_info(repo_id).private:
            raise InputError(
                f"{repo_id} exists and is public; choose another name, or publish openly", setting="private"
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


ADVICE = {
    401: "the Hub does not know the token; log in with hf auth login, or set HF_TOKEN",
    403: "the Hub token may not write there; log in with one that may (hf auth login), or choose another owner",
    404: "the Hub does not find it; check the name and the revision",
    409: "somebody changed the repository at the same time; try again",
    429: "the Hub has had too many requests from you",
}


@contextmanager
def _explained(outcome: str) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into one line that says what to do."""
    try:
        yield
    except InputError:
        raise
    except (HTTPError, LocalTokenNotFoundError, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(cause, (HTTPError, LocalTokenNotFoundError)):
            cause = cause.__cause__  # huggingface_hub wraps what stops the upload of a file
        raise PublishError(f"{_reason(cause)}. Nothing half-uploaded is on the Hub; {outcome}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "nobody is logged in to the Hub; log in with hf auth login, or set HF_TOKEN"
    response = getattr(error, "response", None)
    if response is None:
        what = "connection to the Hub" if isinstance(error, HTTPError) else "upload"
        return f"the {what} failed ({error or type(error).__name__}); try again later"
    said = getattr(error, "server_message", None) or response.reason_phrase
    advice = ADVICE.get(response.status_code, "the Hub is out of order; try again later")
    wait = response.headers.get("Retry-After")
    return f"{advice}{f', try again in {wait} s' if wait else ''} ({response.status_code}: {said})"
