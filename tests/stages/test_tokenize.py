"""The tokenize stage: which files are read, where each byte goes, and how much memory it takes."""

import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtkit.config import TokenizeConfig, resolve
from smtkit.corpus import splits
from smtkit.corpus.splits import SPLITS, Fractions, assign_splits, cut
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.errors import InputOutputError, UsageError
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact
from smtkit.training.progress import Silent

WORDS = "Größe, naïve, 東京, Привет, \N{PILE OF POO}; "
"""Text with characters of one to four bytes."""


def write_files(directory: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return directory


def run(out: Path, *inputs: Path | str, **options: Any) -> Artifact:
    tokenize.run(resolve(TokenizeConfig, flags={"inputs": list(map(str, inputs)), **options}), out)
    artifact = Artifact.open(out, "tokens")
    artifact.verify()
    return artifact


def chunks(artifact: Artifact, split: str) -> list[tuple[int, int, list[int]]]:
    """(document, offset, tokens), read by Arrow alone."""
    rows = []
    for path in artifact.files(f"{split}-"):
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        rows += zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return rows


def documents(artifact: Artifact, split: str) -> dict[int, list[int]]:
    """Tokens of each document of a split, without the end-of-document token."""
    tokenizer = load_tokenizer(artifact)
    found: dict[int, list[int]] = defaultdict(list)
    for document, _, tokens in chunks(artifact, split):
        found[document] += tokens
    for tokens in found.values():
        assert tokens.pop() == tokenizer.end_of_document
        assert tokenizer.end_of_document not in tokens
    return dict(found)


def contents(artifact: Artifact, split: str) -> list[bytes]:
    """The bytes of each document of a split, sorted; of a `byte` artifact."""
    return sorted(bytes(tokens) for tokens in documents(artifact, split).values())


def all_contents(artifact: Artifact) -> list[bytes]:
    return sorted(content for split in SPLITS for content in contents(artifact, split))


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def many_files(count: int = 60) -> dict[str, str | bytes]:
    """Different texts of different lengths, none of which is half of all."""
    return {f"{n:03d}.txt": f"{n} {WORDS}" * (1 + n * 7 % 11) for n in range(count)}


# Which files are read


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


def test_nothing_to_read_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"image.png": b"\0"})
    with pytest.raises(UsageError, match="1 binary files passed over") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert str(tmp_path / "in") in str(caught.value)
    with pytest.raises(UsageError, match="no text files") as caught:
        run(tmp_path / "out", tmp_path / "in", include=["*.txt"])
    assert caught.value.hint is not None
    assert "`include`" in caught.value.hint


def test_files_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.txt": "", "b.txt": ""})
    with pytest.raises(UsageError, match="no text in it") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert str(tmp_path / "in") in str(caught.value)
    assert not (tmp_path / "out").exists()


# Splits


def test_every_byte_of_every_file_is_in_one_split(tmp_path: Path) -> None:
    files = many_files()
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    assert all_contents(artifact) == sorted(str(text).encode() for text in files.values())
    for split in SPLITS:
        assert contents(artifact, split)


def test_chunks_follow_each_other_without_gap(tmp_path: Path) -> None:
    files = {"long.txt": WORDS * 20_000, "short.txt": "short"}  # several chunks and batches
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    rows = [row for split in SPLITS for row in chunks(artifact, split)]
    expected: Counter[int] = Counter()
    for document, offset, tokens in rows:
        assert offset == expected[document]
        expected[document] += len(tokens)
    assert len(rows) > 10


