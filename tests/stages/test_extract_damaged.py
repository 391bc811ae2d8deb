"""Finished shards that were damaged before extraction goes on are written again."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifacts import flip_byte
from conftest import KilledError, Pipeline, Recorder, shards
from object_store import at, objects, put
from smtkit.config import ExtractLabelsConfig
from smtkit.stages import extract_labels
from smtkit.storage.artifact import Artifact

CONFIG = ExtractLabelsConfig(shard_bytes=20_000, max_windows=200)


class KillAfter(Recorder):
    """Ends the process, so to say, after some shards."""

    def __init__(self, shards: int) -> None:
        super().__init__()
        self._left = shards

    def update(self, *_: object, **__: object) -> None:
        self._left -= 1
        if not self._left:
            raise KilledError


@pytest.fixture(scope="module")
def whole(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the labels of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "labels"
    return extract_labels.run(CONFIG, pipeline.encoder, pipeline.tokens, out).digest


def killed(pipeline: Pipeline, out: Path | str) -> None:
    with pytest.raises(KilledError):
        extract_labels.run(CONFIG, pipeline.encoder, pipeline.tokens, out, progress=KillAfter(4))


def in_parts(pipeline: Pipeline, out: Path | str) -> None:
    for part in (1, 2):
        extract_labels.run_part(CONFIG, pipeline.encoder, pipeline.tokens, out, part, 2)


def resumed(pipeline: Pipeline, out: Path | str, progress: Recorder) -> None:
    extract_labels.run(
        CONFIG, pipeline.encoder, pipeline.tokens, out, resume=True, progress=progress
    )


def finalized(pipeline: Pipeline, out: Path | str, progress: Recorder) -> None:
    extract_labels.run(
        CONFIG, pipeline.encoder, pipeline.tokens, out, finalize=True, progress=progress
    )


def again(pipeline: Pipeline, out: Path | str, progress: Recorder) -> None:
    for part in (1, 2):
        extract_labels.run_part(
            CONFIG, pipeline.encoder, pipeline.tokens, out, part, 2, progress=progress
        )
    finalized(pipeline, out, Recorder())


def a_flipped_byte(path: Path) -> None:
    flip_byte(path, path.stat().st_size // 2)


def a_flipped_length(path: Path) -> None:
    flip_byte(path, 12)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    outside = path.parent.parent.parent / "outside.arrow"
    path.rename(outside)
    path.symlink_to(outside)


def another_shard(path: Path) -> None:
    path.write_bytes(path.with_name("train-00000.arrow").read_bytes())


def of_shards(seen: Recorder) -> list[str]:
    """The warnings about shards, without those about the teacher."""
    return [warning for warning in seen.warnings if ".arrow" in warning]


@pytest.mark.parametrize(
    "damage", [a_flipped_byte, a_flipped_length, cut_short, a_fifo, a_link, another_shard]
)
@pytest.mark.parametrize(
    ("start", "go_on"), [(killed, resumed), (in_parts, finalized), (in_parts, again)]
)
def test_a_damaged_shard_is_written_again(
    pipeline: Pipeline,
    whole: str,
    tmp_path: Path,
    start: Callable[[Pipeline, Path], None],
    go_on: Callable[[Pipeline, Path, Recorder], None],
    damage: Callable[[Path], None],
) -> None:
    out, seen = tmp_path / "labels", Recorder()
    start(pipeline, out)
    path = shards(out, "train")[1]
    damage(path)
    go_on(pipeline, out, seen)
    (warning,) = of_shards(seen)
    assert f"{path}: " in warning
    assert "train-00001.arrow is written again" in warning
    Artifact.open(out).verify()
    assert Artifact.open(out).manifest.digest == whole


@pytest.mark.parametrize(
    ("start", "go_on"), [(killed, resumed), (in_parts, finalized), (in_parts, again)]
)
def test_a_damaged_shard_at_a_uri_is_written_again(
    pipeline: Pipeline,
    whole: str,
    store: str,
    another_machine: Callable[[], None],
    start: Callable[[Pipeline, str], object],
    go_on: Callable[[Pipeline, str, Recorder], None],
) -> None:
    seen = Recorder()
    start(pipeline, store)
    (name,) = (name for name in objects(store) if name.endswith("/train-00001.arrow"))
    content = bytearray(at(store).read(name))
    content[len(content) // 2] ^= 1
    put(store, name, bytes(content))
    another_machine()
    go_on(pipeline, store, seen)
    uri = at(store).uri_of(name)
    warning = f"{uri}: damaged: not what was uploaded; train-00001.arrow is written again"
    assert of_shards(seen) == [warning]
    Artifact.open(store).verify()
    assert Artifact.open(store).manifest.digest == whole


def test_no_flipped_byte_of_a_finished_shard_reaches_the_artifact(
    pipeline: Pipeline, whole: str, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for number in range(10):
        out = tmp_path / f"labels-{number}"
        killed(pipeline, out)
        path = shards(out, "train")[0]
        flip_byte(path, int(draw.integers(path.stat().st_size)))
        resumed(pipeline, out, Recorder())
        found = Artifact.open(out)
        found.verify()
        assert found.manifest.digest == whole


def test_whole_shards_are_kept(pipeline: Pipeline, whole: str, tmp_path: Path) -> None:
    out, seen = tmp_path / "labels", Recorder()
    killed(pipeline, out)
    before = {path: path.stat().st_mtime_ns for path in shards(out, "train")}
    resumed(pipeline, out, seen)
    assert of_shards(seen) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Artifact.open(out).manifest.digest == whole
