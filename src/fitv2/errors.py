"""The error for mistakes of the user: the command line prints it as one sentence, without a traceback."""


class UserError(ValueError):
    """A wrong argument, setting, file or folder. The message says what is wrong and what to do about it.

    Any other exception, including other ValueErrors, is a fault of this program and keeps its traceback.
    """


def damaged(what: object, why: object, cure: str) -> UserError:
    """Returns the error for a file of ours that cannot be used; without permission, it is not called damaged.

    why: An exception, or a reason in words.
    """
    if isinstance(why, PermissionError):
        return UserError(f"{what} cannot be read: permission denied")
    reason = why if isinstance(why, str | OSError | UserError) else repr(why)
    return UserError(f"{what} is damaged ({reason}); {cure}")
