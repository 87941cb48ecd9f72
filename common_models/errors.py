"""Errors that say which argument they are about."""

from __future__ import annotations


class ArgumentError(ValueError):
    """An argument has a value that cannot be used.

    The message begins with the name of the argument. Whoever calls the argument something else, as a command line does,
    gets the same message under that name from `named`.

    Args:
        argument: name of the argument.
        problem: what the argument must be, and what came.
        remedy: another argument as one would write it, and what it does about the problem.

    Attributes:
        argument: as given.
    """

    def __init__(self, argument: str, problem: str, remedy: tuple[str, str] | None = None) -> None:
        super().__init__(argument, problem, remedy)
        self.argument = argument
        self._problem = problem
        self._remedy = remedy

    def __str__(self) -> str:
        return self.named(self.argument)

    def named(self, argument: str, remedy: str | None = None) -> str:
        """The message, with other words for the argument and for what the remedy writes."""
        message = f"{argument} {self._problem}"
        if self._remedy is None:
            return message
        written, does = self._remedy
        return f"{message}{' ' if message.endswith('?') else '; '}{remedy or written} {does}"
