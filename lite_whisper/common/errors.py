"""What goes wrong because of what the user gave."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names it, says what was expected and what to do.

    Args:
        message (`str`): the whole of it, which `str(error)` gives back.
        setting (`str`, *optional*): name of the setting that mends it, such as `"output"`. The command line names its
            option; the two are named alike: `"batch_size"` is `--batch-size`.
    """

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.setting = setting
