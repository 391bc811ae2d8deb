"""Time and memory of the next token after a number of tokens: a step of the RNN, and a pass of the
teacher, which reads all its context again. One sequence, on one device.

What would take too much time or memory is skipped. Seconds of the teacher's next pass are forecast
from its last two; the RNN stops after `_RNN_SECONDS`.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smtkit.evaluation.subject import Subject
from smtkit.networks.inputs import random_tokens
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.progress import Progress

TOKENS = (100, 1_000, 10_000, 100_000)
_SECONDS = 60.0  # of one pass of the teacher
_SHARE_OF_FREE = 0.5  # of the free memory, for one pass
_WARM_UP_SECONDS = 1.0  # longer passes are not repeated: the extra time of the first is negligible
_RNN_SECONDS = 120.0
_TIMED_STEPS = 100
_MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Record:
    """Cost of the token after `tokens` tokens.

    seconds_per_token: wall time; for the RNN the mean of its last steps, for the teacher one pass
    up to its last memory, each with the readout. None if skipped.
    bytes: computed, without the weights; for the RNN its memory, which is all that it keeps between
    tokens, for the teacher `PassCost.layer_bytes`.
    peak_bytes: the most that CUDA has allocated meanwhile, beyond what was allocated before; None
    on a CPU, where torch does not count.
    skipped: why it was not measured.
    """

    predictor: str
    tokens: int
    seconds_per_token: float | None
    bytes: int
    peak_bytes: int | None = None
    skipped: str | None = None


def measure(subject: Subject, progress: Progress) -> list[dict[str, Any]]:
    """A record per predictor and number of tokens; warns of those that are skipped."""
    measured = measure_rnn(subject.network, progress)
    if subject.teacher is not None:
        measured = itertools.chain(measured, measure_teacher(subject.teacher, progress))
    records = []
    for record in measured:
        if record.skipped is not None:
            name = f"{record.predictor}, {record.tokens:,} tokens"
            progress.warn(f"{name}: not timed: {record.skipped}")
        records.append(asdict(record))
    return records


@torch.inference_mode()
def measure_rnn(network: RecurrentNetwork, progress: Progress) -> Iterator[Record]:
    """A record per number of tokens, which are read one by one from the empty memory."""
    vocabulary_size = network.architecture.vocabulary_size
    memory, done, started = network.start(1), 0, time.monotonic()
    device, size = memory.device, memory.numel() * memory.element_size()

    def predict(memory: Tensor, last: Tensor) -> Tensor:
        for token in last:
            memory = network.step(memory, token)
            network.readout(memory)
        return memory

    for tokens in TOKENS:
        while done < tokens - _TIMED_STEPS and time.monotonic() - started < _RNN_SECONDS:
            count = min(_TIMED_STEPS, tokens - _TIMED_STEPS - done)
            for token in random_tokens(vocabulary_size, count, device):
                memory = network.step(memory, token)
            done += count
            progress.update("timing the rnn", done, TOKENS[-1])
        if tokens - done > _TIMED_STEPS:
            reason = f"more than {_RNN_SECONDS:.0f} s for the tokens before"
            yield Record("rnn", tokens, None, size, skipped=reason)
            continue
        last = random_tokens(vocabulary_size, tokens - done, device)
        seconds, peak, memory = _timed(predict, memory, last)
        yield Record("rnn", tokens, seconds / len(last), size, peak)
        done = tokens


@torch.inference_mode()
def measure_teacher(teacher: Teacher, progress: Progress) -> Iterator[Record]:
    """A record per number of tokens in the context of one pass."""
    vocabulary_size = teacher.architecture.vocabulary_size
    device = next(teacher.parameters()).device
    passes: list[tuple[int, float]] = []  # tokens that the encoder read, seconds

    def predict(context: Tensor, end: Tensor) -> Tensor:
        return teacher.read(teacher.encoder.encode_at(context, end)[:, 0])

    for tokens in TOKENS:
        cost = teacher.encoder.pass_cost(tokens)
        expected = forecast(passes, cost.tokens)
        reason = _reason_to_skip(expected, cost.peak_bytes, free_bytes(device))
        if reason is not None:
            yield Record("teacher", tokens, None, cost.layer_bytes, skipped=reason)
            continue
        context = random_tokens(vocabulary_size, tokens, device).view(1, -1)
        end = torch.tensor([[tokens]], device=device)
        if expected < _WARM_UP_SECONDS:
            predict(context, end)
        seconds, peak, _ = _timed(predict, context, end)
        passes.append((cost.tokens, seconds))
        progress.update("timing the teacher", tokens, TOKENS[-1])
        yield Record("teacher", tokens, seconds, cost.layer_bytes, peak)


def forecast(passes: Sequence[tuple[int, float]], tokens: int) -> float:
    """Seconds of a pass over `tokens`, from the last two of `passes` (tokens, seconds).

    a t + b t^2 through both, with a, b >= 0; b t^2 through a single one; 0 before any.
    """
    if not passes:
        return 0.0
    far, seconds = passes[-1]
    quadratic = seconds / far**2
    if len(passes) > 1 and passes[-2][0] < far:
        near, less = passes[-2]
        slope = (seconds / far - less / near) / (far - near)
        quadratic = min(max(slope, 0.0), quadratic)
    linear = seconds / far - quadratic * far
    return linear * tokens + quadratic * tokens**2


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be allocated on `device`; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = _MEMORY_INFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _reason_to_skip(seconds: float, needed: int, free: int | None) -> str | None:
    """Why a pass of so many seconds and bytes is not made; None if it is."""
    if seconds > _SECONDS:
        return f"about {seconds:.0f} s forecast, more than {_SECONDS:.0f}"
    if free is not None and needed > _SHARE_OF_FREE * free:
        share = f"{_SHARE_OF_FREE:.0%} of {free / 2**30:.1f} GiB free"
        return f"about {needed / 2**30:.1f} GiB forecast, more than {share}"
    return None


def _timed(work: Callable[..., Tensor], *inputs: Tensor) -> tuple[float, int | None, Tensor]:
    """Seconds, peak bytes beyond those allocated before (CUDA only), and the result."""
    device = inputs[0].device
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    started = time.perf_counter()
    result = work(*inputs)
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(device) - before if on_cuda else None, result
