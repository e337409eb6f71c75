"""The one error that is a mistake of the user's: the command line prints it as a sentence, without a traceback."""


class UserError(ValueError):
    """A wrong argument, setting, file or folder. The message says what is wrong and what to do about it.

    Any other exception, another ValueError included, is a fault of this program, and keeps its traceback.
    """