def test_the_split_does_not_depend_on_the_order_of_the_inputs(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    paths = sorted(directory.iterdir())
    forth = run(tmp_path / "forth", *paths)
    back = run(tmp_path / "back", *reversed(paths))
    for split in SPLITS:
        assert contents(forth, split) == contents(back, split)


def test_the_split_does_not_depend_on_the_names(tmp_path: Path) -> None:
    files = many_files()
    renamed = {f"{n * 17 % 61}/x": text for n, text in enumerate(files.values())}
    first = run(tmp_path / "1", write_files(tmp_path / "a", files))
    second = run(tmp_path / "2", write_files(tmp_path / "b", renamed))
    for split in SPLITS:
        assert contents(first, split) == contents(second, split)


def test_the_split_depends_on_the_seed(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    first = run(tmp_path / "1", directory, seed=1)
    again = run(tmp_path / "2", directory, seed=1)
    other = run(tmp_path / "3", directory, seed=2)
    assert first.manifest.digest == again.manifest.digest
    assert contents(first, "test") != contents(other, "test")
    assert all_contents(first) == all_contents(other)


def test_equal_files_are_kept_once_and_empty_ones_not_at_all(tmp_path: Path) -> None:
    files = many_files()
    doubled = files | {f"copy/{name}": text for name, text in files.items()} | {"e": "", "f": ""}
    plain = run(tmp_path / "1", write_files(tmp_path / "a", files))
    artifact = run(tmp_path / "2", write_files(tmp_path / "b", doubled))
    for split in SPLITS:
        assert contents(artifact, split) == contents(plain, split)
    statistics = artifact.manifest.statistics
    assert statistics["documents"] == 2 * len(files) + 2
    assert statistics["duplicate_documents"] == len(files)
    assert statistics["empty_documents"] == 2


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 10), min_size=1, max_size=100),
    times=st.integers(0, 4),
    validation=st.floats(0, 0.3),
    test=st.floats(0, 0.3),
    seed=st.integers(0, 100),
)
def test_each_held_out_split_has_its_share_to_within_one_document(
    sizes: list[int], times: int, validation: float, test: float, seed: int
) -> None:
    """Short documents and perhaps one that is `times` as long as all of them, and is cut."""
    sizes = [*sizes, times * sum(sizes)]
    fractions = Fractions(validation, test)
    digests = np.random.default_rng(seed).integers(2**63, size=(len(sizes), 2), dtype=np.uint64)
    codes = assign_splits(digests, np.array(sizes), fractions, seed)
    total = sum(sizes)
    whole = [size for size in sizes if 0 < size * 2 < total]
    for code, fraction in ((splits.VALIDATION, validation), (splits.TEST, test)):
        held = sum(size for size, c in zip(sizes, codes, strict=True) if c == code)
        for size, c in zip(sizes, codes, strict=True):
            if c == splits.BY_POSITION:
                starts = (0, *fractions.boundaries(size), size)
                held += starts[code + 1] - starts[code]
        # The last split to choose may find too few documents left.
        if codes.tolist().count(splits.TRAIN):
            assert held <= fraction * total + max(whole, default=0) + 2
            assert held >= fraction * total - 2


