"""The synthesize stage: rows on disk are those of the tasks, and windows are those rows; and a task
through the whole chain."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import (
    Command,
    Pipeline,
    arrow_columns,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
    shards,
    write_keys_values,
)
from smtkit import IGNORE
from smtkit.config import Config, ExtractLabelsConfig, GenerateConfig, SynthesizeConfig
from smtkit.corpus.shards import (
    SplitWriter,
    TokenShards,
    decode_tokens,
    read_split,
    rows_schema,
    without_padding,
)
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.task_rows import generate
from smtkit.corpus.windows import RowWindows, open_windows
from smtkit.errors import UsageError
from smtkit.methods.predictive_state import PredictiveState, TeacherSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.loading import load_rnn
from smtkit.networks.teacher import Teacher
from smtkit.stages import evaluate, synthesize, train_encoder
from smtkit.stages import generate as generate_stage
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run

COUNTS = {"train": 40, "validation": 16, "test": 12}


def write_task(command: Command, out: Path, task: str, *flags: object) -> Artifact:
    counts = ["--sequences", 40, "--validation-sequences", 16, "--test-sequences", 12, "-q"]
    result = command("synthesize", task, "--out", out, *counts, *flags)
    assert result.code == 0, result.stderr
    artifact = Artifact.open(out, "tokens")
    artifact.verify()
    return artifact


def stored(artifact: Artifact, split: str) -> dict[str, list[Any]]:
    """The columns of a split, read by Arrow alone."""
    return arrow_columns(artifact.files(f"{split}-"))


def task_settings(task: str, *lengths: int, **settings: Any) -> SynthesizeConfig:
    return SynthesizeConfig(task=task, lengths=lengths, sequences=1, **settings)


def generated(task: SynthesizeConfig, seed: int, split: str) -> dict[str, list[Any]]:
    """The columns as the task gives them, without padding."""
    columns: dict[str, list[Any]] = {"tokens": [], "targets": [], "distance": []}
    for rows in generate(task, seed, split, COUNTS[split]):
        for row, length in enumerate(rows.length):
            columns["tokens"].append(rows.tokens[row, :length].tolist())
            columns["targets"].append(rows.targets[row, : length + 1].tolist())
            columns["distance"].append(rows.distance[row, : length + 1].tolist())
    return columns


# The stage


@pytest.mark.parametrize(
    ("task", "flags", "changes"),
    [
        ("retrieval", ["--noise", 0.5, "--vocabulary", 20], {"noise": 0.5, "vocabulary": 20}),
        ("string-copy", ["--reverse"], {"reverse": True}),
        ("stack", ["--depth", 2], {"depth": 2}),
        ("keys-values", ["--pairs", 3], {"pairs": 3}),
        ("modular-arithmetic", ["--vocabulary", 7], {"vocabulary": 7}),
        ("parity", [], {}),
        ("recency", ["--noise", 0.3], {"noise": 0.3}),
    ],
)
def test_every_flag_reaches_the_rows(
    command: Command, tmp_path: Path, task: str, flags: list[object], changes: dict[str, Any]
) -> None:
    artifact = write_task(
        command, tmp_path / "out", task, "--lengths", "12,20", "--seed", 5, *flags
    )
    wanted = task_settings(task, 12, 20, **changes)
    for split in SPLITS:
        assert stored(artifact, split) == generated(wanted, 5, split)


def test_the_manifest_counts_rows_and_tokens(command: Command, tmp_path: Path) -> None:
    artifact = write_task(command, tmp_path / "out", "stack", "--lengths", "4,10,16")
    statistics = artifact.manifest.statistics
    assert statistics["layout"] == "rows"
    assert statistics["length"] == 16
    assert statistics["vocabulary_size"] == 64
    for split in SPLITS:
        lengths = list(map(len, stored(artifact, split)["tokens"]))
        assert set(lengths) <= {4, 10, 16}
        assert statistics["splits"][split] == {"rows": COUNTS[split], "tokens": sum(lengths)}
        assert sum(artifact.rows(f"{split}-")) == COUNTS[split]
    assert artifact.manifest.seed == 0


def test_the_digest_is_a_function_of_the_seed(command: Command, tmp_path: Path) -> None:
    digests = [
        write_task(
            command, tmp_path / str(n), "parity", "--length", 16, "--seed", seed
        ).manifest.digest
        for n, seed in enumerate([3, 3, 4])
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_blocks_and_shards_change_no_row(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtkit.stages.synthesize._BLOCK_TOKENS", 48)
    monkeypatch.setattr("smtkit.corpus.shards.SHARD_TOKENS", 100)
    artifact = write_task(command, tmp_path / "out", "recency", "--lengths", "8,12")
    wanted = task_settings("recency", 8, 12)
    assert len(artifact.files("train-")) > 3
    for split in SPLITS:
        assert stored(artifact, split) == generated(wanted, 0, split)
        store = read_split(artifact, split)
        assert store.rows == COUNTS[split]
        order = np.random.default_rng(0).permutation(store.rows)
        for name, values in generated(wanted, 0, split).items():
            found = [row.tolist() for row in store.column(name, order)]
            assert found == [values[row] for row in order], name


def test_resume_keeps_complete_rows(command: Command, tmp_path: Path) -> None:
    first = write_task(command, tmp_path / "out", "parity", "--length", 16).manifest
    again = write_task(command, tmp_path / "out", "parity", "--length", 16, "--resume").manifest
    assert again == first
    counts = ["--sequences", 40, "--validation-sequences", 16, "--test-sequences", 12]
    flags = ["--length", 16, *counts, "--resume", "--seed", 1]
    result = command("synthesize", "parity", "--out", tmp_path / "out", *flags)
    assert result.code == 2
    assert "cannot resume: seed was 0, is 1" in result.line()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nothing", "--length", 8, "--sequences", 5], "nothing"),
        (["parity", "--sequences", 5], "length"),
        (["parity", "--length", 8], "sequences"),
        (["parity", "--length", "eight", "--sequences", 5], "eight"),
        (["parity", "--length", 0, "--sequences", 5], "0"),
        (["parity", "--length", 8, "--sequences", 5, "--vocabulary", 3], "--vocabulary 3"),
        (["string-copy", "--length", 7, "--sequences", 5], "--lengths 7"),
        (["retrieval", "--length", 3, "--sequences", 5], "--lengths 3"),
        (["modular-arithmetic", "--vocabulary", 8, "--length", 9, "--sequences", 5], "7 and 11"),
        (["stack", "--length", 8, "--sequences", 5, "--reverse"], "--reverse"),
        (
            ["parity", "--length", 8, "--sequences", 5, "--pairs", 2],
            "pairs = 2 is only used with task",
        ),
    ],
)
def test_impossible_rows_are_one_line_and_leave_nothing(
    command: Command, tmp_path: Path, arguments: list[object], found: str
) -> None:
    result = command("synthesize", *arguments, "--out", tmp_path / "a" / "out")
    assert result.code == 2
    assert found in result.line()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_half_way_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthesize.generate

    def fail(*arguments: Any) -> Any:
        if "validation" in arguments:
            raise OSError(28, "No space left on device")
        return whole(*arguments)

    monkeypatch.setattr("smtkit.stages.synthesize.generate", fail)
    flags = ["--length", 8, "--sequences", 5, "-q"]
    result = command("synthesize", "parity", *flags, "--out", tmp_path / "out")
    assert result.code == 74
    assert "No space left on device" in result.line()
    assert list(tmp_path.iterdir()) == []


# Windows of rows


@st.composite
def written_rows(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Tokens, and one target more."""
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 7))
        tokens = st.lists(st.integers(0, 9), min_size=length, max_size=length)
        targets = st.lists(st.integers(IGNORE, 9), min_size=length + 1, max_size=length + 1)
        rows.append((draw(tokens), draw(targets)))
    return rows


