"""The one loop: every method trains in it. A method is an objective, a source gives its batches."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from smtkit.config import TrainingConfig
from smtkit.errors import ArtifactError, NonFiniteLossError
from smtkit.storage.manifest import METRICS
from smtkit.training.checkpoint import TrainingState
from smtkit.training.distributed import ALONE, Ranks
from smtkit.training.interrupts import SIGNALS, stop_signals, stopped
from smtkit.training.metrics import MetricsFile, Tally, added
from smtkit.training.optimizer import build_optimizer, schedule
from smtkit.training.progress import Progress, Silent
from smtkit.training.protocols import FREE_RUNNING_ACCURACY, BatchT, Method, Sampler, Validation


class Trainer(Generic[BatchT]):
    """Trains `method` on `source` until `config` says stop; saves to and resumes from `directory`.

    Each of `ranks` computes its slice of every batch; all make the same updates of the same
    weights, and the first of them writes. `run` returns the last validation's means. It raises
    NonFiniteLossError before an update that would spoil the weights, and InterruptedRunError, with
    the state saved, on SIGINT and SIGTERM of any rank.
    """

    def __init__(
        self,
        method: Method[BatchT],
        source: Sampler[BatchT],
        validations: Sequence[Validation[Any]],
        config: TrainingConfig,
        directory: Path,
        device: torch.device,
        progress: Progress,
        on_checkpoint: Callable[[], None],
        ranks: Ranks = ALONE,
    ) -> None:
        config.micro_batch(ranks.size)
        self._method = method
        self._source = source
        self._validations = validations
        self._config = config
        self._directory = directory
        self._device = device
        self._progress = progress if ranks.is_first else Silent()
        self._on_checkpoint = on_checkpoint
        self._ranks = ranks
        method.network.to(device)
        if config.compile:
            for module in method.network.children():
                module.compile()
        method.state.to(device)
        self.state = TrainingState(
            method.network, build_optimizer(method.network, config), method.state
        )
        self._metrics = MetricsFile(directory / METRICS)
        self._tally = Tally()
        self._concerned = False
        self._reached = False
        self._validated_at = 0.0
        self._clock = time.process_time if config.clock == "cpu" else time.monotonic

    def run(self) -> dict[str, float]:
        if self.state.load(self._directory):
            self._on_checkpoint()
        self._check_steps(self._ranks.gather(self.state.step))
        if self._ranks.is_first:
            self._metrics.truncate(self.state.step)
        validated: dict[str, float] = {}
        with stop_signals() as received:
            while not self._finished():
                began = self._clock()
                batches = self._read()
                known = self._agree(batches, received)
                if known.stopped_by:
                    self._save()
                    self._ranks.barrier()  # none says that it is saved before it is
                    raise stopped(known.stopped_by, f"saved at step {self.state.step}")
                self._step(batches, known.counts)
                self.state.tokens += known.tokens
                self.state.seconds = self._agreed(self.state.seconds + self._clock() - began)
                if (last := self._finished()) or self.state.step % self._config.log_every == 0:
                    self._log()
                if last or self._validation_is_due():
                    validated = self._validate()
                if not self._finished() and self._checkpoint_is_due():
                    self._save()
        return validated or self._validate()

    def _check_steps(self, steps: Sequence[int]) -> None:
        """Raises ArtifactError where not all ranks see the same checkpoint."""
        if len(set(steps)) > 1:
            raise ArtifactError(
                f"{self._directory}: the ranks see checkpoints of steps {sorted(set(steps))}",
                "to resume, all need the folder of the run",
            )

    def statistics(self) -> dict[str, int | float]:
        """What the run took, for the manifest."""
        return {
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            "parameters": sum(p.numel() for p in self._method.network.parameters()),
        }

    def _finished(self) -> bool:
        return self._reached or self._share_done() >= 1

    def _share_done(self) -> float:
        config = self._config
        shares = (
            self.state.step / config.max_steps if config.max_steps else 0.0,
            self.state.seconds / config.max_seconds if config.max_seconds else 0.0,
        )
        return max(shares)

    def _read(self) -> list[BatchT]:
        """This rank's slice of the step's batch, in the parts that accumulation makes of it."""
        parts, ranks = self._config.accumulation, self._ranks
        return [
            self._source.batch(self.state.step, ranks.rank * parts + part, ranks.size * parts)
            for part in range(parts)
        ]

    def _agree(self, batches: Sequence[BatchT], received: Sequence[int]) -> "_Known":
        """What no rank knows alone: it is asked once a step."""
        counts = added(self._method.counts(batch) for batch in batches)
        told = {f"{_SIGNAL}{number}": int(number in received) for number in SIGNALS}
        told[_TOKENS] = sum(batch.tokens_read for batch in batches)
        known = self._ranks.sum_counts({**counts, **told})
        return _Known(
            {name: known[name] for name in counts},
            known[_TOKENS],
            next((number for number in SIGNALS if known[f"{_SIGNAL}{number}"]), None),
        )

    def _agreed(self, seconds: float) -> float:
        """The first rank's clock, where it decides how far the run is."""
        return float(self._ranks.broadcast(seconds)) if self._config.max_seconds else seconds

    def _step(self, batches: Sequence[BatchT], counts: Mapping[str, int]) -> None:
        step = self.state.step
        weights = self._method.weights(step)
        loss = torch.zeros((), device=self._device)
        tally = Tally()
        for batch in batches:
            self._last_batch = moved(batch, self._device)
            with self._autocast():
                sums = self._method.losses(self._last_batch)
            part_loss = sum(
                (weights[name] * sums[name] / max(counts[name], 1) for name in sums),
                start=torch.zeros((), device=self._device),
            )
            part_loss.backward()
            loss += part_loss.detach()
            tally.add({name: total.detach() for name, total in sums.items()})
        tally.add({_LOSS: loss})
        tally = self._summed(tally)
        tally.count({**counts, _LOSS: 1})
        means = tally.tensors()
        self._update(means[_LOSS])
        self._tally.merge(tally)
        self._method.observe(step, {name: means[name] for name in means if counts.get(name)})
        self.state.step += 1

    def _summed(self, tally: Tally) -> Tally:
        """Gradients and sums of all ranks, in one exchange after the last part of the batch.

        Not DistributedDataParallel: it takes means, wants one `forward`, and regroups what it sends
        after a run's first step, so that a resumed run would add up in another order. Which
        parameters have a gradient depends on the settings alone: it is the same on all ranks.
        """
        named = tally.sums()
        learned = [p for p in self._method.network.parameters() if p.grad is not None]
        gradients = [p.grad for p in learned if p.grad is not None]
        summed = self._ranks.sum_together([*gradients, *named.values()])
        for parameter, gradient in zip(learned, summed, strict=False):
            parameter.grad = gradient
        whole = Tally()
        whole.add(dict(zip(named, summed[len(learned) :], strict=True)))
        return whole

    def _update(self, loss: Tensor) -> None:
        step, optimizer = self.state.step, self.state.optimizer
        norm = nn.utils.clip_grad_norm_(self._method.network.parameters(), self._config.clip)
        if not bool(torch.isfinite(loss + norm)):
            raise NonFiniteLossError(
                f"step {step}: loss is {float(loss)}, gradient norm {float(norm)}; no update made",
                "try a smaller training.learning_rate, or training.precision=float32",
            )
        self._rate = self._config.learning_rate * schedule(self._config, step, self._share_done())
        for group in optimizer.param_groups:
            group["lr"] = self._rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._norm = norm

    def _log(self) -> None:
        tally, self._tally = self._tally, Tally()
        if not self._ranks.is_first:
            return
        metrics = {
            **tally.means(),
            "gradient_norm": float(self._norm),
            "learning_rate": self._rate,
            **self._method.diagnostics(self._last_batch),
        }
        speed = self.state.tokens / max(self.state.seconds, 1e-9)
        self._write("train", metrics, tokens_per_second=round(speed, 1))
        self._progress.update(
            "training",
            self.state.step if self._config.max_steps else round(self.state.seconds, 1),
            self._config.max_steps or self._config.max_seconds,
            tokens_per_second=speed,
            **tally.means(),
        )
        concern = self._method.concern(metrics)
        if concern and not self._concerned:
            self._progress.warn(f"step {self.state.step}: {concern}")
        self._concerned = concern is not None

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        tally, ranks = Tally(), self._ranks
        self._method.network.eval()
        for validation in self._validations:
            for step in range(validation.batches):
                batch = validation.source.batch(step, ranks.rank, ranks.size)
                with self._autocast():
                    tally.add(validation.measure.losses(moved(batch, self._device)))
                tally.count(validation.measure.counts(batch))
        self._method.network.train()
        means = tally.over(ranks).means()
        goal = self._config.stop_at_accuracy
        self._reached = goal is not None and means.get(FREE_RUNNING_ACCURACY, 0.0) >= goal
        self._validated_at = self.state.seconds
        self._write("validation", means)
        return means

    def _write(self, split: str, metrics: Mapping[str, float], **more: float) -> None:
        if not self._ranks.is_first:
            return
        self._metrics.append(
            {
                "step": self.state.step,
                "split": split,
                **metrics,
                "tokens": self.state.tokens,
                "seconds": round(self.state.seconds, 3),
                **more,
            }
        )

    def _autocast(self) -> torch.autocast:
        precision = self._config.precision
        enabled = precision == "bfloat16" or (precision == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _validation_is_due(self) -> bool:
        seconds = self._config.validate_seconds
        if seconds is None:
            return self.state.step % self._config.validate_every == 0
        return self.state.seconds >= self._validated_at + seconds

    def _checkpoint_is_due(self) -> bool:
        return self.state.step % self._config.checkpoint_every == 0

    def _save(self) -> None:
        if self._ranks.is_first:
            self.state.save(self._directory)
            self._on_checkpoint()


_LOSS, _TOKENS, _SIGNAL = "loss", "tokens read", "signal "


@dataclass(frozen=True)
class _Known:
    """Of all ranks: counts of terms, tokens that they read, and a signal that any of them got."""

    counts: dict[str, int]
    tokens: int
    stopped_by: int | None


def moved(batch: BatchT, device: torch.device) -> BatchT:
    """The batch on `device`; from pinned memory, and without waiting, where that is CUDA."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if tensor.numel() else tensor
        return pinned.to(device, non_blocking=True)

    fields = {f.name: move(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **fields)
