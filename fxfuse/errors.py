"""What a user is told when something cannot go on: one sentence that says what to do, and no traceback."""

__all__ = ["FxfuseError", "InputError", "NothingToDo", "VerificationError"]


class FxfuseError(Exception):
    """Something failed that the user can act on; the message is one sentence that says how."""

    exit_code: int = 1


class InputError(FxfuseError, ValueError):
    """What the user gave cannot be used: a file, a name, a shape, a provider that is not there."""

    exit_code = 2


class NothingToDo(InputError):
    """What the user gave can be used, and there is nothing in it to be done."""

    exit_code = 3


class VerificationError(FxfuseError):
    """The numbers of the result are not what they must be, so nothing was written."""
