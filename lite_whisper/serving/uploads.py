"""Reads the form of a request, with the uploaded file, into bounded memory."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import python_multipart  # noqa: F401  starlette only reports a missing python_multipart on the first request
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import RequestError

MAX_FIELDS = 32  # of a form
MAX_FIELD_SIZE = 64 << 10  # bytes of a field, and of everything around the file


@dataclass(frozen=True)
class Upload:
    """
    The contents of a form.

    Args:
        file (`bytes`): contents of the field `file`; its name is dropped.
        fields (`list[tuple[str, str]]`): names and values of the other fields.
    """

    file: bytes
    fields: list[tuple[str, str]]


async def read_upload(request: Request, max_size: int) -> Upload:
    """
    Reads the form of a request.

    Memory: twice the size of the file.

    Args:
        request (`Request`): a request whose body has not been read.
        max_size (`int`): maximum size of the file in bytes.

    Raises:
        RequestError: the body is too large, or is not a form with a file.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_size + MAX_FIELD_SIZE:
        raise _too_large(max_size)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(400, "the request is not a form; send multipart/form-data with the audio in the field file")
    body = _bounded(request, max_size)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_SIZE)
    parser.spool_max_size = max_size + MAX_FIELD_SIZE  # keeps the file in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form is malformed: {error.message.rstrip('.')}") from error
    try:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError(400, "the field file is missing; upload the audio in it", "file")
        return Upload(await file.read(), fields)
    finally:
        await form.close()


async def discard_body(request: Request, max_size: int) -> None:
    """Reads up to `max_size` bytes of the remaining body: a client that is still sending would miss the response."""
    async for part in request.stream():
        max_size -= len(part)
        if max_size < 0:
            return


async def _bounded(request: Request, max_size: int) -> AsyncGenerator[bytes, None]:
    """Yields the body, and fails if it exceeds the limit, whatever its declared length."""
    left = max_size + MAX_FIELD_SIZE
    async for part in request.stream():
        left -= len(part)
        if left < 0:
            raise _too_large(max_size)
        yield part


def _too_large(max_size: int) -> RequestError:
    return RequestError(
        413, f"the file is larger than {max_size / 1e6:g} MB; split it, or send it as flac or opus", "file"
    )
