"""What the next token costs after so many: the RNN's step, beside the teacher reading all again.

One sequence, on one device. `seconds_per_token` is on the clock: of the RNN, the mean of its last
steps, each with its readout; of the teacher, one pass over the whole context, of which it needs the
last memory, and its readout.

`bytes` is counted, not measured, and is beside the weights: of the RNN, the memory, all that it
carries from token to token; of the teacher, its context (8 bytes a token) and the activations of
one layer (stream, query, key and value of every symbol it attends to). The process's resident size
would tell of what the process did before. `peak_bytes` is what CUDA counts as allocated at most in
the meantime, beyond what was before; null on a CPU, whose allocations torch does not count.

Null, too, is what would take too long: the teacher's next context is tried only if it would fit
`_SECONDS`, were its cost quadratic; the RNN stops after `_RNN_SECONDS`.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smtkit.config import EncoderConfig
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import Teacher
from smtkit.progress import Progress

TOKENS = (100, 1_000, 10_000, 100_000)
_TEACHER_TOKENS = 10_000  # at most
_SECONDS = 30.0
_RNN_SECONDS = 120.0
_TIMED_STEPS = 100

Record = dict[str, Any]
"""predictor, tokens, seconds_per_token, bytes, peak_bytes."""


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
            records.append(_record("rnn", tokens, None, state, None))
            continue
        last = _random_tokens(vocabulary, tokens - done, device)
        seconds, peak, memory = _measured(_reader(network, memory, last), device)
        records.append(_record("rnn", tokens, seconds / len(last), state, peak))
        done = tokens
    return records


@torch.inference_mode()
def of_teacher(
    teacher: Teacher, config: EncoderConfig, window: int, vocabulary: int, device: torch.device
) -> list[Record]:
    """A record for each number of tokens, the context of one pass."""
    records: list[Record] = []
    expected = 0.0
    for number, tokens in enumerate(TOKENS):
        read = tokens if teacher.encoder.parallel else min(tokens, config.context_length or window)
        size = _teacher_bytes(config, read)
        if tokens > _TEACHER_TOKENS or expected > _SECONDS:
            records.append(_record("teacher", tokens, None, size, None))
            expected = _SECONDS + 1
            continue
        encode = _encoder(teacher, _random_tokens(vocabulary, tokens, device))
        encode()  # the first time is the slowest
        seconds, peak, _ = _measured(encode, device)
        records.append(_record("teacher", tokens, seconds, size, peak))
        if number + 1 < len(TOKENS):
            expected = 2 * seconds * (TOKENS[number + 1] / tokens) ** 2
    return records


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


def _random_tokens(vocabulary: int, count: int, device: torch.device) -> Tensor:
    """(count, 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (count, 1), generator=generator).to(device)


def _record(
    predictor: str, tokens: int, seconds: float | None, size: int, peak: int | None
) -> Record:
    return {
        "predictor": predictor,
        "tokens": tokens,
        "seconds_per_token": seconds,
        "bytes": size,
        "peak_bytes": peak,
    }
