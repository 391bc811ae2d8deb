"""Evaluations that several tests read, and slow second ways to their numbers."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import (
    WINDOW,
    Pipeline,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
    split_tokens,
)
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig, SynthesizeConfig
from smtkit.evaluation.metrics import position_ranges
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.stages import evaluate, synthesize
from smtkit.storage.artifact import Artifact

LENGTH = 4 * WINDOW


END_OF_DOCUMENT = 256


class NaiveNgrams:
    """Interpolated Witten-Bell smoothing from its definition, with dictionaries."""

    def __init__(self, vocabulary_size: int, order: int, tokens: list[int]) -> None:
        self.vocabulary_size = vocabulary_size
        self.after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for n in range(1, order + 1):
            for end in range(n, len(tokens) + 1):
                *history, last = tokens[end - n : end]
                self.after[tuple(history)][last] += 1

    def probability(self, token: int, history: tuple[int, ...]) -> float:
        shorter = self.probability(token, history[1:]) if history else 1 / self.vocabulary_size
        seen = self.after.get(history, Counter())
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))


def naive_drift(rolled: np.ndarray, label: np.ndarray) -> list[float]:
    """Drift by position of memories (B, T, Z), from its definition."""
    rows, window, _ = label.shape
    mean = np.mean([label[b, i] for b in range(rows) for i in range(window)], axis=0)
    spread = np.mean(
        [((label[b, i] - mean) ** 2).sum() for b in range(rows) for i in range(window)]
    )
    return [
        np.mean([((rolled[b, i] - label[b, i]) ** 2).sum() for b in range(rows)]) / spread
        for i in range(window)
    ]


def naive_drift_between_sequences(rolled: np.ndarray, label: np.ndarray) -> list[float]:
    """Drift by position of memories (B, T, Z), over the variance at that position."""
    rows, window, _ = label.shape
    found = []
    for i in range(window):
        mean = np.mean(label[:, i], axis=0)
        spread = np.mean([((label[b, i] - mean) ** 2).sum() for b in range(rows)])
        error = np.mean([((rolled[b, i] - label[b, i]) ** 2).sum() for b in range(rows)])
        found.append(error / spread)
    return found


def evaluated(pipeline: Pipeline, out: Path, **changes) -> dict:
    """The content of `evaluation.json`; `changes` are settings, and other tokens or encoder."""
    tokens = changes.pop("tokens", pipeline.tokens)
    encoder = changes.pop("encoder", pipeline.encoder)
    evaluate.run(evaluate_config(**changes), pipeline.rnn, tokens, out, encoder=encoder)
    return json.loads(Artifact.open(out).file("evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def evaluation(pipeline, tmp_path_factory) -> dict:
    """The evaluation of `pipeline` on all whole windows of the test split."""
    return evaluated(pipeline, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def windows(pipeline) -> list[list[int]]:
    """Windows of 4 T tokens of the test split, each with the token after it if there is one."""
    tokens = split_tokens(pipeline.tokens, "test")
    starts = range(0, len(tokens) - LENGTH + 1, LENGTH)
    return [tokens[start : start + LENGTH + 1] for start in starts]


def by_range(evaluation: dict, predictor: str) -> dict[str, dict]:
    """Records of a predictor by range of positions."""
    return {row["range"]: row for row in evaluation["results"] if row["predictor"] == predictor}


def nll_of(logits: torch.Tensor, target: int) -> float:
    return -float(logits.double().log_softmax(-1)[target])


def assert_ranges(
    evaluation: dict, predictor: str, nll: dict[tuple[int, int], float], *, tolerance=1e-5
) -> None:
    """Compares the records of a predictor with nll by (window, position)."""
    records = by_range(evaluation, predictor)
    for name, first, last in position_ranges(WINDOW):
        values = [value for (_, i), value in nll.items() if first <= i <= last]
        if not values:
            assert name not in records
            continue
        assert records[name]["targets"] == len(values)
        assert records[name]["nll"] == pytest.approx(np.mean(values), rel=tolerance)
        assert records[name]["bits_per_token"] == pytest.approx(records[name]["nll"] / math.log(2))
        assert records[name]["perplexity"] == pytest.approx(math.exp(records[name]["nll"]))


@torch.no_grad()
def by_steps(pipeline: Pipeline, row: Sequence[int], targets: Sequence[int]) -> list[tuple]:
    """(position, nll, correct) of the free-running RNN at every target, step by step."""
    network = load_rnn(Artifact.open(pipeline.rnn))
    memory, found = network.empty_memory[None], []
    for i, target in enumerate(targets):
        logits = network.readout(memory)[0]
        if target != IGNORE:
            found.append((i, nll_of(logits, target), int(logits.argmax()) == target))
        if i < len(row):
            memory = network.step(memory, torch.tensor([row[i]]))
    return found


@torch.no_grad()
def by_passes(pipeline: Pipeline, row: Sequence[int], targets: Sequence[int]) -> list[tuple]:
    """(position, nll, correct) of the teacher's decoder, with one encoder pass per target."""
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    nothing, found = torch.empty(1, 0, dtype=torch.int64), []
    for i, target in enumerate(targets):
        if target != IGNORE:
            memory = teacher.encoder(torch.tensor([row[:i]]))[:, -1]
            logits = teacher.decoder(memory, nothing)[0, 0]
            found.append((i, nll_of(logits, target), int(logits.argmax()) == target))
    return found


def rows_of_recency(out: Path, lengths: list[int]) -> Path:
    """A `tokens` artifact of rows of a task."""
    config = SynthesizeConfig(
        task="recency",
        lengths=lengths,
        sequences=60,
        validation_sequences=20,
        test_sequences=20,
        vocabulary=6,
    )
    synthesize.run(config, out)
    return out


@pytest.fixture(scope="session")
def task_pipeline(tmp_path_factory) -> Pipeline:
    """A chain of artifacts of task rows of two lengths. Read only."""
    directory = tmp_path_factory.mktemp("task")
    return build_pipeline(
        directory,
        rows_of_recency(directory / "tokens", [8, 12]),
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(dtype="float32"),
        rnn_config(data={"positions": 4}),
    )


@pytest.fixture(scope="session")
def task_evaluation(task_pipeline, tmp_path_factory) -> dict:
    return evaluated(task_pipeline, tmp_path_factory.mktemp("task-evaluation"))