def write_rows(
    directory: Path, rows: list[tuple[list[int], list[int]]], at_a_time: int
) -> TokenShards:
    width = max(len(tokens) for tokens, _ in rows)
    schema = rows_schema(10, distance=False, label=False)
    with Run(directory, "tokens", Config()) as run, SplitWriter(run, "train", schema) as writer:
        for first in range(0, len(rows), at_a_time):
            some = rows[first : first + at_a_time]
            # What is past the length is not to be stored, whatever it is.
            tokens = np.full((len(some), width), 7, dtype=np.int64)
            targets = np.full((len(some), width + 1), 7, dtype=np.int64)
            for row, (inputs, answers) in enumerate(some):
                tokens[row, : len(inputs)] = inputs
                targets[row, : len(answers)] = answers
            length = np.array([len(inputs) for inputs, _ in some])
            writer.append(
                {
                    "tokens": without_padding(tokens, length),
                    "targets": without_padding(targets, length + 1),
                }
            )
    assert writer.rows == len(rows)
    assert writer.tokens == sum(len(tokens) for tokens, _ in rows)
    (path,) = shards(directory, "train")
    return TokenShards([decode_tokens(path.read_bytes(), path, 10, width, len(rows))])


@given(
    rows=written_rows(),
    at_a_time=st.integers(1, 4),
    lookahead=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=40)
