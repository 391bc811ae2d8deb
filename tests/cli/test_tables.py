"""Tables and lines of progress: nothing is cut, and the time left is that of the work left."""

import re

import pytest

from smtkit.cli.results import _print_table
from smtkit.cli.terminal import Terminal

COLUMNS = ["position", "1..T/2", "T/2..T", "T..2T", "2T..4T", "4T..8T", "8T..16T"]
ROWS = [
    (name, *(f"{number}.{index}41 ±0.03{index}" for index in range(6)))
    for number, name in enumerate(["unigram", "teacher, readout", "rnn, free-running"])
]


def printed(capsys: pytest.CaptureFixture[str], columns: list[str]) -> list[str]:
    _print_table("bits per byte", columns, [row[: len(columns)] for row in ROWS])
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def cells(lines: list[str]) -> list[list[str]]:
    """The cells of each line of a table, without titles and rules."""
    split = (re.split(r"\s{2,}", line.strip()) for line in lines)
    return [line for line in split if len(line) > 1]


@pytest.mark.parametrize("width", ["20", "80"])
def test_a_table_in_a_pipe_is_as_wide_as_it_must_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert cells(printed(capsys, COLUMNS)) == [COLUMNS, *map(list, ROWS)]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_goes_on_below_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    lines = printed(capsys, COLUMNS)
    assert max(map(len, lines)) <= width
    found: dict[str, list[str]] = {}
    for name, *values in cells(lines):
        found.setdefault(name, []).extend(values)
    assert [[name, *values] for name, values in found.items()] == [COLUMNS, *map(list, ROWS)]


def test_the_time_left_is_that_of_the_work_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that begins in the middle, at 500, and does 10 units per second."""
    now = [1000.0]
    monkeypatch.setattr("smtkit.cli.terminal.time.monotonic", lambda: now[0])
    with Terminal() as terminal:
        for completed in (500, 600, 700):
            terminal.update("training", completed, 1000)
            now[0] += 10
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training 500 of 1,000",
        "training 600 of 1,000  eta 40 s",
        "training 700 of 1,000  eta 30 s",
    ]
