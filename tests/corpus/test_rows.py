"""Rows, images and tasks: written, read back, made into windows, and through all stages."""

from pathlib import Path

import numpy as np
import pytest

from smtkit import IGNORE
from smtkit.config import (
    EvaluateConfig,
    ExtractLabelsConfig,
    SynthesizeConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    resolve,
)
from smtkit.corpus.shards import read_split
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.task_rows import generate, symbols
from smtkit.corpus.tasks import TASKS
from smtkit.corpus.tokenizers import PixelTokenizer, SymbolTokenizer
from smtkit.corpus.windows import open_windows
from smtkit.errors import InputOutputError, UsageError
from smtkit.stages import (
    evaluate,
    extract_labels,
    inspect,
    synthesize,
    tokenize,
    train_encoder,
    train_rnn,
)
from smtkit.storage.artifact import Artifact

TRAINING = {
    "training.max_steps": 3,
    "training.batch_size": 8,
    "training.validation_windows": 8,
}
SMALL = {
    **TRAINING,
    "encoder.width": 16,
    "encoder.slot_width": 8,
    "encoder.slots": 2,
    "decoder.width": 16,
    "cell.width": 16,
    "objective.future_length": "rest",
}


def task_rows(directory: Path, task: str = "retrieval", **settings) -> Artifact:
    flags = {
        "task": task,
        "lengths": [8, 16],
        "sequences": 60,
        "validation_sequences": 20,
        "test_sequences": 20,
        **settings,
    }
    synthesize.run(resolve(SynthesizeConfig, flags=flags), directory / "tokens", overwrite=True)
    return Artifact.open(directory / "tokens")


def images(count: int, height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width)).astype(np.uint8)


def image_rows(directory: Path, *inputs: Path, **settings) -> Artifact:
    flags = {"inputs": [str(path) for path in inputs], "tokenizer": "pixel", **settings}
    tokenize.run(resolve(TokenizeConfig, flags=flags), directory / "tokens", overwrite=True)
    return Artifact.open(directory / "tokens")


def saved(path: Path, pixels: np.ndarray, labels: np.ndarray | None = None) -> Path:
    if labels is None:
        np.savez(path, images=pixels)
    else:
        np.savez(path, images=pixels, labels=labels)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_stored_as_they_are_generated(tmp_path: Path, task: str) -> None:
    artifact = task_rows(tmp_path, task)
    settings = SynthesizeConfig(task=task, lengths=[8, 16], sequences=60)
    tokenizer = load_tokenizer(artifact)
    assert isinstance(tokenizer, SymbolTokenizer)
    assert tokenizer.symbols == symbols(settings)
    for split, count in (("train", 60), ("validation", 20), ("test", 20)):
        (expected,) = generate(settings, 0, split, count)
        store = read_split(artifact, split)
        for row in range(count):
            length = expected.length[row]
            index = np.array([row])
            for name, extra in (("tokens", 0), ("targets", 1), ("distance", 1)):
                wanted = getattr(expected, name)[row, : length + extra].tolist()
                assert store.column(name, index)[0].tolist() == wanted


def test_rows_make_windows_one_each(tmp_path: Path) -> None:
    artifact = task_rows(tmp_path, "keys-values")
    store = read_split(artifact, "train")
    windows = open_windows(artifact, "train", None, lookahead=3)
    assert (windows.window, windows.per_epoch) == (16, 60)
    rows = np.array([5, 0, 59])
    read = windows.read(windows.starts(np.zeros(3, dtype=np.int64), rows, seed=1))
    for index, row in enumerate(rows):
        tokens = store.column("tokens", np.array([row]))[0].tolist()
        targets = store.column("targets", np.array([row]))[0].tolist()
        assert read.length[index] == len(tokens)
        assert read.tokens[index].tolist() == tokens + [0] * (19 - len(tokens))
        assert read.targets[index].tolist() == targets + [IGNORE] * (20 - len(targets))


def test_a_window_that_does_not_fit_the_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows of up to 16 tokens"):
        open_windows(task_rows(tmp_path), "train", 12)


def test_impossible_tasks_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`lengths`"):
        task_rows(tmp_path, "string-copy", lengths=[7])
    assert not (tmp_path / "tokens").exists()


def test_images_are_stored_pixel_by_pixel_with_their_labels(tmp_path: Path) -> None:
    pixels, labels = images(2000), np.arange(2000) % 7
    artifact = image_rows(tmp_path, saved(tmp_path / "a.npz", pixels, labels))
    tokenizer = load_tokenizer(artifact)
    assert isinstance(tokenizer, PixelTokenizer)
    assert (tokenizer.levels, tokenizer.height, tokenizer.width) == (256, 6, 5)
    expected = {image.tobytes(): int(label) for image, label in zip(pixels, labels, strict=True)}
    found = {}
    for split, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        store = read_split(artifact, split)
        assert store.rows == pytest.approx(share * 2000, abs=2)
        rows = np.arange(store.rows)
        for tokens, targets, label in zip(
            *(store.column(name, rows) for name in ("tokens", "targets", "label")), strict=True
        ):
            assert targets.tolist() == [*tokens.tolist(), IGNORE]
            found[tokens.astype(np.uint8).tobytes()] = int(label[0])
    assert found == expected


