"""A corpus of text: a given test split, the order of documents, and threads."""

from pathlib import Path

import pytest

from conftest import Command, arrow_columns, shards
from corpora import (
    ALL_TRAIN,
    gz,
    many_texts,
    run,
    some_text,
    split_texts,
    write_csv,
    write_jsonl,
    write_parquet,
    write_plain,
)
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.errors import InputOutputError
from smtkit.storage.artifact import Artifact


def test_a_given_test_split_is_kept_whole(command: Command, tmp_path: Path) -> None:
    texts = many_texts()
    given_test = ["a test", texts[3], "another", "a test", texts[40]]
    write_jsonl(tmp_path / "train.jsonl", [*texts, texts[7]])
    write_jsonl(tmp_path / "test.jsonl", given_test)
    out = tmp_path / "out"
    inputs = [tmp_path / "train.jsonl", "--test-input", tmp_path / "test.jsonl"]
    assert command("tokenize", *inputs, "--out", out, "--quiet").code == 0
    artifact = Artifact.open(out)
    assert split_texts(artifact, "test") == given_test
    others = split_texts(artifact, "train") + split_texts(artifact, "validation")
    expected = [text for text in texts if text not in given_test]
    assert sorted(others) == sorted(expected)
    assert len(split_texts(artifact, "validation")) >= 2
    assert artifact.manifest.statistics["duplicate_documents"] == 3
    assert artifact.manifest.statistics["documents"] == len(texts) + 1 + len(given_test)


def test_test_inputs_may_be_several_and_of_any_kind(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", many_texts())
    write_csv(tmp_path / "t1.csv", ["one", "two"])
    write_plain(tmp_path / "t2.txt", ["three"])
    tests = [str(gz(tmp_path / "t1.csv")), str(tmp_path / "t2.txt")]
    artifact = run(tmp_path / "out", tmp_path / "train.jsonl", test_inputs=tests)
    assert split_texts(artifact, "test") == ["one", "two", "three"]


def test_beside_a_given_test_one_long_document_is_cut_in_two(tmp_path: Path) -> None:
    text = some_text(3000)
    write_plain(tmp_path / "train.txt", [text])
    write_plain(tmp_path / "test.txt", ["the test"])
    artifact = run(
        tmp_path / "out",
        tmp_path / "train.txt",
        test_inputs=[str(tmp_path / "test.txt")],
        validation_fraction=0.2,
        test_fraction=0.5,
    )
    (train,), (validation,) = split_texts(artifact, "train"), split_texts(artifact, "validation")
    assert train + validation == text
    assert len(validation.encode()) / len(text.encode()) == pytest.approx(0.2, abs=1e-3)
    assert split_texts(artifact, "test") == ["the test"]


def test_the_vocabulary_excludes_a_given_test(tmp_path: Path) -> None:
    write_plain(tmp_path / "train.txt", ["abab" * 50])
    write_plain(tmp_path / "test.txt", ["abc"])
    artifact = run(
        tmp_path / "out",
        tmp_path / "train.txt",
        test_inputs=[str(tmp_path / "test.txt")],
        tokenizer="char",
    )
    assert load_tokenizer(artifact).description()["characters"] == "ab"
    assert artifact.manifest.statistics["splits"]["test"]["unknown_tokens"] == 1


def test_a_test_input_that_does_not_exist_is_named(command: Command, tmp_path: Path) -> None:
    write_plain(tmp_path / "train.txt", ["text"])
    missing = tmp_path / "missing.txt"
    flags = ["--test-input", missing, "--out", tmp_path / "out"]
    result = command("tokenize", tmp_path / "train.txt", *flags)
    assert result.code == 2
    assert result.line().startswith(f"{missing}: no such file")


def test_documents_come_in_the_order_of_inputs_files_and_rows(tmp_path: Path) -> None:
    (tmp_path / "dir/sub").mkdir(parents=True)
    write_plain(tmp_path / "z.txt", ["z"])
    write_plain(tmp_path / "dir/b.txt", ["b"])
    write_jsonl(tmp_path / "dir/a.jsonl", ["a1", "a2", "a3"])
    write_parquet(tmp_path / "dir/sub/c.parquet", [f"c{n}" for n in range(20)])
    write_csv(tmp_path / "dir/sub/d.csv", ["d1", "d2"])
    inputs = [tmp_path / "z.txt", tmp_path / "dir"]
    artifact = run(tmp_path / "out", *inputs, workers=4, **ALL_TRAIN)
    rows = ["a1", "a2", "a3", "b", *(f"c{n}" for n in range(20)), "d1", "d2"]
    assert split_texts(artifact, "train") == ["z", *rows]
    numbers = arrow_columns(shards(tmp_path / "out", "train"))["document"]
    assert numbers == list(range(len(rows) + 1))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "in").mkdir()
    texts = many_texts(300)
    for n, text in enumerate(texts[:150]):
        write_plain(tmp_path / "in" / f"{n}.txt", [text])
    for n in range(5):
        write_jsonl(tmp_path / "in" / f"{n}.jsonl", texts[150 + n * 30 : 180 + n * 30])
    write_plain(tmp_path / "in/long.txt", [some_text(150_000)])
    size = {"vocabulary_size": 300, "training_bytes": 20_000} if "s" in tokenizer else {}
    digests = {
        run(
            tmp_path / str(workers), tmp_path / "in", tokenizer=tokenizer, workers=workers, **size
        ).manifest.digest
        for workers in (1, 2, 4)
    }
    assert len(digests) == 1


def test_an_error_in_a_thread_is_that_of_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(50):
        bad = n in (20, 30, 40)
        (tmp_path / "in" / f"{n:02d}.txt").write_bytes(b"\xff" if bad else b"text %d" % n)
    for workers in (1, 4):
        with pytest.raises(InputOutputError, match=r"20\.txt: byte 0"):
            run(tmp_path / "out", tmp_path / "in", tokenizer="char", workers=workers)
