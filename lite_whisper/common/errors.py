"""The exception for invalid user input."""


class InputError(ValueError):
    """Raised when a user's input cannot be used; the message names the input, what was expected and what to do next.

    Args:
        message (`str`): the complete message, as returned by `str(error)`.
        setting (`str`, *optional*): the setting to change, such as `"output"`. The command line appends the option of
            the same name to the message: `"batch_size"` is `--batch-size`.
    """

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.setting = setting
