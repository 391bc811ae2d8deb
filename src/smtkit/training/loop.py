"""The training loop that every method runs in."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from smtkit.config import TrainingConfig
from smtkit.errors import ArtifactError, InterruptedRunError
from smtkit.storage.manifest import CHECKPOINT, METRICS
from smtkit.training.checkpoint import TrainingState
from smtkit.training.distributed import ALONE, Ranks, lost_rank_errors
from smtkit.training.interrupts import SIGNALS, stop_signals
from smtkit.training.listeners import Listener
from smtkit.training.metrics import SAMPLE, MetricsFile, Record, Tally, last_of
from smtkit.training.optimizer import build_optimizer, fraction_done, schedule
from smtkit.training.parallel import ParallelNetwork, autocast, full_tensors
from smtkit.training.progress import Progress, Silent
from smtkit.training.protocols import (
    FREE_RUNNING_ACCURACY,
    BatchT,
    Method,
    Sampler,
    Validation,
    moved,
)
from smtkit.training.spoiled import spoiled

CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
"""`training.clock` to a function that returns seconds."""
_LOSS, _TOKENS = "loss", "tokens read"


class Trainer(Generic[BatchT]):
    """Trains a method on the batches of a sampler, until `config` ends the run.

    The state of the run is saved to `directory`, and resumed from there. Each of the `ranks`
    computes a slice of every batch; all make the same updates, and rank 0 writes, after which it
    calls `on_checkpoint`.

    `review` receives the records of all validations so far, and returns a warning for the user or
    None; the first warning is shown. `sample` draws what is shown every `sample_every` updates.
    `listeners` receive what is written to the metrics log.
    """

    clocks: ClassVar[Mapping[str, Callable[[], float]]] = CLOCKS

    @lost_rank_errors()
    def __init__(
        self,
        method: Method[BatchT],
        sampler: Sampler[BatchT],
        validations: Sequence[Validation[Any]],
        config: TrainingConfig,
        directory: Path,
        *,
        ranks: Ranks = ALONE,
        progress: Progress | None = None,
        on_checkpoint: Callable[[], None] = lambda: None,
        review: Callable[[Sequence[Record]], str | None] = lambda _: None,
        sample: Callable[[], str] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        config.micro_batch(ranks.size)
        self._method = method
        self._sampler = sampler
        self._validations = validations
        self._config = config
        self._directory = directory
        self._ranks = ranks
        self._progress = progress if progress and ranks.is_first else Silent()
        self._on_checkpoint = on_checkpoint
        self._review = review
        self._sample = sample
        self._clock = self.clocks[config.clock]
        method.network.to(ranks.device)
        method.state.to(ranks.device)
        if config.compile:
            for module in method.network.children():
                module.compile()
        self._network = ParallelNetwork(method.network, ranks, config.sharding)
        optimizer, terms = build_optimizer(method.network, config), {*method.weights(0), _LOSS}
        self.state = TrainingState(method.network, optimizer, method.state, terms)
        self._non_finite = torch.zeros((), device=ranks.device)  # weights after the last update
        self._metrics_file = MetricsFile(directory / METRICS, listeners)
        self._reached_accuracy = False
        self._validated_at = 0.0  # seconds
        self._has_warned = False
        self._validated: list[Record] = []  # on rank 0

    @lost_rank_errors()
    def run(self) -> dict[str, float]:
        """Trains to the end; returns the means of the last validation.

        Raises NonFiniteLossError before an update that would spoil the weights, or before weights
        that one has spoiled are saved, validated or updated again; and InterruptedRunError,
        after saving the state, on a signal (SIGNALS) to any rank.
        """
        self._resume()
        means: dict[str, float] = {}
        with stop_signals() as received:
            while not self._is_finished():
                started = self._clock()
                batches = self._read()
                counts, tokens, signal_number = self._agree(batches, received)
                if signal_number is not None:
                    self._save()
                    self._ranks.barrier()  # no rank may report that it is saved before it is
                    raise InterruptedRunError(signal_number, f"saved at step {self.state.step}")
                self._step(batches, counts)
                self.state.tokens += tokens
                seconds = self._clock() - started
                # Rank 0's seconds where they decide when the run ends or validates.
                timed = self._config.max_seconds or self._config.validate_seconds
                self.state.seconds += self._ranks.broadcast(seconds) if timed else seconds
                is_last = self._is_finished()
                if is_last or self.state.step % self._config.log_every == 0:
                    self._log()
                if is_last or self._validation_is_due():
                    means = self._validate()
                every = self._config.sample_every
                if self._sample and every and (is_last or self.state.step % every == 0):
                    self._show(self._sample)
                if not self._is_finished() and self.state.step % self._config.checkpoint_every == 0:
                    self._save()
        means = means or self._validate()
        if self._config.keep_state:
            self._save()
        return means

    @lost_rank_errors()
    def weights(self) -> dict[str, Tensor]:
        """The network's state dict on the CPU of rank 0, empty on others. All ranks call it."""
        return full_tensors(self._method.network.state_dict(), self._ranks)

    def statistics(self) -> dict[str, int | float]:
        """Size and length of the run, for the manifest."""
        return {
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            "parameters": sum(p.numel() for p in self._method.network.parameters()),
        }

    def files(self) -> list[str]:
        """Names of the files in `directory` that belong to the artifact."""
        state = self._directory.glob(f"{CHECKPOINT}*") if self._config.keep_state else ()
        return [METRICS, *sorted(path.name for path in state)]

    def _resume(self) -> None:
        """Loads the checkpoint, if there is one. Raises ArtifactError where ranks see others."""
        if self.state.load(self._directory):
            self._on_checkpoint()
        steps = set(self._ranks.gather(self.state.step))
        if len(steps) > 1:
            raise ArtifactError(
                f"{self._directory}: the ranks see checkpoints of steps {sorted(steps)}",
                "to resume, all ranks need the same folder",
            )
        if self._ranks.is_first:
            if warning := self._metrics_file.resume(self.state.step, self.state.metrics):
                self._progress.warn(warning)
            self._validated = self._metrics_file.records("validation")
        last = last_of(self._validated)
        self._validated_at = self._ranks.broadcast(last.get("seconds", 0.0))
        is_current = last.get("step") == self.state.step
        self._reached_accuracy = self._ranks.broadcast(is_current and self._reaches_goal(last))

    def _read(self) -> list[BatchT]:
        """This rank's slice of the step's batch, in `accumulation` parts."""
        parts, ranks = self._config.accumulation, self._ranks
        return [
            self._sampler.batch(self.state.step, ranks.rank * parts + part, ranks.size * parts)
            for part in range(parts)
        ]

    def _agree(
        self, batches: Sequence[BatchT], received: Sequence[int]
    ) -> tuple[dict[str, int], int, int | None]:
        """All-reduces counts of terms, tokens and signals, once per step.

        Returns the counts, the tokens, and the number of a signal that any rank received.
        """
        counts: Counter[str] = Counter()
        for batch in batches:
            counts.update(self._method.counts(batch))
        tokens = sum(batch.tokens_read for batch in batches)
        signals = {number.name: int(number in received) for number in SIGNALS}
        total = self._ranks.sum_counts({**counts, **signals, _TOKENS: tokens})
        signal_number = next((number for number in SIGNALS if total[number.name]), None)
        return {name: total[name] for name in counts}, total[_TOKENS], signal_number

    def _step(self, batches: Sequence[BatchT], counts: Mapping[str, int]) -> None:
        sums = self._accumulate_gradients(batches, counts)
        tally = Tally(sums, Counter({**counts, _LOSS: 1}))
        means = tally.means()
        self._update(means[_LOSS])
        self.state.tally.add(tally.sums, tally.counts)
        observed = {name: mean for name, mean in means.items() if counts.get(name)}
        self._method.observe(self.state.step, observed, self._fraction_done())
        self.state.step += 1

    def _accumulate_gradients(
        self, batches: Sequence[BatchT], counts: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Gradients and sums over all parts of the batch, on all ranks.

        `counts` are those of the whole batch on all ranks, so that parts, whose losses are sums
        over these counts, add up to the loss of the whole batch.
        """
        weights = self._method.weights(self.state.step, self._fraction_done())
        tally = Tally()
        for part, batch in enumerate(batches, start=1):
            self._last_batch = moved(batch, self._ranks.device)
            with self._network.accumulating(part < len(batches)):
                loss, sums = self._network(self._part_loss, self._last_batch, weights, counts)
                self._network.backward(loss)
            tally.add(sums, {})
        summed = self._ranks.sum_tensors(list(tally.sums.values()))
        return dict(zip(tally.sums, summed, strict=True))

    def _part_loss(
        self, batch: BatchT, weights: Mapping[str, float], counts: Mapping[str, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of a part of the batch; its sums and the loss without their graph."""
        with autocast(self._config, self._ranks.device):
            sums = self._method.losses(batch)
        loss = torch.zeros((), device=self._ranks.device)
        for name, value in sums.items():
            loss = loss + weights[name] * value / max(counts[name], 1)
        return loss, {name: value.detach() for name, value in {**sums, _LOSS: loss}.items()}

    def _update(self, loss: Tensor) -> None:
        """Clips the gradient and updates the weights, unless loss or gradient is not finite."""
        config, optimizer = self._config, self.state.optimizer
        norm = self._network.clip_gradient(config.clip)
        if not bool(torch.isfinite(loss + norm) & (self._non_finite == 0)):
            self._check_weights()
            found = f"loss is {float(loss)}, gradient norm {float(norm)}; no update made"
            raise spoiled(self._sampler, self.state.step, found)
        factor = schedule(config, self.state.step, self._fraction_done())
        self._rate, self._norm = config.learning_rate * factor, norm
        for group in optimizer.param_groups:
            group["lr"] = self._rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._non_finite = self._network.non_finite()

    def _check_weights(self) -> None:
        """Raises NonFiniteLossError where the last update has spoiled the weights."""
        if bool(self._non_finite):
            raise spoiled(self._sampler, self.state.step - 1)

    @torch.no_grad()
    def _log(self) -> None:
        """Writes, displays and checks the means of all updates since the last record."""
        # A sharded network needs all ranks, also for what rank 0 alone writes.
        diagnostics = self._network(self._method.diagnostics, self._last_batch)
        terms = {name: float(mean) for name, mean in self.state.tally.means().items()}
        self.state.tally = Tally()
        speed = self.state.tokens / max(self.state.seconds, 1e-9)
        metrics = {
            **terms,
            "gradient_norm": float(self._norm),
            "learning_rate": self._rate,
            **diagnostics,
        }
        self._write("train", metrics, tokens_per_second=round(speed, 1))
        completed: float = self.state.step
        total: float | None = round(completed / self._fraction_done())
        if self._config.max_steps is None:
            completed, total = round(self.state.seconds, 1), self._config.max_seconds
        self._progress.update("training", completed, total, tokens_per_second=speed, **terms)
        warning = self._method.warning(metrics)
        if warning and not self._has_warned:
            self._progress.warn(f"step {self.state.step}: {warning}")
        self._has_warned = warning is not None

    @torch.no_grad()
    def _show(self, sample: Callable[[], str]) -> None:
        """Displays a sample, and writes it to the log. A sharded network needs all ranks."""
        text = self._network(sample)
        self._progress.show(f"sample at step {self.state.step}", text)
        if self._ranks.is_first:
            self._metrics_file.append({"step": self.state.step, "split": SAMPLE, "text": text})

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Means over held-out batches, on all ranks."""
        self._check_weights()
        tally, ranks = Tally(), self._ranks
        self._method.network.eval()
        for validation in self._validations:
            for step in range(validation.batches):
                batch = validation.sampler.batch(step, ranks.rank, ranks.size)
                counts = validation.measure.counts(batch)
                with autocast(self._config, self._ranks.device):
                    sums = self._network(validation.measure.losses, moved(batch, ranks.device))
                tally.add(sums, counts)
        self._method.network.train()
        means = {name: float(mean) for name, mean in tally.summed(ranks).means().items()}
        self._reached_accuracy = self._reaches_goal(means)
        self._validated_at = self.state.seconds
        if self._ranks.is_first and last_of(self._validated).get("step") != self.state.step:
            self._validated.append(self._write("validation", means))
            self._metrics_file.show_weights(self.state.step, self._method.network)
            if warning := self._review(self._validated):
                self._progress.warn(f"step {self.state.step}: {warning}")
                self._review = lambda _: None  # one warning is enough
        return means

    def _reaches_goal(self, metrics: Mapping[str, float]) -> bool:
        goal = self._config.stop_at_accuracy
        return goal is not None and metrics.get(FREE_RUNNING_ACCURACY, 0.0) >= goal

    def _write(self, split: str, metrics: Mapping[str, float], **more: float) -> Record:
        record = {
            "step": self.state.step,
            "split": split,
            **metrics,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            **more,
        }
        if self._ranks.is_first:
            self._metrics_file.append(record)
        return record

    def _save(self) -> None:
        self._check_weights()
        self.state.save(self._directory, self._ranks)
        if self._ranks.is_first:
            self._on_checkpoint()

    def _is_finished(self) -> bool:
        return self._reached_accuracy or self._fraction_done() >= 1

    def _fraction_done(self) -> float:
        return fraction_done(self._config, self.state.step, self.state.seconds)

    def _validation_is_due(self) -> bool:
        seconds = self._config.validate_seconds
        if seconds is None:
            return self.state.step % self._config.validate_every == 0
        return self.state.seconds >= self._validated_at + seconds