def test_a_window_is_a_row_with_nothing_beyond_its_end(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[list[int], list[int]]],
    at_a_time: int,
    lookahead: int,
    data: st.DataObject,
) -> None:
    store = write_rows(tmp_path_factory.mktemp("rows"), rows, at_a_time)
    window = max(len(tokens) for tokens, _ in rows)
    windows = RowWindows(store, window, lookahead)
    assert windows.per_epoch == len(rows)
    assert windows.tiles().tolist() == list(range(len(rows)))
    wanted = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
    read = windows.read(windows.starts(np.zeros_like(wanted), wanted, seed=3))
    assert read.tokens.shape == (len(wanted), window + lookahead)
    assert read.targets.shape == (len(wanted), window + lookahead + 1)
    for index, row in enumerate(wanted):
        tokens, targets = rows[row]
        assert read.length[index] == len(tokens)
        for i in range(window + lookahead):
            assert read.tokens[index, i] == (tokens[i] if i < len(tokens) else 0)
        for i in range(window + lookahead + 1):
            assert read.targets[index, i] == (targets[i] if i < len(targets) else IGNORE)


def test_the_rest_of_a_row_is_asked_from_every_anchor(command: Command, tmp_path: Path) -> None:
    """Every answer from the anchor to the end, and no other; the same rows in every epoch."""
    artifact = write_task(command, tmp_path / "out", "recency", "--lengths", "6,10,14")
    window = open_windows(artifact, "train", None).window
    counts = {"anchors": 3, "dynamics_positions": 5, "uniformity_positions": 2}
    objective = {"future_length": "rest", "dense_positions": None, **counts}
    config = encoder_config(data={"window": None}, objective=objective)
    windows = open_windows(artifact, "train", None, lookahead=window)
    source = TeacherSampler(windows, config.objective, batch_size=8, seed=1)
    teacher = Teacher(Architecture.of_teacher(config, 64, window))
    method = PredictiveState(teacher, config.objective, window)
    columns = stored(artifact, "train")
    rows = dict(zip(map(tuple, columns["tokens"]), columns["targets"], strict=True))
    for step in range(5):
        batch = source.batch(step)
        decoding = dense = 0
        for row in range(8):
            length = int(batch.length[row])
            targets = rows[tuple(batch.tokens[row, :length].tolist())]
            assert batch.dense_targets[row, : length + 1].tolist() == targets
            assert (batch.anchors[row] <= length).all()
            assert (batch.dynamics_positions[row] < length).all()
            dense += sum(target != IGNORE for target in targets)
            for anchor in batch.anchors[row].tolist():
                decoding += sum(target != IGNORE for target in targets[anchor:])
        counts = method.counts(batch)
        assert counts["decoding"] == decoding
        assert counts["dense"] == dense


# The whole chain


