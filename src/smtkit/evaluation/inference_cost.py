"""What the next token costs after so many: the RNN's step, beside the teacher reading all again.

One sequence, on one device. `seconds_per_token` is on the clock: of the RNN, the mean of its last
steps, each with its readout; of the teacher, one pass over the whole context, of which it needs the
last memory, and its readout.

`bytes` is counted, not measured, and is beside the weights: of the RNN, the memory, all that it
carries from token to token; of the teacher, its context (8 bytes a token) and the activations of
one layer (stream, query, key and value of every symbol it attends to). The process's resident size
would tell of what the process did before. `peak_bytes` is what CUDA counts as allocated at most in
the meantime, beyond what was before; null on a CPU, whose allocations torch does not count.

What would take too long or too much memory is not measured: `seconds_per_token` is null, and
`skipped` says why. The teacher's next context is forecast from the last two; the RNN stops after
`_RNN_SECONDS`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smtkit.config import EncoderConfig
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.progress import Progress

TOKENS = (100, 1_000, 10_000, 100_000)
_SECONDS = 60.0  # of one pass of the teacher
_SHARE_OF_FREE = 0.5  # of memory, at most
_WARMED_UP = 1.0  # seconds: beside a longer pass, what a first one costs more is nothing
_RNN_SECONDS = 120.0
_TIMED_STEPS = 100
_MEMORY_INFO = Path("/proc/meminfo")

Record = dict[str, Any]
"""predictor, tokens, seconds_per_token, bytes, peak_bytes, skipped."""


@torch.inference_mode()
def of_rnn(network: RecurrentNetwork, device: torch.device, progress: Progress) -> list[Record]:
    """A record for each number of tokens, read one after the other from the empty memory."""
    vocabulary = network.architecture["vocabulary_size"]
    memory, done, began = network.start(1), 0, time.monotonic()
    state = memory.numel() * memory.element_size()
    records: list[Record] = []
    for tokens in TOKENS:
        while done < tokens - _TIMED_STEPS and time.monotonic() - began < _RNN_SECONDS:
            count = min(_TIMED_STEPS, tokens - _TIMED_STEPS - done)
            memory = _read(network, memory, _random_tokens(vocabulary, count, device))
            done += count
            progress.update("timing the rnn", done, TOKENS[-1])
        if tokens - done > _TIMED_STEPS:
            why = f"more than {_RNN_SECONDS:.0f} s for the tokens before"
            records.append(_skipped("rnn", tokens, state, why, progress))
            continue
        last = _random_tokens(vocabulary, tokens - done, device)
        seconds, peak, memory = _measured(_reader(network, memory, last), device)
        records.append(_record("rnn", tokens, seconds / len(last), state, peak))
        done = tokens
    return records


@torch.inference_mode()
def of_teacher(
    teacher: Teacher,
    config: EncoderConfig,
    window: int,
    vocabulary: int,
    device: torch.device,
    progress: Progress,
) -> list[Record]:
    """A record for each number of tokens, the context of one pass."""
    records: list[Record] = []
    passes: list[tuple[int, float]] = []  # tokens read, seconds
    for tokens in TOKENS:
        read = tokens if teacher.encoder.parallel else min(tokens, config.context_length or window)
        size = _teacher_bytes(config, read)
        expected = forecast(passes, read)
        why = _too_slow(expected) or _too_large(_pass_bytes(config, read), free_bytes(device))
        if why is not None:
            records.append(_skipped("teacher", tokens, size, why, progress))
            continue
        encode = _encoder(teacher, _random_tokens(vocabulary, tokens, device))
        if expected < _WARMED_UP:
            encode()  # the first time is the slowest
        seconds, peak, _ = _measured(encode, device)
        passes.append((read, seconds))
        records.append(_record("teacher", tokens, seconds, size, peak))
        progress.update("timing the teacher", tokens, TOKENS[-1])
    return records


def forecast(passes: Sequence[tuple[int, float]], tokens: int) -> float:
    """Seconds for `tokens`: a t + b t^2 through the last two of `passes` (tokens, seconds), neither
    a nor b below 0; through one, b t^2; before any, 0."""
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
    """Memory that could be allocated; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = _MEMORY_INFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _too_slow(expected: float) -> str | None:
    if expected <= _SECONDS:
        return None
    return f"about {expected:.0f} s forecast, more than {_SECONDS:.0f}"


def _too_large(needed: int, free: int | None) -> str | None:
    if free is None or needed <= _SHARE_OF_FREE * free:
        return None
    share = f"{_SHARE_OF_FREE:.0%} of {free / 2**30:.1f} GiB free"
    return f"about {needed / 2**30:.1f} GiB forecast, more than {share}"


def _read(network: RecurrentNetwork, memory: Tensor, tokens: Tensor) -> Tensor:
    for token in tokens:
        memory = network.step(memory, token)
    return memory


def _reader(network: RecurrentNetwork, memory: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    def read() -> Tensor:
        current = memory
        for token in tokens:
            current = network.step(current, token)
            network.readout(current)
        return current

    return read


def _encoder(teacher: Teacher, tokens: Tensor) -> Callable[[], Tensor]:
    context = tokens.view(1, -1)
    position = torch.tensor([[context.shape[1]]], device=tokens.device)
    return lambda: teacher.read(teacher.encoder.encode_at(context, position)[:, 0])


def _measured(work: Callable[[], Tensor], device: torch.device) -> tuple[float, int | None, Tensor]:
    """Seconds, the most bytes allocated beyond those before, and the result."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    began = time.perf_counter()
    result = work()
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated(device) - before if on_cuda else None, result


def _teacher_bytes(config: EncoderConfig, tokens: int) -> int:
    symbols = tokens + (1 if config.kind == "causal" else config.slots)  # BOS, or registers
    return 8 * tokens + 4 * 4 * config.width * symbols


def _pass_bytes(config: EncoderConfig, tokens: int) -> int:
    """About what a pass takes at most: as measured, 16 numbers beside each other a channel of the
    stream (of K streams, with registers), 3 a number of memory. Fused attention is linear in
    tokens."""
    causal = config.kind == "causal"
    streams = config.slots if causal and config.memory == "registers" else 1
    memories = config.slots * config.slot_width * (tokens + 1 if causal else 1)
    symbols = tokens + (1 if causal else config.slots)
    return 4 * (16 * streams * config.width * symbols + 3 * memories)


def _random_tokens(vocabulary: int, count: int, device: torch.device) -> Tensor:
    """(count, 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (count, 1), generator=generator).to(device)


def _record(
    predictor: str,
    tokens: int,
    seconds: float | None,
    size: int,
    peak: int | None,
    skipped: str | None = None,
) -> Record:
    return {
        "predictor": predictor,
        "tokens": tokens,
        "seconds_per_token": seconds,
        "bytes": size,
        "peak_bytes": peak,
        "skipped": skipped,
    }


def _skipped(predictor: str, tokens: int, size: int, why: str, progress: Progress) -> Record:
    progress.warn(f"{predictor}, {tokens:,} tokens: not timed: {why}")
    return _record(predictor, tokens, None, size, None, why)
