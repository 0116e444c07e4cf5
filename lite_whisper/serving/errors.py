"""Errors of requests, in the format that OpenAI's clients expect."""

from fastapi.responses import JSONResponse

from ..common.errors import InputError

CLIENT_DISCONNECTED = 499  # never sent; only counted in the metrics


class RequestError(Exception):
    """
    An error that is returned to the client.

    Args:
        status (`int`): HTTP status.
        message (`str`): what is wrong and what to do about it.
        param (`str`, *optional*): the form field that the error is about.
        retry_after (`int`, *optional*): seconds after which the client may retry.
    """

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    @classmethod
    def from_error(cls, error: InputError) -> "RequestError":
        """Converts an invalid input to a response with status 400."""
        return cls(400, str(error), error.setting)

    def response(self) -> JSONResponse:
        """Builds the HTTP response."""
        headers = None if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": None}
        return JSONResponse({"error": error}, self.status, headers)