def test_no_document_is_held_out_where_no_share_is_asked_for(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    artifact = run(tmp_path / "out", directory, validation_fraction=0, test_fraction=0)
    assert chunks(artifact, "validation") == []
    assert chunks(artifact, "test") == []
    assert artifact.manifest.statistics["splits"]["test"]["tokens"] == 0
    assert artifact.manifest.statistics["splits"]["test"]["bytes_per_token"] is None


# One long document


def joined_over_splits(artifact: Artifact) -> dict[int, list[list[int]]]:
    """For each document, its part in train, in validation, in test."""
    found: dict[int, list[list[int]]] = defaultdict(list)
    for split in SPLITS:
        for document, tokens in documents(artifact, split).items():
            found[document].append(tokens)
    return found


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_one_long_document_is_split_by_position(tmp_path: Path, tokenizer: str) -> None:
    text = WORDS * 60_000  # more than one block
    assert len(text.encode()) > 2 * 2**20
    write_files(tmp_path, {"long.txt": text})
    artifact = run(tmp_path / "out", tmp_path / "long.txt", tokenizer=tokenizer)
    decoder = load_tokenizer(artifact)
    (parts,) = joined_over_splits(artifact).values()
    decoded = [decoder.decode(part) for part in parts]
    assert "\ufffd" not in "".join(decoded)
    assert "".join(decoded) == text
    sizes = np.array([len(part.encode("utf-8")) for part in decoded])
    np.testing.assert_allclose(sizes / sizes.sum(), [0.9, 0.05, 0.05], atol=1e-5)


@pytest.mark.parametrize("shift", range(4))
def test_no_character_is_torn_at_a_boundary(tmp_path: Path, shift: int) -> None:
    """Every boundary of a text of four-byte characters, one byte further each time."""
    text = "x" * shift + "\N{PILE OF POO}" * 25
    write_files(tmp_path, {"long.txt": text})
    options = {"validation_fraction": 0.3, "test_fraction": 0.3}
    artifact = run(tmp_path / "out", tmp_path / "long.txt", **options)
    parts = [part.decode("utf-8") for split in SPLITS for part in contents(artifact, split)]
    assert len(parts) == 3
    assert "".join(parts) == text


def test_two_files_of_equal_size_are_both_split_by_position(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.txt": "a" * 1000, "b.txt": "b" * 1000}
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    parts = joined_over_splits(artifact).values()
    assert [[len(part) for part in of_splits] for of_splits in parts] == [[900, 50, 50]] * 2
    joined = sorted(b"".join(map(bytes, of_splits)) for of_splits in parts)
    assert joined == [b"a" * 1000, b"b" * 1000]


def test_a_long_document_and_short_ones_are_all_there(tmp_path: Path) -> None:
    files = many_files(20) | {"long.txt": WORDS * 1000}
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    found = sorted(b"".join(map(bytes, parts)) for parts in joined_over_splits(artifact).values())
    assert found == sorted(str(text).encode() for text in files.values())


def test_a_short_document_beside_a_long_one_can_be_trained_on(tmp_path: Path) -> None:
    """The long one alone gives the held-out splits their share, or nearly."""
    files = many_files(20) | {"long.txt": WORDS * 10_000}
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    assert len(documents(artifact, "train")) > 10


# splits.cut


@given(
    content=st.text(alphabet="aé\N{EURO SIGN}\N{PILE OF POO}").map(str.encode) | st.binary(),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    positions=st.lists(st.integers(0, 60)),
)
def test_cut_gives_the_same_parts_for_any_blocks(
    content: bytes, shares: tuple[float, float], positions: list[int]
) -> None:
    first, second = sorted(round(share * len(content)) for share in shares)
    ends = sorted({position for position in positions if position < len(content)} | {0})
    blocks = [
        content[start:end] for start, end in zip(ends, [*ends[1:], len(content)], strict=True)
    ]
    pieces = list(cut(blocks, (first, second)))

    parts = [b"", b"", b""]
    for split, piece in pieces:
        assert piece
        parts[split] += piece
    assert [split for split, _ in pieces] == sorted(split for split, _ in pieces)
    assert b"".join(parts) == content
    assert parts == list(cut_slowly(content, first, second))


def cut_slowly(content: bytes, first: int, second: int) -> tuple[bytes, bytes, bytes]:
    """A boundary moves past at most three continuation bytes; it does not move back."""
    starts = []
    for boundary in (first, second):
        start = boundary
        while start < min(len(content), boundary + 3) and content[start] & 0xC0 == 0x80:
            start += 1
        starts.append(start)
    return content[: starts[0]], content[starts[0] : starts[1]], content[starts[1] :]


@given(text=st.text(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_cut_tears_no_character(text: str, shares: tuple[float, float]) -> None:
    content = text.encode("utf-8")
    first, second = sorted(round(share * len(content)) for share in shares)
    parts = ["", "", ""]
    for split, piece in cut([content], (first, second)):
        parts[split] += piece.decode("utf-8")  # raises where a character is torn
    assert "".join(parts) == text


@given(
    size=st.integers(0, 2**50),
    validation=st.floats(0, 1, exclude_max=True),
    test=st.floats(0, 1, exclude_max=True),
)
def test_boundaries_lie_in_order_within_the_document(
    size: int, validation: float, test: float
) -> None:
    if validation + test < 1:
        first, second = Fractions(validation, test).boundaries(size)
        assert 0 <= first <= second <= size


# Counts


def test_the_counts_of_each_split_are_those_of_its_shards(tmp_path: Path) -> None:
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", many_files()), tokenizer="char")
    tokenizer = load_tokenizer(artifact)
    for split in SPLITS:
        found = documents(artifact, split)
        counts = artifact.manifest.statistics["splits"][split]
        tokens = sum(map(len, found.values())) + len(found)
        text_bytes = sum(len(tokenizer.decode(t).encode("utf-8")) for t in found.values())
        assert counts["documents"] == len(found)
        assert counts["tokens"] == tokens
        assert counts["bytes"] == text_bytes
        assert counts["bytes_per_token"] == pytest.approx(text_bytes / tokens)
        assert counts["unknown_tokens"] == 0
        assert sum(artifact.rows(f"{split}-")) == len(chunks(artifact, split))


def test_bytes_of_the_byte_tokenizer_are_those_of_the_files(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    splits_of = run(tmp_path / "out", directory).manifest.statistics["splits"]
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert sum(counts["bytes"] for counts in splits_of.values()) == size
    assert sum(counts["tokens"] for counts in splits_of.values()) == size + 60


def test_the_vocabulary_is_that_of_train_alone(tmp_path: Path) -> None:
    """A text whose last twentieth, the test split, has characters of its own."""
    text = "ab" * 475 + "ca" * 25
    write_files(tmp_path, {"long.txt": text})
    artifact = run(tmp_path / "out", tmp_path / "long.txt", tokenizer="char")
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.description()["characters"] == "ab"
    (test_tokens,) = documents(artifact, "test").values()
    assert tokenizer.decode(test_tokens) == "\ufffda" * 25
    counts = artifact.manifest.statistics["splits"]
    assert counts["test"]["unknown_tokens"] == 25
    assert counts["train"]["unknown_tokens"] == 0


def test_a_vocabulary_of_more_than_two_bytes_keeps_its_tokens(tmp_path: Path) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    write_files(tmp_path, {"long.txt": text})
    options = {"validation_fraction": 0, "test_fraction": 0, "tokenizer": "char"}
    artifact = run(tmp_path / "out", tmp_path / "long.txt", **options)
    assert artifact.manifest.statistics["vocabulary_size"] == len(text) + 2 > 2**16
    (tokens,) = documents(artifact, "train").values()
    assert tokens == list(range(len(text)))


# What goes wrong


@pytest.mark.parametrize("wrong", [10, 92_000, 99_990], ids=SPLITS)
def test_bytes_that_are_not_text_leave_nothing_behind(tmp_path: Path, wrong: int) -> None:
    content = bytearray(b"good text\n" * 10_000)
    content[wrong] = 0xFF
    write_files(tmp_path, {"bad.txt": bytes(content)})
    with pytest.raises(InputOutputError, match=f"byte {wrong}: 0xff is not UTF-8") as caught:
        run(tmp_path / "out", tmp_path / "bad.txt", tokenizer="char")
    assert str(tmp_path / "bad.txt") in str(caught.value)
    assert everything_below(tmp_path) == ["bad.txt"]


def test_a_failed_run_leaves_no_directories_that_it_made(tmp_path: Path) -> None:
    write_files(tmp_path, {"bad.txt": b"\xff"})
    with pytest.raises(InputOutputError):
        run(tmp_path / "a" / "b" / "out", tmp_path / "bad.txt", tokenizer="char")
    assert everything_below(tmp_path) == ["bad.txt"]


def test_bytes_that_are_not_text_are_replaced_when_asked_to(tmp_path: Path) -> None:
    write_files(tmp_path, {"bad.txt": b"a\xffb" * 10})
    options = {"tokenizer": "char", "errors": "replace"}
    options |= {"validation_fraction": 0, "test_fraction": 0}
    artifact = run(tmp_path / "out", tmp_path / "bad.txt", **options)
    tokenizer = load_tokenizer(artifact)
    (tokens,) = documents(artifact, "train").values()
    assert tokenizer.decode(tokens) == "a\ufffdb" * 10
    assert tokenizer.unknown not in tokens


def test_the_byte_tokenizer_takes_any_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    write_files(tmp_path, {"any.bin": content})
    artifact = run(tmp_path / "out", tmp_path / "any.bin")
    (parts,) = joined_over_splits(artifact).values()
    assert b"".join(map(bytes, parts)) == content


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"log.txt": "line\n" * 100}) / "log.txt"

    class Grow(Silent):
        def update(
            self, task: str, completed: float, total: float | None, **metrics: float | str
        ) -> None:
            with path.open("a") as file:
                file.write("one more\n")

    config = resolve(TokenizeConfig, flags={"inputs": [str(path)]})
    with pytest.raises(InputOutputError, match=r"log\.txt: changed while it was read"):
        tokenize.run(config, tmp_path / "out", progress=Grow())
    assert everything_below(tmp_path) == ["log.txt"]


def test_resume_keeps_the_tokens_and_notices_new_files(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    config = resolve(TokenizeConfig, flags={"inputs": [str(directory)]})
    first = tokenize.run(config, tmp_path / "out")
    assert tokenize.run(config, tmp_path / "out", resume=True) == first
    write_files(directory, {"new.txt": "new"})
    with pytest.raises(UsageError, match="cannot resume: input files was"):
        tokenize.run(config, tmp_path / "out", resume=True)
    anew = tokenize.run(config, tmp_path / "out", resume=True, overwrite=True)
    assert anew.statistics["documents"] == first.statistics["documents"] + 1


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    last: dict[str, tuple[float, float | None]] = {}

    class Listener(Silent):
        def update(
            self, task: str, completed: float, total: float | None, **metrics: float | str
        ) -> None:
            last[task] = (completed, total)

    directory = write_files(tmp_path / "in", many_files())
    config = resolve(TokenizeConfig, flags={"inputs": [str(directory)], "tokenizer": "char"})
    tokenize.run(config, tmp_path / "out", progress=Listener())
    assert len(last) == 3
    assert all(completed == total for completed, total in last.values())


# Memory

PEAK = """
import sys
from pathlib import Path
from smtkit.config import TokenizeConfig
from smtkit.stages import tokenize
tokenize.run(TokenizeConfig(inputs=[sys.argv[1]], tokenizer=sys.argv[3]), sys.argv[2])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_megabytes(path: Path, out: Path, tokenizer: str) -> float:
    """Peak memory of a process that tokenizes a file.

    Not `getrusage`: what it says of a process began with the peak of the one that started it.
    """
    command = [sys.executable, "-c", PEAK, str(path), str(out), tokenizer]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no peak")
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, tokenizer: str) -> None:
    block = (WORDS * 20_000).encode("utf-8")
    peaks = []
    for megabytes in (50, 200):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("wb") as file:
            for _ in range(megabytes * 10**6 // len(block)):
                file.write(block)
        peaks.append(peak_megabytes(path, tmp_path / f"out-{megabytes}", tokenizer))
        path.unlink()
    small, large = peaks
    assert large < 450
    assert large - small < 40
