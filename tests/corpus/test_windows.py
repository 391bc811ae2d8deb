"""Windows of a token stream, against plain Python lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import write_stream
from smtkit import IGNORE
from smtkit.config import TokenizeConfig
from smtkit.corpus.shards import TokenShards, open_split
from smtkit.corpus.windows import TextWindows
from smtkit.errors import ArtifactError
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact


def _stream(directory, length: int) -> tuple[TokenShards, list[int]]:
    # No zeros, so that padding cannot be taken for a token.
    tokens = [1 + (7 * i) % 250 for i in range(length)]
    half = length // 2
    return write_stream(directory, [[tokens[:half]], [tokens[half:]]]), tokens


def _naive_window(tokens: list[int], start: int, width: int) -> tuple[list[int], list[int], int]:
    """Inputs, targets and length of one window of `width` inputs."""
    inputs, targets = [], []
    for i in range(width + 1):
        there = start + i < len(tokens)
        targets.append(tokens[start + i] if there else IGNORE)
        if i < width:
            inputs.append(tokens[start + i] if there else 0)
    return inputs, targets, min(width, len(tokens) - start)


@pytest.mark.parametrize("lookahead", [0, 3])
def test_windows_are_slices_of_the_stream(tmp_path, lookahead):
    stream, tokens = _stream(tmp_path, 41)
    starts = list(range(41))
    windows = TextWindows(stream, 8, lookahead).read(np.array(starts))

    for row, start in enumerate(starts):
        inputs, targets, length = _naive_window(tokens, start, 8 + lookahead)
        assert windows.tokens[row].tolist() == inputs
        assert windows.targets[row].tolist() == targets
        assert windows.length[row] == length


def test_the_target_at_a_position_is_the_token_read_next(tmp_path):
    stream, _ = _stream(tmp_path, 40)
    windows = TextWindows(stream, 8, 2).read(np.array([0, 5, 29]))

    assert (windows.targets[:, :-1] == windows.tokens).all()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 41])
def test_tiles_cover_the_stream_once(tmp_path, length):
    stream, tokens = _stream(tmp_path, length)
    windows = TextWindows(stream, 8)
    content = windows.read(windows.tiles())
    pieces = zip(content.tokens.tolist(), content.length.tolist(), strict=True)

    assert [token for row, count in pieces for token in row[:count]] == tokens


@pytest.mark.parametrize("length", [1, 3, 8, 9, 41, 160])
def test_starts_of_all_epochs_lie_in_the_stream(tmp_path, length):
    stream, _ = _stream(tmp_path, length)
    windows = TextWindows(stream, 8)
    epochs, rows = np.meshgrid(np.arange(200), np.arange(windows.per_epoch), indexing="ij")
    starts = windows.starts(epochs.flatten(), rows.flatten(), seed=4)

    assert starts.min() >= 0
    assert starts.max() < length


def test_windows_of_one_epoch_do_not_overlap(tmp_path):
    stream, _ = _stream(tmp_path, 100)
    windows = TextWindows(stream, 8)
    rows = np.arange(windows.per_epoch)
    for epoch in range(20):
        starts = windows.starts(np.full(len(rows), epoch), rows, seed=4)
        assert (np.diff(starts) == 8).all()


def test_phases_reach_every_offset(tmp_path):
    stream, _ = _stream(tmp_path, 100)
    starts = TextWindows(stream, 8).starts(np.arange(300), np.zeros(300, dtype=np.int64), seed=4)

    assert set(starts.tolist()) == set(range(8))


@given(
    sizes=st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=3),
    start=st.integers(0, 40),
    count=st.integers(0, 40),
)
def test_reads_across_batches_and_shards_equal_a_flat_array(tmp_path_factory, sizes, start, count):
    numbers = iter(range(1, 1000))
    content = [[[next(numbers) % 256 for _ in range(size)] for size in shard] for shard in sizes]
    flat = [token for shard in content for batch in shard for token in batch]
    stream = write_stream(tmp_path_factory.mktemp("stream"), content)

    assert stream.tokens == len(flat)
    assert stream.read(start, count).tolist() == flat[start : start + count]


def test_a_stream_shorter_than_a_window_is_one_window(tmp_path):
    stream, tokens = _stream(tmp_path, 5)
    windows = TextWindows(stream, 8, 2)
    content = windows.read(windows.tiles())

    assert windows.per_epoch == 1
    assert content.length.tolist() == [5]
    assert content.tokens.tolist() == [tokens + [0] * 5]
    assert content.targets.tolist() == [tokens + [IGNORE] * 6]


def test_an_empty_split_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a few words", encoding="utf-8")
    config = TokenizeConfig(
        inputs=[str(tmp_path / "text.txt")], validation_fraction=0, test_fraction=0
    )
    tokenize.run(config, tmp_path / "tokens")

    with pytest.raises(ArtifactError, match="validation split is empty"):
        open_split(Artifact.open(tmp_path / "tokens"), "validation")
