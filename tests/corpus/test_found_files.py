"""Which files the inputs name: directories, globs, binary and hidden files."""

from pathlib import Path

import pytest

from corpora import (
    contents,
    everything_below,
    run,
    write_files,
)
from smtkit.errors import UsageError

FILES: dict[str, str | bytes] = {
    "a.txt": "file a",
    "b.md": "file b",
    "sub/c.txt": "file c",
    "sub/deep/d.py": "file d",
    ".hidden.txt": "file hidden",
    ".git/e.txt": "file in hidden",
    "sub/.f.txt": "file hidden below",
    "image.png": b"\x89PNG\0\0",
}


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        ({}, "abcd"),
        ({"include": ["*.txt"]}, "ac"),
        ({"include": ["*.txt", "*.py"]}, "acd"),
        ({"include": ["sub"]}, "cd"),
        ({"include": ["sub/*"]}, "cd"),
        ({"exclude": ["*.txt"]}, "bd"),
        ({"exclude": ["deep"]}, "abc"),
        ({"exclude": ["sub/deep/*"]}, "abc"),
        ({"include": ["*.txt"], "exclude": ["sub"]}, "a"),
    ],
    ids=str,
)
def test_a_directory_gives_the_text_files_that_match(
    tmp_path: Path, options: dict[str, list[str]], letters: str
) -> None:
    write_files(tmp_path / "in", FILES)
    options |= {"validation_fraction": 0, "test_fraction": 0}
    artifact = run(tmp_path / "out", tmp_path / "in", **options)
    assert contents(artifact, "train") == [f"file {letter}".encode() for letter in letters]


def test_binary_files_of_a_directory_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path / "in", FILES)
    statistics = run(tmp_path / "out", tmp_path / "in").manifest.statistics
    assert statistics["binary_files_passed_over"] == 1
    assert statistics["documents"] == 4


@pytest.mark.parametrize("name", [".hidden.txt", "image.png", "a.txt"])
def test_a_file_that_is_named_is_always_taken(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, FILES)
    artifact = run(tmp_path / "out", tmp_path / name, validation_fraction=0, test_fraction=0)
    assert contents(artifact, "train") == [(tmp_path / name).read_bytes()]


@pytest.mark.parametrize(
    ("pattern", "letters"), [("*.txt", "a"), ("**/*.txt", "ac"), ("s*", "cd"), ("[ab].*", "ab")]
)
def test_a_glob_gives_what_it_matches(tmp_path: Path, pattern: str, letters: str) -> None:
    write_files(tmp_path / "in", FILES)
    options = {"validation_fraction": 0, "test_fraction": 0}
    artifact = run(tmp_path / "out", f"{tmp_path}/in/{pattern}", **options)
    assert contents(artifact, "train") == [f"file {letter}".encode() for letter in letters]


def test_a_file_whose_name_looks_like_a_glob_is_taken(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a[1].txt": "one", "a1.txt": "other"})
    options = {"validation_fraction": 0, "test_fraction": 0}
    artifact = run(tmp_path / "out", tmp_path / "in" / "a[1].txt", **options)
    assert contents(artifact, "train") == [b"one"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.txt": "text"})
    artifact = run(tmp_path / "out", tmp_path / "in", tmp_path / "in/a.txt", tmp_path / "in")
    assert artifact.manifest.statistics["documents"] == 1
    assert artifact.manifest.statistics["duplicate_documents"] == 0


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    try:
        (directory / "caf\udce9.txt").write_text("text")
    except (OSError, UnicodeError):
        pytest.skip("this file system allows only UTF-8 in names")
    artifact = run(tmp_path / "out", directory, validation_fraction=0, test_fraction=0)
    assert contents(artifact, "train") == [b"text"]


@pytest.mark.parametrize("name", ["missing", "missing/*.txt", "*.nothing"])
def test_an_input_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such file or directory") as caught:
        run(tmp_path / "out", f"{tmp_path}/{name}")
    assert f"{tmp_path}/{name}" in str(caught.value)
    assert everything_below(tmp_path) == []


def test_nothing_to_read_is_a_usage_error(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"image.png": b"\0"})
    with pytest.raises(UsageError, match="1 binary files passed over") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert str(tmp_path / "in") in str(caught.value)
    with pytest.raises(UsageError, match="no text files") as caught:
        run(tmp_path / "out", tmp_path / "in", include=["*.txt"])
    assert caught.value.hint is not None
    assert "`include`" in caught.value.hint


def test_a_directory_of_images_names_their_tokenizer(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"image.png": b"\0", "other.bin": b"\0"})
    with pytest.raises(UsageError, match="2 binary files passed over") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert caught.value.hint == "`tokenizer` pixel reads images"
    (tmp_path / "in/image.png").unlink()
    with pytest.raises(UsageError, match="1 binary files passed over") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert caught.value.hint is None


def test_files_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.txt": "", "b.txt": ""})
    with pytest.raises(UsageError, match="no text in it") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert str(tmp_path / "in") in str(caught.value)
    assert not (tmp_path / "out").exists()
