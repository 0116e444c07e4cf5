"""Which model is served, where, and within which limits."""

from dataclasses import dataclass

from ..transcription.recognizers import Backend


@dataclass(frozen=True)
class ServingSettings:
    """
    Which model is served, where, and within which limits.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        host (`str`): the address to listen on; by default none but this machine can connect.
        port (`int`): to listen on; 0 takes one that is free.
        batch_size (`int`): windows that run at once.
        device (`str`, *optional*): to run on; cuda where there is a GPU by default.
        dtype (`str`): to compute in: `"float32"`, `"float16"`, `"bfloat16"` or `"int8"`.
        backend (`str`): what computes: `"transformers"` or `"ctranslate2"`.
        max_requests (`int`): maximum number of queued and running requests; further ones get HTTP 429.
        max_upload (`float`): megabytes (10^6 bytes) of an audio file.
        max_duration (`float`): seconds of audio in a file.
        timeout (`float`): seconds that a request may take, and that those under way may take at the end.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"
    backend: Backend = "transformers"
    max_requests: int = 64
    max_upload: float = 25
    max_duration: float = 1800
    timeout: float = 600
