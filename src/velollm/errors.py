"""The one error that a person is meant to read."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ADVISED = 3


class VeloError(Exception):
    """Something went wrong that a user can understand and mend.

    The command line prints it as an ``Error:`` line and a ``Hint:`` line and leaves with
    ``exit_code``; no traceback is shown.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class EngineError(VeloError):
    """An engine that does not do its work; ``reason`` is why, for a list that names what ran with it itself."""

    def __init__(self, what: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{what}: {reason}", hint)
        self.reason = reason


class UsageError(VeloError):
    """The command was typed wrongly (exit code 2)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)
