"""The one loop: every method trains in it. A method is an objective, a source gives its batches."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from smtkit.artifacts.checkpoint import TrainingState
from smtkit.artifacts.manifest import METRICS
from smtkit.artifacts.run import publish
from smtkit.config import Device, TrainingConfig
from smtkit.convention import FREE_RUNNING_ACCURACY
from smtkit.errors import NonFiniteLossError, UsageError
from smtkit.interrupts import stop_signals, stopped
from smtkit.optimization import build_optimizer, schedule
from smtkit.progress import Progress


class Batch(Protocol):
    """A dataclass of tensors."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def tokens_read(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)
BatchT_contra = TypeVar("BatchT_contra", bound=Batch, contravariant=True)


class Source(Protocol[BatchT_co]):
    """Slice `part` of `parts` of the batch of `step`: a pure function."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT_co: ...


class Measure(Protocol[BatchT_contra]):
    """Sums of named terms over a batch, and their counts. A mean is sum / max(count, 1)."""

    def counts(self, batch: BatchT_contra) -> dict[str, int]: ...

    def losses(self, batch: BatchT_contra) -> dict[str, Tensor]: ...


class Method(Measure[BatchT_contra], Protocol[BatchT_contra]):
    """An objective: a measure whose terms have weights.

    The loss is the sum over terms of weight * mean, with sums and counts taken over all parts of
    the batch. `observe` is told the means of every update's terms, but for those that counted
    nothing; what the method keeps of them lies in `state` (buffers), which is saved with the run.
    `diagnostics` are more numbers to log; `concern` says what of them the user should know now.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def state(self) -> nn.Module: ...

    def weights(self, step: int) -> dict[str, float]: ...

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None: ...

    def diagnostics(self, batch: BatchT_contra) -> dict[str, float]: ...

    def concern(self, metrics: Mapping[str, float]) -> str | None: ...


@dataclass(frozen=True)
class Validation(Generic[BatchT]):
    """A measure of held-out batches: steps 0..`batches` - 1 of `source`."""

    measure: Measure[BatchT]
    source: Source[BatchT]
    batches: int


class Trainer(Generic[BatchT]):
    """Trains `method` on `source` until `config` says stop; saves to and resumes from `directory`.

    `run` returns the last validation's means. It raises NonFiniteLossError before an update that
    would spoil the weights, and InterruptedRunError, with the state saved, on SIGINT and SIGTERM.
    """

    def __init__(
        self,
        method: Method[BatchT],
        source: Source[BatchT],
        validations: Sequence[Validation[Any]],
        config: TrainingConfig,
        directory: Path,
        device: torch.device,
        progress: Progress,
        on_checkpoint: Callable[[], None],
    ) -> None:
        self._method = method
        self._source = source
        self._validations = validations
        self._config = config
        self._directory = directory
        self._device = device
        self._progress = progress
        self._on_checkpoint = on_checkpoint
        method.network.to(device)
        if config.compile:
            for module in method.network.children():
                module.compile()
        method.state.to(device)
        self.state = TrainingState(
            method.network, build_optimizer(method.network, config), method.state
        )
        self._metrics = MetricsFile(directory / METRICS)
        self._tally = _Tally()
        self._concerned = False
        self._reached = False
        self._clock = time.process_time if config.clock == "cpu" else time.monotonic

    def run(self) -> dict[str, float]:
        if self.state.load(self._directory):
            self._on_checkpoint()
        self._metrics.truncate(self.state.step)
        validated: dict[str, float] = {}
        with stop_signals() as stopped_by:
            while not self._finished():
                began = self._clock()
                self._step()
                self.state.seconds += self._clock() - began
                last = self._finished()
                if last or self.state.step % self._config.log_every == 0:
                    self._log()
                if last or self.state.step % self._config.validate_every == 0:
                    validated = self._validate()
                if self._finished():
                    break
                if stopped_by or self._checkpoint_is_due():
                    self._save()
                if stopped_by:
                    raise stopped(stopped_by[0], f"saved at step {self.state.step}")
        return validated or self._validate()

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

    def _step(self) -> None:
        state, parts = self.state, self._config.accumulation
        step = state.step
        batches = [self._source.batch(step, part, parts) for part in range(parts)]
        counts = _added(self._method.counts(batch) for batch in batches)
        weights = self._method.weights(step)
        loss = torch.zeros((), device=self._device)
        tally = _Tally()
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
            state.tokens += batch.tokens_read
        tally.count(counts)
        self._update(loss)
        self._tally.merge(tally)
        means = tally.tensors()
        self._method.observe(step, {name: means[name] for name in means if counts[name]})
        state.step += 1

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
        self._tally.add({"loss": loss})
        self._tally.count({"loss": 1})

    def _log(self) -> None:
        metrics = {
            **self._tally.means(),
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
            **self._tally.means(),
        )
        self._tally = _Tally()
        concern = self._method.concern(metrics)
        if concern and not self._concerned:
            self._progress.warn(f"step {self.state.step}: {concern}")
        self._concerned = concern is not None

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        tally = _Tally()
        self._method.network.eval()
        for validation in self._validations:
            for step in range(validation.batches):
                batch = validation.source.batch(step)
                with self._autocast():
                    tally.add(validation.measure.losses(moved(batch, self._device)))
                tally.count(validation.measure.counts(batch))
        self._method.network.train()
        means = tally.means()
        goal = self._config.stop_at_accuracy
        self._reached = goal is not None and means.get(FREE_RUNNING_ACCURACY, 0.0) >= goal
        self._write("validation", means)
        return means

    def _write(self, split: str, metrics: Mapping[str, float], **more: float) -> None:
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

    def _checkpoint_is_due(self) -> bool:
        return self.state.step % self._config.checkpoint_every == 0

    def _save(self) -> None:
        self.state.save(self._directory)
        self._on_checkpoint()


def choose_device(name: Device) -> torch.device:
    """`auto`: CUDA where there is one. Raises UsageError where `cuda` is asked for in vain."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here, allowed: cpu, auto")
    return torch.device(name)


def moved(batch: BatchT, device: torch.device) -> BatchT:
    """The batch on `device`; from pinned memory, and without waiting, where that is CUDA."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if tensor.numel() else tensor
        return pinned.to(device, non_blocking=True)

    fields = {f.name: move(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **fields)


class MetricsFile:
    """`metrics.jsonl`: a line of JSON for every record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: Mapping[str, float | str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Drops what was written after `step`: by a run that was killed before its next save."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text("".join(kept), encoding="utf-8")
        publish(temporary, self._path)


class _Tally:
    """Sums and counts of terms since the last record."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        for name, total in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total

    def count(self, counts: Mapping[str, int]) -> None:
        self._counts = _added([self._counts, counts])

    def merge(self, other: "_Tally") -> None:
        self.add(other._sums)
        self.count(other._counts)

    def tensors(self) -> dict[str, Tensor]:
        """Means, left where they were computed."""
        return {name: t / max(self._counts[name], 1) for name, t in self._sums.items()}

    def means(self) -> dict[str, float]:
        return {name: float(t) for name, t in self.tensors().items()}


def _added(items: Any) -> dict[str, int]:
    totals: dict[str, int] = {}
    for counts in items:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals
