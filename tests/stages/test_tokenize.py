"""The tokenize stage: where each byte goes, counts, failures, and peak memory."""

import gzip
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from conftest import Recorder
from corpora import (
    MULTIBYTE,
    chunks,
    contents,
    document_tokens,
    everything_below,
    run,
    write_files,
)
from smtkit.config import TokenizeConfig, resolve
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.errors import InputOutputError, UsageError
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact
from smtkit.training.progress import Silent


def all_contents(artifact: Artifact) -> list[bytes]:
    return sorted(content for split in SPLITS for content in contents(artifact, split))


def many_files(count: int = 60) -> dict[str, str | bytes]:
    """Different texts of different lengths, none of which is half of all."""
    return {f"{n:03d}.txt": f"{n} {MULTIBYTE}" * (1 + n * 7 % 11) for n in range(count)}


def test_every_byte_of_every_file_is_in_one_split(tmp_path: Path) -> None:
    files = many_files()
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    assert all_contents(artifact) == sorted(str(text).encode() for text in files.values())
    for split in SPLITS:
        assert contents(artifact, split)


def test_chunks_follow_each_other_without_gap(tmp_path: Path) -> None:
    files = {"long.txt": MULTIBYTE * 20_000, "short.txt": "short"}  # several chunks and batches
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


