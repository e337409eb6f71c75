"""The error for mistakes of the user: the command line prints it as one sentence, without a traceback."""


class UserError(ValueError):
    """A wrong argument, setting, file or folder. The message says what is wrong and what to do about it.

    Any other exception, including other ValueErrors, is a fault of this program and keeps its traceback.
    """
