"""One run of the matrix: its stages in order, with the cost and validation of each."""

import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import smtkit
from smtkit.config import (
    EvaluateConfig,
    ExtractLabelsConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
)
from smtkit.errors import NonFiniteLossError
from smtkit.methods import sequential
from smtkit.stages import evaluate, extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS, Kind, Manifest
from smtkit.storage.tensors import MODEL, load_tensors
from study import cost
from study.matrix import Table, merged
from study.specification import STUDENT, Specification
from study.store import total

_CURVE = ("step", "seconds", "tokens", "free_running_nll", "free_running_accuracy")


class Work:
    """Runs a specification in `directory`; `result` is the raw result."""

    def __init__(
        self, specification: Specification, tokens: Path, longer: Path | None, directory: Path
    ) -> None:
        self._specification = specification
        self._tokens = tokens
        self._longer = longer
        self._directory = directory
        read = Artifact.open(tokens, "tokens")
        self._lengths = cost.lengths(read, specification.stages)
        self.result: Table = {
            "digest": specification.digest,
            "tokens": read.manifest.digest,
            "stages": [],
            "failed": None,
            "tests": {},
            "machine": _machine(),
        }

    def run(self) -> Table:
        torch.set_num_threads(1)
        try:
            if self._specification.kind == "bptt":
                self._train_rnn("bptt", "bptt", self._tokens, None)
                self._evaluate_longer("bptt", None)
            else:
                encoder = self._train_encoder()
                labels = self._extract(encoder)
                for rival in self._specification.rivals:
                    self._amortise(rival, encoder, labels)
                if not self._specification.rivals:
                    self._chain("", encoder, labels)
        except NonFiniteLossError as error:
            self.result["failed"] = str(error)
        return self.result

    def _amortise(self, rival: str, encoder: Path, labels: Path) -> None:
        """Trains one of several RNNs of a teacher. If it diverges, its time counts, and the next
        one is trained."""
        started = time.process_time()
        before = total(self.result, "seconds")
        try:
            self._chain(f"{rival}/", encoder, labels)
        except NonFiniteLossError:
            noted = total(self.result, "seconds") - before
            lost = {"seconds": round(time.process_time() - started - noted, 2)}
            costs = {"tokens": 0, "sequential": 0.0, "operations": 0.0}
            self.result["stages"].append({"stage": f"{rival}/failed", **lost, **costs})

    def _chain(self, prefix: str, encoder: Path, labels: Path) -> None:
        """Trains an RNN by the stages that are specified: smt, then dmt, then bptt, until the goal
        is reached. `prefix` tells the stages of several RNNs apart.

        A task with longer test sequences always runs dmt.
        """
        last, reached = None, False
        for stage in STUDENT:
            name = f"{prefix}{stage}"
            enough = reached and not (stage == "dmt" and self._specification.task["longer"])
            if name not in self._specification.stages or enough:
                continue
            method, source = (stage, labels) if stage != "finetune" else ("bptt", self._tokens)
            teacher = None if stage == "finetune" else encoder
            tested = teacher if last is None else None
            reached |= self._train_rnn(name, method, source, last, tested)
            self._evaluate_longer(name, teacher)
            last = name

    def _train_encoder(self) -> Path:
        config = TrainEncoderConfig(**self._settings("encoder"))
        out = self._directory / "encoder"
        manifest = train_encoder.run(config, self._tokens, out, overwrite=True, resume=True)
        operations = cost.of_encoder(config, _weights(out, "encoder"), self._lengths)
        chain = sequential.steps_of_encoder(config, self._lengths)
        self._note("encoder", out, manifest, chain, operations)
        return out

    def _extract(self, encoder: Path) -> Path:
        settings = self._specification.stages["labels"]
        config = ExtractLabelsConfig(seed=self._specification.seed, **settings)
        out = self._directory / "labels"
        started = time.process_time()
        manifest = extract_labels.run(config, encoder, self._tokens, out, overwrite=True)
        seconds = time.process_time() - started
        windows = sum(manifest.statistics["windows"].values())
        teacher = TrainEncoderConfig(**Artifact.open(encoder, "encoder").manifest.config)
        self.result["stages"].append(
            {
                "stage": "labels",
                "seconds": round(seconds, 2),
                "tokens": round(windows * self._lengths.mean()),
                "sequential": teacher.encoder.layers * -(-windows // config.batch_size),
                "operations": cost.of_extraction(
                    teacher, _weights(encoder, "encoder"), windows, self._lengths
                ),
            }
        )
        return out

    def _train_rnn(
        self, stage: str, method: str, source: Path, init: str | None, encoder: Path | None = None
    ) -> bool:
        """Trains and evaluates; returns whether the goal was reached."""
        config = TrainRnnConfig(**merged(self._settings(stage), {"method": method}))
        out = self._directory / stage
        initial = self._directory / init if init else None
        manifest = train_rnn.run(config, source, out, init=initial, overwrite=True, resume=True)
        trained = TrainRnnConfig(**manifest.config)  # with the cell of the labels or of `init`
        chain = sequential.steps_of_rnn(trained, self._lengths)
        operations = cost.of_rnn(trained, _weights(out, "rnn"), self._lengths)
        self._note(stage, out, manifest, chain, operations)
        windows = self._specification.task["windows"]
        self._evaluate(stage, "test", self._tokens, encoder, windows=windows)
        goal = self._specification.task["goal"]
        validated = manifest.statistics["validation"]["free_running_accuracy"]
        return goal is not None and validated >= goal

    def _settings(self, stage: str) -> Table:
        """Settings of a stage, with at most the seconds that earlier stages left of the budget:
        extraction has no limit of its own."""
        settings = {"seed": self._specification.seed, **self._specification.stages[stage]}
        left = max(1.0, self._specification.budget - total(self.result, "seconds"))
        limit = min(settings["training"]["max_seconds"], left)
        return merged(settings, {"training": {"max_seconds": limit}})

    def _note(
        self, stage: str, out: Path, manifest: Manifest, chain: float, operations: float
    ) -> None:
        """Adds the costs and the validation curve of a training stage to the result."""
        statistics = manifest.statistics
        self.result["stages"].append(
            {
                "stage": stage,
                "seconds": statistics["seconds"],
                "steps": statistics["steps"],
                "tokens": statistics["tokens"],
                "parameters": statistics["parameters"],
                "sequential": chain * statistics["steps"],
                "operations": operations * statistics["steps"],
                "validation": statistics["validation"],
                "curve": list(_curve(Artifact.open(out, manifest.kind).file(METRICS))),
            }
        )

    def _evaluate_longer(self, stage: str, encoder: Path | None) -> None:
        longer = self._specification.task["longer"]
        if longer:
            settings = {name: longer[name] for name in ("windows", "lengths")}
            self._evaluate(stage, "longer", self._longer or self._tokens, encoder, **settings)

    def _evaluate(
        self, stage: str, name: str, tokens: Path, encoder: Path | None, **settings: int
    ) -> None:
        """Tests a stage's RNN, with its teacher if `encoder` is given; skips trials."""
        if not self._specification.evaluated:
            return
        config = EvaluateConfig(**{"lengths": 1, "baseline_tokens": 1_000_000, **settings})
        manifest = evaluate.run(
            config,
            self._directory / stage,
            tokens,
            self._directory / f"{stage}-{name}",
            encoder=encoder,
            overwrite=True,
        )
        keys = ("window", "overall", "results", "by_length")
        kept = {key: manifest.statistics[key] for key in keys}
        self.result["tests"].setdefault(stage, {})[name] = kept


def _curve(path: Path) -> Iterator[list[float]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] == "validation":
            yield [round(record[key], 5) for key in _CURVE]


def _weights(artifact: Path, kind: Kind) -> dict[str, torch.Tensor]:
    return load_tensors(Artifact.open(artifact, kind).file(MODEL))[0]


def _machine() -> Table:
    return {
        "processor": platform.processor() or platform.machine(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "smtkit": smtkit.__version__,
    }
