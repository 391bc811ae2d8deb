"""The interface through which stages report progress and warnings."""

from typing import Protocol


class Progress(Protocol):
    """Receives progress and warnings: the command line draws a bar, a library user may log."""

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        """Reports that `completed` of `total` units of `task` are done, with metrics to display."""

    def warn(self, message: str) -> None:
        """Shows a warning to the user."""

    def show(self, title: str, text: str) -> None:
        """Shows a sample of what a network writes: a text, or an image in shades."""


class Silent:
    """Ignores progress and warnings."""

    def update(self, *_: object, **__: object) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    def show(self, title: str, text: str) -> None:
        pass