@pytest.fixture(scope="module")
def task_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Of rows of two lengths."""
    directory = tmp_path_factory.mktemp("task")
    write_keys_values(directory / "tokens")
    return build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(dtype="float32"),
        rnn_config(data={"positions": 4}),
    )


@pytest.fixture(scope="module")
def results(
    task_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    manifest = evaluate.run(
        evaluate_config(),
        task_pipeline.rnn,
        task_pipeline.tokens,
        out,
        encoder=task_pipeline.encoder,
    )
    assert manifest.statistics["window"] == 12
    assert manifest.statistics["windows"] == 20
    assert len(manifest.statistics["drift"]) == 12
    return manifest.statistics["results"]


def test_labels_are_the_memories_of_whole_rows(task_pipeline: Pipeline) -> None:
    labels = Artifact.open(task_pipeline.labels)
    tokens = stored(Artifact.open(task_pipeline.tokens), "train")
    columns = arrow_columns(labels.files("train-"))
    assert columns["length"] == list(map(len, tokens["tokens"]))
    for row, length in enumerate(columns["length"]):
        assert columns["tokens"][row][:length] == tokens["tokens"][row]
        assert columns["targets"][row][: length + 1] == tokens["targets"][row]
        assert set(columns["targets"][row][length + 1 :]) <= {IGNORE}


@torch.no_grad()
def test_free_running_on_a_task_is_a_loop_of_steps(
    task_pipeline: Pipeline, results: list[dict[str, Any]]
) -> None:
    network = load_rnn(Artifact.open(task_pipeline.rnn))
    columns = stored(Artifact.open(task_pipeline.tokens), "test")
    nll: dict[int, list[float]] = {}
    right: dict[int, list[bool]] = {}
    for tokens, targets in zip(columns["tokens"], columns["targets"], strict=True):
        memory = network.empty_memory[None]
        for i, target in enumerate(targets):
            logits = network.readout(memory)[0].double()
            if target != IGNORE:
                nll.setdefault(i, []).append(-float(logits.log_softmax(-1)[target]))
                right.setdefault(i, []).append(int(logits.argmax()) == target)
            if i < len(tokens):
                memory = network.step(memory, torch.tensor([tokens[i]]))
    found = [row for row in results if row["predictor"] == "rnn, free-running"]
    assert [row["range"] for row in found] == ["1..T/2", "T/2..T"]
    for row in found:
        here = range(row["first"], row["last"] + 1)
        values = [value for i in here for value in nll.get(i, [])]
        assert row["targets"] == len(values)
        assert row["nll"] == pytest.approx(np.mean(values), rel=1e-5)
        assert row["accuracy"] == pytest.approx(
            np.mean([r for i in here for r in right.get(i, [])])
        )
        assert row["bits_per_byte"] is None


def test_the_unigram_of_a_task_is_of_its_answers(
    task_pipeline: Pipeline, results: list[dict[str, Any]]
) -> None:
    tokens = Artifact.open(task_pipeline.tokens)
    counts = np.zeros(13)
    for targets in stored(tokens, "train")["targets"]:
        for target in targets:
            if target != IGNORE:
                counts[target] += 1
    kinds = (counts > 0).sum()
    probability = (counts + kinds / 13) / (counts.sum() + kinds)  # Witten-Bell with a uniform prior
    for row in results:
        if row["predictor"] == "unigram":
            asked = [
                target
                for targets in stored(tokens, "test")["targets"]
                for target in targets[row["first"] : row["last"] + 1]
                if target != IGNORE
            ]
            expected = np.mean([-math.log(probability[target]) for target in asked])
            assert row["nll"] == pytest.approx(expected)


def test_a_task_is_no_text_to_generate(task_pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="it needs rows to answer"):
        generate_stage.run(GenerateConfig(), task_pipeline.rnn)


def test_another_window_than_the_rows_is_refused(task_pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.window = 16: .* rows of up to 12 tokens"):
        train_encoder.run(encoder_config(), task_pipeline.tokens, tmp_path / "out")
    assert not (tmp_path / "out").exists()
