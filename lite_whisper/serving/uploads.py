"""The body of a request in, the fields of its form and the uploaded file out; in memory, which is bounded."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import python_multipart  # noqa: F401  starlette reads forms with it, and says only then that it is missing
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import RequestError

FIELDS = 32  # of a form
FIELD = 64 << 10  # bytes of one, and of all that surrounds the file


@dataclass(frozen=True)
class Upload:
    """
    What a form holds.

    Args:
        file (`bytes`): the contents of the field `file`; what the client calls it is not kept.
        fields (`list[tuple[str, str]]`): names and values of the others.
    """

    file: bytes
    fields: list[tuple[str, str]]


async def received(request: Request, largest: int) -> Upload:
    """
    Reads the form of a request.

    Memory: twice the file.

    Args:
        request (`Request`): whose body has not been read.
        largest (`int`): bytes of the file.

    Raises:
        RequestError: the body is too large, or is no form with a file.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > largest + FIELD:
        raise _too_large(largest)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(400, "the request is no form; send multipart/form-data with the audio in the field file")
    body = _bounded(request, largest)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=FIELDS, max_part_size=FIELD)
    parser.spool_max_size = largest + FIELD  # so nothing goes to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form cannot be read: {error.message.rstrip('.')}; send it anew") from error
    try:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError(400, "there is no audio in the field file; upload a file there", "file")
        return Upload(await file.read(), fields)
    finally:
        await form.close()


async def discard(request: Request, most: int) -> None:
    """Reads so many bytes of what is left of a body: a client that is still sending would not see the answer."""
    async for part in request.stream():
        most -= len(part)
        if most < 0:
            return


async def _bounded(request: Request, largest: int) -> AsyncGenerator[bytes, None]:
    """The body, which may be longer than it said."""
    left = largest + FIELD
    async for part in request.stream():
        left -= len(part)
        if left < 0:
            raise _too_large(largest)
        yield part


def _too_large(largest: int) -> RequestError:
    return RequestError(
        413, f"the file is larger than {largest / 1e6:g} MB; split it, or send it as flac or opus", "file"
    )
