"""What comes from files is shown to a terminal, which does not obey it."""

import json
import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from conftest import Command
from smtkit.cli.plain import plain, plain_json, plain_values
from smtkit.storage.manifest import MANIFEST, Manifest

CLEAR = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"


def obeyed(text: str) -> list[str]:
    """Control characters but tab and line feed, and those that turn the direction of text."""
    return [
        character
        for character in text
        if (unicodedata.category(character) == "Cc" and character not in "\t\n")
        or unicodedata.bidirectional(character)
        in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    ]


@given(st.text() | st.text(alphabet=CLEAR + "a\t\n"))
def test_plain_text_holds_nothing_that_is_obeyed(text: str) -> None:
    assert obeyed(plain(text)) == []
    if not obeyed(text) and not set(text) & set("\u200e\u200f\u061c"):
        assert plain(text) == text
    assert json.loads(plain_json(json.dumps(text, ensure_ascii=False))) == text
    assert plain_values({text: [text, 3, None]}) == {plain(text): [plain(text), 3, None]}


def test_escapes_in_a_manifest_are_not_obeyed(
    command: Command, tokens: Path, tmp_path: Path
) -> None:
    """The digest is over the files: such a manifest is valid."""
    manifest = Manifest.parse((tokens / MANIFEST).read_bytes(), "")
    parent = {"kind": "tokens", "path": CLEAR, "digest": CLEAR, "parents": []}
    forged = {
        **manifest.model_dump(mode="json"),
        "command": CLEAR,
        "finished": CLEAR,
        "parents": [parent],
        "checksum": None,
        "statistics": {**manifest.statistics, CLEAR: CLEAR, "more": {CLEAR: {CLEAR: CLEAR}}},
    }
    (tokens / MANIFEST).write_text(json.dumps(forged))
    for flags in ([], ["--json"]):
        result = command("inspect", tokens, *flags)
        assert result.code == 0
        assert obeyed(result.stdout + result.stderr) == []
        if flags:
            assert json.loads(result.stdout)["manifest"]["command"] == CLEAR


def test_escapes_in_a_message_are_not_obeyed(command: Command, tmp_path: Path) -> None:
    name = CLEAR.replace("/", "")
    line = command("inspect", tmp_path / name).line()
    assert obeyed(line) == []
    assert r"\x1b[2J" in line


def test_an_error_is_a_line_of_bounded_length(command: Command, tmp_path: Path) -> None:
    settings = tmp_path / "a.toml"
    settings.write_text(f"{'x' * 10_000} = 1")
    line = command("train-encoder", "tokens", "--out", "out", "--config", settings).line()
    assert "a.toml" in line
    assert len(line) < 2100


def test_escapes_in_the_text_of_tokens_are_not_obeyed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(CLEAR * 100)
    assert command("tokenize", tmp_path / "text.txt", "--out", tmp_path / "out", "-q").code == 0
    result = command("inspect", tmp_path / "out")
    assert result.code == 0
    assert r"\x1b[2J" in result.stdout
    assert obeyed(result.stdout) == []
