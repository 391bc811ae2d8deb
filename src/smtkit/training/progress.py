"""How a stage tells what it does, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener. The command line draws a bar or prints lines; a library user may ignore it."""

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        """`completed` of `total` units of `task` are done; `metrics` are what to show beside it."""

    def warn(self, message: str) -> None:
        """Something the user should know now."""


class Silent:
    """Nobody listens."""

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