def test_fractions_of_zero_hold_out_no_document(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    artifact = run(tmp_path / "out", directory, validation_fraction=0, test_fraction=0)
    assert chunks(artifact, "validation") == []
    assert chunks(artifact, "test") == []
    assert artifact.manifest.statistics["splits"]["test"]["tokens"] == 0
    assert artifact.manifest.statistics["splits"]["test"]["bytes_per_token"] is None


def joined_over_splits(artifact: Artifact) -> dict[int, list[list[int]]]:
    """For each document, its part in train, in validation, in test."""
    found: dict[int, list[list[int]]] = defaultdict(list)
    for split in SPLITS:
        for document, tokens in document_tokens(artifact, split).items():
            found[document].append(tokens)
    return found


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_one_long_document_is_split_by_position(tmp_path: Path, tokenizer: str) -> None:
    text = MULTIBYTE * 60_000  # more than one block
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
    files = many_files(20) | {"long.txt": MULTIBYTE * 1000}
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    found = sorted(b"".join(map(bytes, parts)) for parts in joined_over_splits(artifact).values())
    assert found == sorted(str(text).encode() for text in files.values())


def test_short_documents_beside_a_long_one_stay_in_train(tmp_path: Path) -> None:
    """The long one alone gives the held-out splits their share, or nearly."""
    files = many_files(20) | {"long.txt": MULTIBYTE * 10_000}
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", files))
    assert len(document_tokens(artifact, "train")) > 10


def test_the_counts_of_each_split_are_those_of_its_shards(tmp_path: Path) -> None:
    artifact = run(tmp_path / "out", write_files(tmp_path / "in", many_files()), tokenizer="char")
    tokenizer = load_tokenizer(artifact)
    for split in SPLITS:
        found = document_tokens(artifact, split)
        counts = artifact.manifest.statistics["splits"][split]
        tokens = sum(map(len, found.values())) + len(found)
        text_bytes = sum(len(tokenizer.decode(t).encode("utf-8")) for t in found.values())
        assert counts["documents"] == len(found)
        assert counts["tokens"] == tokens
        assert counts["bytes"] == text_bytes
        assert counts["bytes_per_token"] == pytest.approx(text_bytes / tokens)
        assert counts["unknown_tokens"] == 0
        assert sum(artifact.rows(f"{split}-")) == len(chunks(artifact, split))


def test_byte_counts_of_the_byte_tokenizer_are_the_file_sizes(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "in", many_files())
    splits_of = run(tmp_path / "out", directory).manifest.statistics["splits"]
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert sum(counts["bytes"] for counts in splits_of.values()) == size
    assert sum(counts["tokens"] for counts in splits_of.values()) == size + 60


def test_the_vocabulary_is_fitted_on_train_alone(tmp_path: Path) -> None:
    """A text whose last twentieth, the test split, has characters of its own."""
    text = "ab" * 475 + "ca" * 25
    write_files(tmp_path, {"long.txt": text})
    artifact = run(tmp_path / "out", tmp_path / "long.txt", tokenizer="char")
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.description()["characters"] == "ab"
    (test_tokens,) = document_tokens(artifact, "test").values()
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
    (tokens,) = document_tokens(artifact, "train").values()
    assert tokens == list(range(len(text)))


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


def test_bytes_that_are_not_utf8_are_replaced_with_errors_replace(tmp_path: Path) -> None:
    write_files(tmp_path, {"bad.txt": b"a\xffb" * 10})
    options = {"tokenizer": "char", "errors": "replace"}
    options |= {"validation_fraction": 0, "test_fraction": 0}
    artifact = run(tmp_path / "out", tmp_path / "bad.txt", **options)
    tokenizer = load_tokenizer(artifact)
    (tokens,) = document_tokens(artifact, "train").values()
    assert tokenizer.decode(tokens) == "a\ufffdb" * 10
    assert tokenizer.unknown not in tokens


def test_the_byte_tokenizer_takes_any_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    write_files(tmp_path, {"any.bin": content})
    artifact = run(tmp_path / "out", tmp_path / "any.bin")
    (parts,) = joined_over_splits(artifact).values()
    assert b"".join(map(bytes, parts)) == content


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


@pytest.mark.parametrize(
    ("files", "options", "empty"),
    [
        ({"a.txt": "ab"}, {}, ["validation", "test"]),
        ({"a.txt": "ab"}, {"validation_fraction": 0}, ["test"]),
        ({"a.txt": "ab"}, {"validation_fraction": 0, "test_fraction": 0}, []),
        ({"a.txt": "ab" * 500}, {}, []),
    ],
)
def test_splits_that_are_empty_against_the_settings_are_warned_of(
    tmp_path: Path, files: dict[str, str | bytes], options: dict[str, float], empty: list[str]
) -> None:
    recorder = Recorder()
    flags = {"inputs": [str(write_files(tmp_path / "in", files))], **options}
    tokenize.run(resolve(TokenizeConfig, flags=flags), tmp_path / "out", progress=recorder)
    assert [warning.split()[1] for warning in recorder.warnings] == empty
    assert all("split is empty" in warning for warning in recorder.warnings)
    for split in empty:
        assert chunks(Artifact.open(tmp_path / "out"), split) == []


@pytest.mark.parametrize("name", ["a.png", "b.npy", "c.npz", "t10k-images-idx3-ubyte.gz"])
def test_images_that_are_read_as_text_are_warned_of(tmp_path: Path, name: str) -> None:
    packed = name.endswith(".gz")
    content = b"\0\x89PNG\0" * 100
    write_files(tmp_path, {name: gzip.compress(content) if packed else content, "z.txt": "text"})
    recorder = Recorder()
    inputs = [str(tmp_path / "z.txt"), str(tmp_path / name)]
    config = resolve(TokenizeConfig, flags={"inputs": inputs})
    tokenize.run(config, tmp_path / "out", progress=recorder)
    (warning,) = recorder.warnings
    assert warning.startswith(f"{tmp_path / name}: ")
    assert "pixel tokenizer" in warning


def test_binary_files_that_are_named_are_warned_of(tmp_path: Path) -> None:
    """Not those of a directory, which are passed over, nor rows, nor what is compressed."""
    files = {"a.pt": b"\0weights", "b.bin": b"\0", "in/c.bin": b"\0", "in/d.txt": "text"}
    write_files(tmp_path, {**files, "e.txt.gz": gzip.compress(b"text")})
    recorder = Recorder()
    inputs = [str(tmp_path / name) for name in ("a.pt", "b.bin", "in", "e.txt.gz")]
    config = resolve(TokenizeConfig, flags={"inputs": inputs, "test_fraction": 0})
    tokenize.run(config, tmp_path / "out", progress=recorder)
    (warning,) = (warning for warning in recorder.warnings if "binary" in warning)
    assert warning == (
        f"{tmp_path / 'a.pt'} and 1 more: binary, not text: every byte is read as a part of it"
    )


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
    block = (MULTIBYTE * 20_000).encode("utf-8")
    peaks = []
    for megabytes in (25, 125):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("wb") as file:
            for _ in range(megabytes * 10**6 // len(block)):
                file.write(block)
        peaks.append(peak_megabytes(path, tmp_path / f"out-{megabytes}", tokenizer))
        path.unlink()
    small, large = peaks
    assert large < 450
    assert large - small < 27
