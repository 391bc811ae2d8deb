"""Extraction in parts: several processes that share the shards, and --finalize."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Pipeline, model_bytes, shards
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import ArtifactError, LockedError, UsageError
from smtkit.stages import extract_labels
from smtkit.storage.artifact import Artifact

SMALL_SHARDS = ExtractLabelsConfig(shard_bytes=20_000, max_windows=200)


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory) -> Path:
    """The labels that one process extracts."""
    out = tmp_path_factory.mktemp("whole") / "labels"
    extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, out)
    return out


def _part(pipeline: Pipeline, out: Path, part: int, parts: int, **keywords: Any) -> int:
    return extract_labels.run_part(
        SMALL_SHARDS, pipeline.encoder, pipeline.tokens, out, part, parts, **keywords
    )


def _finalized(pipeline: Pipeline, out: Path) -> Any:
    return extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, out, finalize=True)


def test_parts_make_the_artifact_that_one_process_makes(pipeline, whole, tmp_path):
    counts = [_part(pipeline, tmp_path, part, 3) for part in (2, 3, 1)]
    assert not (tmp_path / "manifest.json").exists()
    manifest = _finalized(pipeline, tmp_path)

    alone = Artifact.open(whole).manifest
    assert manifest.digest == alone.digest
    assert manifest.statistics == alone.statistics
    assert sum(counts) == len(shards(tmp_path, "train")) + len(shards(tmp_path, "validation"))
    assert model_bytes(tmp_path) == model_bytes(whole)
    assert _part(pipeline, tmp_path, 1, 3, resume=True) == 0  # complete: nothing to do


def test_missing_shards_are_named_and_present_ones_kept(pipeline, tmp_path):
    _part(pipeline, tmp_path, 1, 2)
    with pytest.raises(ArtifactError, match=r"are missing: train-00001\.arrow, train-00003\.arrow"):
        _finalized(pipeline, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in shards(tmp_path, "train")}
    _part(pipeline, tmp_path, 2, 2)
    _part(pipeline, tmp_path, 1, 2)
    _finalized(pipeline, tmp_path)

    assert (
        written.items()
        <= {path: path.stat().st_mtime_ns for path in shards(tmp_path, "train")}.items()
    )


def test_parts_of_different_configs_do_not_mix(pipeline, tmp_path):
    _part(pipeline, tmp_path, 1, 2)
    other = SMALL_SHARDS.model_copy(update={"max_windows": 100})
    for attempt in (
        lambda: extract_labels.run_part(other, pipeline.encoder, pipeline.tokens, tmp_path, 2, 2),
        lambda: extract_labels.run(
            other, pipeline.encoder, pipeline.tokens, tmp_path, finalize=True
        ),
    ):
        with pytest.raises(UsageError, match="max_windows was 200, is 100"):
            attempt()


def test_parts_run_concurrently_and_lock_out_finalize(pipeline, tmp_path):
    class Meanwhile:
        """Progress that calls `act` once, while a part is being extracted."""

        def __init__(self, act: Callable[[], Any]) -> None:
            self.act, self.result = act, None

        def update(self, *_: Any, **__: Any) -> None:
            if self.result is None:
                self.result = self.act()

        def warn(self, message: str) -> None:
            pass

    def refused() -> str:
        with pytest.raises(LockedError):
            _finalized(pipeline, tmp_path)
        return "refused"

    beside = Meanwhile(lambda: _part(pipeline, tmp_path, 2, 2))
    finalizing = Meanwhile(refused)
    _part(pipeline, tmp_path, 1, 2, progress=beside)
    _part(pipeline, tmp_path, 1, 2, progress=finalizing)

    assert finalizing.result == "refused"
    assert beside.result > 0
    _finalized(pipeline, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--part", "0/2"], "--part 0/2: allowed: 1/N to N/N"),
        (["--part", "3/2"], "--part 3/2: allowed: 1/N to N/N"),
        (["--part", "2"], "--part 2: allowed: 1/N to N/N"),
        (["--part", "1/2", "--overwrite"], "--overwrite: would remove"),
        (["--part", "1/2", "--finalize"], "--finalize: is for when all parts"),
        (["--finalize", "--overwrite"], "--overwrite: would remove"),
    ],
)
def test_invalid_parts_are_refused(command, pipeline, tmp_path, flags, message):
    out = tmp_path / "labels"
    result = command(
        "extract-labels", pipeline.encoder, "--tokens", pipeline.tokens, "--out", out, *flags
    )
    assert result.code == 2
    assert message in result.line()
    assert not out.exists()


def test_the_command_line_runs_parts(command, pipeline, tmp_path):
    out = tmp_path / "labels"
    arguments = ["extract-labels", pipeline.encoder, "--tokens", pipeline.tokens, "--out", out]
    part = command(*arguments, "--part", "1/1", "--json", "--quiet", "--max-windows", 20)
    whole = command(*arguments, "--finalize", "--json", "--max-windows", 20)

    assert json.loads(part.stdout) == {"part": 1, "parts": 1, "shards": 2}
    assert json.loads(whole.stdout)["statistics"]["windows"]["train"] == 20
