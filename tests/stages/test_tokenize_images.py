"""Images through the tokenize stage: pixels, labels, splits and mistakes; and through the whole
chain."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import (
    Command,
    Pipeline,
    arrow_columns,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
)
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig, TokenizeConfig, resolve
from smtkit.corpus.shards import read_split
from smtkit.corpus.splits import SPLITS
from smtkit.errors import InputOutputError, UsageError
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.stages import evaluate, tokenize
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run

Row = tuple[tuple[int, ...], int | None]


def random_images(count: int, seed: int = 0, height: int = 4, width: int = 3) -> np.ndarray:
    shape = (count, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(directory: Path, name: str, images: np.ndarray, labels: np.ndarray | None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    if labels is not None:
        content = struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
        (directory / f"{name}-labels-idx1-ubyte").write_bytes(content)
    return path


def write_pictures(directory: Path, images: np.ndarray, classes: list[str]) -> Path:
    for number, (image, name) in enumerate(zip(images, classes, strict=True)):
        (directory / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(directory / name / f"{number:03d}.png")
    return directory


def write_npy(path: Path, images: np.ndarray) -> Path:
    np.save(path, images)
    return path


def test_images_replaced_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npy(tmp_path / "a.npy", random_images(40))
    config = resolve(TokenizeConfig, flags={"inputs": [str(path)], "tokenizer": "pixel"})

    class Replacing(Run):
        """Replaces the images when the first file is added: between the passes."""

        def add(self, *arguments: Any, **options: Any) -> Any:
            write_npy(path, random_images(40, seed=1))
            return super().add(*arguments, **options)

    monkeypatch.setattr(tokenize, "Run", Replacing)
    with pytest.raises(InputOutputError, match=r"a\.npy: images 0 to 39 changed while"):
        tokenize.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tokenized(command: Command, out: Path, *arguments: object) -> Artifact:
    result = command("tokenize", *arguments, "--tokenizer", "pixel", "--out", out, "-q")
    assert result.code == 0, result.stderr
    artifact = Artifact.open(out, "tokens")
    artifact.verify()
    return artifact


def rows_of(artifact: Artifact, split: str) -> list[Row]:
    """(tokens, label) of each row, by Arrow alone; every target is the token itself, then none."""
    columns = arrow_columns(artifact.files(f"{split}-"))
    labels = columns.get("label", [None] * len(columns["tokens"]))
    for tokens, targets in zip(columns["tokens"], columns["targets"], strict=True):
        assert targets == [*tokens, IGNORE]
    return list(zip(map(tuple, columns["tokens"]), labels, strict=True))


def all_rows(artifact: Artifact) -> list[Row]:
    return [row for split in SPLITS for row in rows_of(artifact, split)]


def expected_rows(images: np.ndarray, labels: np.ndarray | None = None) -> list[Row]:
    """Line by line from the top left corner."""
    rows = []
    for number, image in enumerate(images):
        pixels = tuple(int(image[y, x]) for y in range(len(image)) for x in range(len(image[0])))
        rows.append((pixels, None if labels is None else int(labels[number])))
    return rows


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# Rows and splits


def test_idx_files_come_with_their_labels(command: Command, tmp_path: Path) -> None:
    images, labels = random_images(100), np.arange(100) % 10
    path = write_idx(tmp_path / "in", "train", images, labels)
    artifact = tokenized(
        command, tmp_path / "out", path, "--validation-fraction", 0.1, "--test-fraction", 0.2
    )
    assert sorted(all_rows(artifact)) == sorted(expected_rows(images, labels))
    statistics = artifact.manifest.statistics
    sizes = {split: len(rows_of(artifact, split)) for split in SPLITS}
    assert sizes == {"train": 70, "validation": 10, "test": 20}
    for split in SPLITS:
        assert statistics["splits"][split] == {"rows": sizes[split], "tokens": 12 * sizes[split]}
    assert statistics["layout"] == "rows"
    assert (statistics["length"], statistics["height"], statistics["width"]) == (12, 4, 3)
    assert statistics["images"] == 100
    assert statistics["duplicate_images"] == 0
    assert statistics["vocabulary_size"] == 256
    assert statistics["label_names"] is None


def test_rows_are_read_back_one_by_one(command: Command, tmp_path: Path) -> None:
    images, labels = random_images(50), np.arange(50)
    path = write_idx(tmp_path / "in", "train", images, labels)
    artifact = tokenized(
        command, tmp_path / "out", path, "--validation-fraction", 0, "--test-fraction", 0
    )
    store = read_split(artifact, "train")
    order = np.random.default_rng(0).permutation(50)
    assert [row.tolist() for row in store.column("tokens", order)] == [
        images[number].ravel().tolist() for number in order
    ]
    assert [int(row[0]) for row in store.column("label", order)] == order.tolist()


def test_pictures_in_folders_have_the_folders_as_labels(command: Command, tmp_path: Path) -> None:
    images = random_images(30)
    classes = [["cat", "ant", "dog"][n % 3] for n in range(30)]
    artifact = tokenized(
        command, tmp_path / "out", write_pictures(tmp_path / "in", images, classes)
    )
    assert artifact.manifest.statistics["label_names"] == ["ant", "cat", "dog"]
    labels = np.array([["ant", "cat", "dog"].index(name) for name in classes])
    assert sorted(all_rows(artifact)) == sorted(expected_rows(images, labels))


def test_levels_size_and_threshold_reach_the_tokens(command: Command, tmp_path: Path) -> None:
    images = random_images(40, height=4, width=6)
    path = write_npy(tmp_path / "images.npy", images)
    four = tokenized(command, tmp_path / "4", path, "--levels", 4)
    assert sorted(all_rows(four)) == sorted(expected_rows(images // 64))
    assert four.manifest.statistics["vocabulary_size"] == 4
    halves = tokenized(command, tmp_path / "half", path, "--size", "2x3", "--binarize", 0.5)
    means = images.reshape(40, 2, 2, 3, 2).mean((2, 4))
    different = dict.fromkeys(expected_rows((means / 255 >= 0.5).astype(int)))
    assert sorted(all_rows(halves)) == sorted(different)
    assert halves.manifest.statistics["length"] == 6
    assert halves.manifest.statistics["duplicate_images"] == 40 - len(different)


def test_equal_images_are_kept_once(command: Command, tmp_path: Path) -> None:
    """Also between files; the first keeps its label."""
    images = random_images(40)
    first = write_idx(tmp_path / "a", "train", images, np.arange(40))
    again = write_idx(tmp_path / "b", "train", images[10:30], np.full(20, 99))
    artifact = tokenized(command, tmp_path / "out", first, again)
    assert sorted(all_rows(artifact)) == sorted(expected_rows(images, np.arange(40)))
    assert artifact.manifest.statistics["images"] == 60
    assert artifact.manifest.statistics["duplicate_images"] == 20


def test_the_split_does_not_depend_on_the_order_of_the_images(
    command: Command, tmp_path: Path
) -> None:
    images = random_images(80)
    forth = tokenized(command, tmp_path / "1", write_npy(tmp_path / "forth.npy", images))
    back = tokenized(command, tmp_path / "2", write_npy(tmp_path / "back.npy", images[::-1].copy()))
    other = tokenized(command, tmp_path / "3", tmp_path / "forth.npy", "--seed", 1)
    for split in SPLITS:
        assert sorted(rows_of(forth, split)) == sorted(rows_of(back, split))
    assert sorted(rows_of(forth, "test")) != sorted(rows_of(other, "test"))


def test_one_image_is_never_cut(command: Command, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "one.npy", random_images(1))
    artifact = tokenized(command, tmp_path / "out", path)
    assert len(all_rows(artifact)) == 1


def test_blocks_and_shards_change_no_row(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(50)
    path = write_npy(tmp_path / "images.npy", images)
    whole = tokenized(command, tmp_path / "1", path)
    monkeypatch.setattr("smtkit.corpus.images._BLOCK_IMAGES", 7)
    monkeypatch.setattr("smtkit.corpus.shards.SHARD_TOKENS", 120)
    pieces = tokenized(command, tmp_path / "2", path)
    assert len(pieces.files("train-")) > 2
    for split in SPLITS:
        assert rows_of(pieces, split) == rows_of(whole, split)


def test_a_given_test_split_is_kept_whole_and_in_order(command: Command, tmp_path: Path) -> None:
    train, test = random_images(60), random_images(20, seed=1)
    test[5], test[7], test[8] = train[3], train[50], test[2]
    labels = np.arange(20) % 10
    train_path = write_idx(tmp_path / "in", "train", train, np.full(60, 3))
    test_path = write_idx(tmp_path / "in", "t10k", test, labels)
    flags = ["--test-input", test_path, "--validation-fraction", 0.2, "--test-fraction", 0.5]
    artifact = tokenized(command, tmp_path / "out", train_path, *flags)
    assert rows_of(artifact, "test") == expected_rows(test, labels)
    rest = rows_of(artifact, "train") + rows_of(artifact, "validation")
    kept = np.delete(train, [3, 50], axis=0)
    assert sorted(rest) == sorted(expected_rows(kept, np.full(58, 3)))
    assert len(rows_of(artifact, "validation")) == 12
    assert artifact.manifest.statistics["duplicate_images"] == 2
    assert artifact.manifest.statistics["images"] == 80


def test_include_and_exclude_choose_pictures(command: Command, tmp_path: Path) -> None:
    images = random_images(30)
    classes = [["cat", "ant", "dog"][n % 3] for n in range(30)]
    path = write_pictures(tmp_path / "in", images, classes)
    flags = ["--include", "cat", "--include", "ant/*", "--exclude", "*1?.png"]
    artifact = tokenized(command, tmp_path / "out", path, *flags)
    chosen = [n for n in range(30) if classes[n] != "dog" and not 10 <= n < 20]
    labels = np.array([["ant", "cat"].index(classes[n]) for n in chosen])
    assert sorted(all_rows(artifact)) == sorted(expected_rows(images[chosen], labels))
    flags = ["--tokenizer", "pixel", "--include", "*.txt", "--out", tmp_path / "none"]
    result = command("tokenize", path, *flags)
    assert (result.code, "check --include and --exclude" in result.line()) == (2, True)


def test_a_glob_names_images(command: Command, tmp_path: Path) -> None:
    images = random_images(6)
    write_pictures(tmp_path / "in", images, ["a"] * 6)
    write_npy(tmp_path / "in" / "b.npy", random_images(4, seed=1))
    artifact = tokenized(command, tmp_path / "out", tmp_path / "in" / "a" / "00[1-4].png")
    assert sorted(all_rows(artifact)) == sorted(expected_rows(images[1:5]))
    artifact = tokenized(command, tmp_path / "npy", tmp_path / "in" / "*.npy")
    assert len(all_rows(artifact)) == 4


@pytest.mark.parametrize("broken", [[0], [3], [29], [0, 1, 2, 3, 4, 5, 6, 7, 13]])
def test_broken_pictures_are_skipped_and_counted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: list[int]
) -> None:
    monkeypatch.setattr("smtkit.corpus.images._BLOCK_IMAGES", 5)
    images, classes = random_images(30), [["cat", "ant"][n % 2] for n in range(30)]
    path = write_pictures(tmp_path / "in", images, classes)
    test = write_pictures(tmp_path / "test", random_images(4, seed=1), ["cat", "ant"] * 2)
    files = [path / classes[n] / f"{n:03d}.png" for n in broken]
    for file in [*files, test / "cat" / "000.png"]:
        file.write_bytes(file.read_bytes()[:50])
    result = command("tokenize", path, "--tokenizer", "pixel", "--out", tmp_path / "strict")
    assert (result.code, result.line().startswith(f"{min(files)}: ")) == (74, True)
    assert "--errors skip leaves such pictures out" in result.line()

    artifact = tokenized(command, tmp_path / "out", path, "--test-input", test, "--errors", "skip")
    kept = [n for n in range(30) if n not in broken]
    labels = np.array([["ant", "cat"].index(classes[n]) for n in kept])
    rest = rows_of(artifact, "train") + rows_of(artifact, "validation")
    assert sorted(rest) == sorted(expected_rows(images[kept], labels))
    assert len(rows_of(artifact, "test")) == 3
    statistics = artifact.manifest.statistics
    assert (statistics["images"], statistics["broken_images"]) == (
        33 - len(broken),
        len(broken) + 1,
    )


def test_pictures_that_are_all_broken_are_refused(command: Command, tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "in", random_images(3), ["a"] * 3)
    for file in path.glob("a/*"):
        file.write_bytes(b"no picture")
    flags = ["--tokenizer", "pixel", "--errors", "skip", "--out", tmp_path / "out"]
    result = command("tokenize", path, *flags)
    assert (result.code, result.line()) == (2, f"{path}: all 3 pictures are broken")


# Mistakes


def test_images_of_different_sizes_are_named(command: Command, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", random_images(3), ["a"] * 3)
    Image.fromarray(random_images(1, height=5)[0]).save(tmp_path / "in/a/odd.png")
    before = everything_below(tmp_path)
    flags = ["--tokenizer", "pixel", "--out", tmp_path / "out", "-q"]
    result = command("tokenize", tmp_path / "in", *flags)
    assert result.code == 74
    assert result.line().startswith(str(tmp_path / "in/a/odd.png"))
    assert "(5, 3)" in result.line()
    assert "(4, 3)" in result.line()
    assert everything_below(tmp_path) == before
    tokenized(command, tmp_path / "out", tmp_path / "in", "--size", "4x3")


def test_two_files_of_different_sizes_are_refused(command: Command, tmp_path: Path) -> None:
    first = write_npy(tmp_path / "a.npy", random_images(3))
    second = write_npy(tmp_path / "b.npy", random_images(3, width=4))
    flags = ["--tokenizer", "pixel", "--out", tmp_path / "out", "-q"]
    result = command("tokenize", first, second, *flags)
    assert result.code == 74
    assert result.line().startswith(str(second))
    assert everything_below(tmp_path) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("what", ["size", "labels", "label names"])
def test_a_test_that_does_not_match_is_refused(command: Command, tmp_path: Path, what: str) -> None:
    if what == "size":
        train = write_npy(tmp_path / "a.npy", random_images(3))
        test = write_npy(tmp_path / "b.npy", random_images(3, width=4))
    elif what == "labels":
        train = write_idx(tmp_path, "train", random_images(3), np.arange(3))
        test = write_npy(tmp_path / "b.npy", random_images(3))
    else:
        train = write_pictures(tmp_path / "a", random_images(3), ["x", "y", "x"])
        test = write_pictures(tmp_path / "b", random_images(3), ["x", "z", "x"])
    before = everything_below(tmp_path)
    flags = ["--tokenizer", "pixel", "--test-input", test, "--out", tmp_path / "out", "-q"]
    result = command("tokenize", train, *flags)
    assert result.code == 2
    assert str(test) in result.line()
    assert what in result.line()
    assert everything_below(tmp_path) == before


def test_an_image_that_is_wrong_at_the_end_leaves_nothing(command: Command, tmp_path: Path) -> None:
    images = random_images(3000).astype(np.float32) / 255
    images[2999, 3, 2] = 1.5
    path = write_npy(tmp_path / "a.npy", images)
    flags = ["--tokenizer", "pixel", "--out", tmp_path / "deep" / "out", "-q"]
    result = command("tokenize", path, *flags)
    assert result.code == 74
    assert result.line().startswith(f"{path}: image 2999, row 3, column 2: 1.5")
    assert everything_below(tmp_path) == ["a.npy"]


def test_a_truncated_file_leaves_nothing(command: Command, tmp_path: Path) -> None:
    path = write_idx(tmp_path, "train", random_images(30), None)
    path.write_bytes(path.read_bytes()[:-5])
    flags = ["--tokenizer", "pixel", "--out", tmp_path / "out", "-q"]
    result = command("tokenize", path, *flags)
    assert result.code == 74
    assert result.line().startswith(str(path))
    assert everything_below(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--levels", 1], "1"),
        (["--errors", "replace"], "errors = replace is for text; pictures allow strict, skip"),
        (["--levels", 300], "300"),
        (["--levels", 4, "--binarize", 0.5], "binarize"),
        (["--size", "4x"], "size"),
        (["--size", "0x4"], "size"),
        (["--maximum", -1], "maximum"),
        (["--validation-fraction", 0.6, "--test-fraction", 0.6], "below 1"),
    ],
)
def test_a_wrong_setting_is_one_line(
    command: Command, tmp_path: Path, flags: list[object], found: str
) -> None:
    path = write_npy(tmp_path / "a.npy", random_images(3))
    output = ["--tokenizer", "pixel", "--out", tmp_path / "out", "-q"]
    result = command("tokenize", path, *output, *flags)
    assert result.code == 2
    assert found in result.line()
    assert everything_below(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("changed", ["picture", "new picture", "images", "labels"])
def test_resume_keeps_the_images_and_notices_others(tmp_path: Path, changed: str) -> None:
    images = random_images(20)
    if "picture" in changed:
        path = write_pictures(tmp_path / "in", images, ["a", "b"] * 10)
    else:
        path = write_idx(tmp_path / "in", "train", images, np.arange(20))
    config = resolve(TokenizeConfig, flags={"inputs": [str(path)], "tokenizer": "pixel"})
    first = tokenize.run(config, tmp_path / "out")
    assert tokenize.run(config, tmp_path / "out", resume=True) == first
    if changed == "picture":
        Image.fromarray(255 - images[0]).save(path / "a/000.png")
    elif changed == "new picture":
        Image.fromarray(255 - images[0]).save(path / "a/100.png")
    elif changed == "images":
        write_idx(tmp_path / "in", "train", 255 - images, None)
    else:
        labels = tmp_path / "in/train-labels-idx1-ubyte"
        labels.write_bytes(labels.read_bytes()[:-1] + b"\7")
    with pytest.raises(UsageError, match="cannot resume: input files was"):
        tokenize.run(config, tmp_path / "out", resume=True)


# The whole chain


@pytest.fixture(scope="module")
def image_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory = tmp_path_factory.mktemp("images")
    path = write_npy(directory / "images.npy", random_images(80))
    options: dict[str, Any] = {"pixel.levels": 4, "test_fraction": 0.2}
    flags = {"inputs": [str(path)], "tokenizer": "pixel", **options}
    tokenize.run(resolve(TokenizeConfig, flags=flags), directory / "tokens")
    return build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(dtype="float32"),
        rnn_config(data={"positions": 4}),
    )


@torch.no_grad()
def test_images_are_predicted_pixel_by_pixel(image_pipeline: Pipeline, tmp_path: Path) -> None:
    manifest = evaluate.run(
        evaluate_config(),
        image_pipeline.rnn,
        image_pipeline.tokens,
        tmp_path / "out",
        encoder=image_pipeline.encoder,
    )
    network = load_rnn(Artifact.open(image_pipeline.rnn))
    window = network.architecture.window
    teacher = load_teacher(Artifact.open(image_pipeline.encoder))
    assert window == manifest.statistics["window"] == 12
    rows = [tokens for tokens, _ in rows_of(Artifact.open(image_pipeline.tokens), "test")]
    assert manifest.statistics["windows"] == len(rows) == 16
    found = {(r["predictor"], r["range"]): r for r in manifest.statistics["results"]}
    assert {name for _, name in found} == {"1..T/2", "T/2..T"}
    free, read = np.zeros((16, 12)), np.zeros((16, 12))
    for number, tokens in enumerate(rows):
        memory = network.empty_memory[None]
        memories = teacher.encoder(torch.tensor([tokens]))[0]
        for i, token in enumerate(tokens):
            free[number, i] = -float(network.readout(memory)[0].double().log_softmax(-1)[token])
            logits = teacher.readout(memories[i][None])[0].double()
            read[number, i] = -float(logits.log_softmax(-1)[token])
            memory = network.step(memory, torch.tensor([token]))
    for name, first, last in (("1..T/2", 1, 6), ("T/2..T", 7, 12)):
        for predictor, nll in (("rnn, free-running", free), ("teacher, readout", read)):
            row = found[predictor, name]
            assert row["targets"] == nll[:, first : last + 1].size
            assert row["nll"] == pytest.approx(nll[:, first : last + 1].mean(), rel=1e-5)
            assert row["bits_per_byte"] is None


def test_labels_hold_whole_images(image_pipeline: Pipeline) -> None:
    columns = arrow_columns(Artifact.open(image_pipeline.labels).files("train-"))
    rows = rows_of(Artifact.open(image_pipeline.tokens), "train")
    assert list(map(tuple, columns["tokens"])) == [tokens for tokens, _ in rows]
    assert columns["targets"] == [[*tokens, IGNORE] for tokens, _ in rows]
    assert set(columns["length"]) == {12}
