"""The structure of the source: sizes, one module per command, and plain words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtkit.cli.program import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "smtkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 350, 60, 12

RIDDLES = {
    r"\b(bits|bytes|nats|milliseconds|microseconds|cost|time|memory) (and \w+ )?an? "
    r"(token|byte|step|target|pixel)\b": "per",
    r"^(Of|Whose|That|Those|As much|As many)\b": "begin with what the thing is or does",
    r"\b(in vain|at hand|begun|is told|are told|is asked|are asked|it says|they say)\b": (
        "plain technical English"
    ),
}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every docstring and comment."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.lineno, str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_files_and_functions_are_short(path: Path) -> None:
    assert lines_of(path) <= LONGEST_FILE
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count <= MOST_PARAMETERS, f"{node.name}: {count} parameters"
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


def test_stages_are_one_module_per_command() -> None:
    commands = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback
    }
    modules = {path.stem for path in (PACKAGE / "stages").glob("[!_]*.py")}
    stages = {"eval" if name == "evaluate" else name.replace("_", "-") for name in modules}
    assert stages == commands


def test_no_loose_modules() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py"}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_prose_is_plain(path: Path) -> None:
    found = [
        f"{path.name}:{line}: {match[0]!r}: {hint}"
        for line, text in prose(path)
        for pattern, hint in RIDDLES.items()
        if (match := re.search(pattern, text))
    ]
    assert not found, "\n".join(found)