def test_equal_images_come_once_and_a_given_test_stays_whole(tmp_path: Path) -> None:
    train, test = images(40), images(10, seed=1)
    test[3] = train[0]
    twice = np.concatenate([train, train[:5]])
    artifact = image_rows(
        tmp_path,
        saved(tmp_path / "train.npz", twice),
        test_inputs=[str(saved(tmp_path / "test.npz", test))],
        validation_fraction=0.1,
    )
    store = read_split(artifact, "test")
    rows = np.stack(store.column("tokens", np.arange(10)))
    assert (rows == test.reshape(10, -1)).all()
    splits = artifact.manifest.statistics["splits"]
    assert splits["train"]["rows"] + splits["validation"]["rows"] == 39
    assert artifact.manifest.statistics["duplicate_images"] == 6


def test_a_block_without_an_image_of_a_split_is_no_error(tmp_path: Path) -> None:
    """A given test has none of train, in all of its blocks."""
    artifact = image_rows(
        tmp_path,
        saved(tmp_path / "train.npz", images(20)),
        test_inputs=[str(saved(tmp_path / "test.npz", images(20, seed=1)))],
        validation_fraction=0.0,
    )
    assert artifact.manifest.statistics["splits"]["validation"]["rows"] == 0


def test_a_test_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"test\.npz: size: \(7, 5\), the other images' \(6, 5\)"):
        image_rows(
            tmp_path,
            saved(tmp_path / "train.npz", images(20)),
            test_inputs=[str(saved(tmp_path / "test.npz", images(20, height=7)))],
        )
    assert not (tmp_path / "tokens").exists()


def test_a_value_beyond_white_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = {"pixel.levels": 17, "pixel.maximum": 16}
    with pytest.raises(InputOutputError, match=r"a\.npz"):
        image_rows(tmp_path, saved(tmp_path / "a.npz", images(20)), **settings)
    assert not (tmp_path / "tokens").exists()


def test_binarized_images_have_two_levels(tmp_path: Path) -> None:
    pixels = images(50)
    artifact = image_rows(tmp_path, saved(tmp_path / "a.npz", pixels), **{"pixel.binarize": 0.5})
    store = read_split(artifact, "train")
    found = {row.tobytes() for row in store.column("tokens", np.arange(store.rows))}
    assert load_tokenizer(artifact).vocabulary_size == 2
    assert found <= {(image >= 127.5).astype(np.uint16).tobytes() for image in pixels}


def test_inspect_draws_rows_and_counts_what_is_in_them(tmp_path: Path) -> None:
    artifact = task_rows(tmp_path)
    inspection = inspect.run(artifact.directory, split="test", rows=4)
    assert inspection.counts["test"]["targets_asked"] == 20
    assert len(inspection.rows) == 4
    for row in inspection.rows:
        assert isinstance(row, inspect.Answers)
        needle = row.symbols[row.symbols.index("#") + 1]
        assert row.answers == [""] * (len(row.symbols) - 1) + [needle]


def test_inspect_writes_images_as_they_are(tmp_path: Path) -> None:
    picture = pytest.importorskip("PIL.Image")
    pixels = images(30)
    artifact = image_rows(tmp_path, saved(tmp_path / "a.npz", pixels))
    inspection = inspect.run(artifact.directory, rows=1)
    inspect.save_pictures(inspection, tmp_path / "grid.png")
    grid = np.asarray(picture.open(tmp_path / "grid.png"))
    scale = len(grid) // pixels.shape[1]
    grid = grid[::scale, ::scale]
    assert any((grid == image).all() for image in pixels)


@pytest.mark.parametrize("kind", ["task", "images"])
def test_rows_go_through_all_stages(tmp_path: Path, kind: str) -> None:
    if kind == "task":
        tokens = task_rows(tmp_path)
    else:
        tokens = image_rows(tmp_path, saved(tmp_path / "a.npz", images(60) // 16))
    places = [tmp_path / name for name in ("encoder", "labels", "rnn", "evaluation")]
    encoder, labels, rnn, evaluation = places
    train_encoder.run(resolve(TrainEncoderConfig, flags=SMALL), tokens.directory, encoder)
    extract_labels.run(ExtractLabelsConfig(), encoder, tokens.directory, labels)
    config = resolve(TrainRnnConfig, flags={**TRAINING, "data.positions": 4, "cell.width": 16})
    train_rnn.run(config, labels, rnn)
    result = evaluate.run(
        EvaluateConfig(windows=8), rnn, tokens.directory, evaluation, encoder=encoder
    )
    ranges = {record["range"] for record in result.statistics["results"]}
    assert ranges == {"1..T/2", "T/2..T"}
    free = [r for r in result.statistics["results"] if r["predictor"] == "rnn, free-running"]
    assert all(0 <= record["accuracy"] <= 1 for record in free)
    assert all(record["bits_per_byte"] is None for record in result.statistics["results"])
