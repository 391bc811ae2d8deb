"""Progress of a stage, on stderr."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from smtkit.cli.plain import plain

_LINE_SECONDS = 5.0


class Terminal:
    """Shows the progress of a stage: a bar with the time left on a terminal, else a line every few
    seconds."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._log = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = _bar(self._log) if self._log.is_terminal and not quiet else None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, float]] = {}  # seconds, and what was done then
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        """`completed` of `total` units of `task` are done; `metrics` are shown beside it."""
        if self._quiet:
            return
        shown = "  ".join(f"{name} {_short(name, value)}" for name, value in metrics.items())
        if not self._bar:
            self._print_line(task, completed, total, shown)
            return
        if task not in self._tasks:
            self._tasks[task] = self._bar.add_task(task, total=total, metrics="")
        unbroken = shown.replace(" ", "\N{NO-BREAK SPACE}")
        self._bar.update(self._tasks[task], completed=completed, total=total, metrics=unbroken)

    def show(self, title: str, text: str) -> None:
        if not self._quiet:
            self._log.print(Text(plain(f"--- {title}\n{text}")))

    def warn(self, message: str) -> None:
        self._log.print(Text(plain(f"warning: {message}"), style="yellow"))

    def _print_line(self, task: str, completed: float, total: float | None, shown: str) -> None:
        now = time.monotonic()
        started, before = self._started.setdefault(task, (now, completed))
        done = total is not None and completed >= total
        if not done and now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        share = f" of {total:,.10g}" if total else ""
        left = 0.0
        if total and completed > before:  # a run that was resumed begins in the middle
            left = (now - started) * (total - completed) / (completed - before)
        eta = f"  eta {left:.0f} s" if left >= 1 else ""
        print(f"{task} {completed:,.10g}{share}{eta}  {shown}".rstrip(), file=sys.stderr)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[metrics]}", markup=False),
        console=console,
    )


def _short(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if name.endswith("per_second") else f"{value:.4g}"
