"""Why a request gets no transcript, in the form in which OpenAI's clients expect it."""

from fastapi.responses import JSONResponse

from ..common.errors import InputError

GONE = 499  # nobody reads it; the status under which a request is counted whose client has left


class RequestError(Exception):
    """
    A request that is answered by an error.

    Args:
        status (`int`): of HTTP.
        message (`str`): what is wrong and what to do.
        param (`str`, *optional*): the field of the form that it is about.
        retry_after (`int`, *optional*): seconds after which it may be tried again.
    """

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    @classmethod
    def of(cls, error: InputError) -> "RequestError":
        """What the client can mend."""
        return cls(400, str(error), error.setting)

    def response(self) -> JSONResponse:
        """The answer to the client."""
        headers = None if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": None}
        return JSONResponse({"error": error}, self.status, headers)
