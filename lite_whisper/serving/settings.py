"""Settings of the server."""

from dataclasses import dataclass

from ..transcription.recognizers import Backend


@dataclass(frozen=True)
class ServingSettings:
    """
    Settings of the server: model, address and limits.

    Args:
        model (`str`): Hub id or folder of a Whisper, compressed or not.
        host (`str`): address to listen on; by default reachable from this machine only.
        port (`int`): port to listen on; 0 picks a free one.
        batch_size (`int`): windows per batch.
        device (`str`, *optional*): device to run on; by default cuda if there is a GPU.
        dtype (`str`): dtype to compute in: `"float32"`, `"float16"`, `"bfloat16"` or `"int8"`.
        backend (`str`): engine: `"transformers"` or `"ctranslate2"`.
        max_requests (`int`): maximum number of queued and running requests; further ones get HTTP 429.
        max_upload (`float`): maximum size of an audio file in megabytes (10^6 bytes).
        max_duration (`float`): maximum duration of an audio file in seconds.
        timeout (`float`): maximum time for one request in seconds, also during shutdown.
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
