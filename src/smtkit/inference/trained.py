"""A trained RNN, or its teacher, with its tokenizer on a device: what `smtkit.load_rnn` gives.

B: sequences, T: tokens, P: tokens of a prompt, K: slots, D: slot width, V: vocabulary.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from typing import TypedDict, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit import IGNORE
from smtkit.config import Device, GenerateConfig, resolve
from smtkit.corpus.seeded import UniformStream
from smtkit.corpus.stored_tokenizer import check_vocabulary, load_tokenizer
from smtkit.corpus.tokenizers import TextTokenizer
from smtkit.errors import UsageError
from smtkit.evaluation import free_running
from smtkit.networks import loading
from smtkit.networks.architecture import Network
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import Sampling
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.training.distributed import choose_device

Tokens = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]]
"""Token numbers, as a tensor or whatever `torch.as_tensor` takes."""


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; all are optional."""

    temperature: float
    """0: the likeliest token; 1 by default."""
    top_k: int | None
    """Draw from the k likeliest tokens only."""
    top_p: float | None
    """Draw from the fewest tokens that have this probability together."""
    seed: int | None
    """Equal seeds give equal results; None: another result each time."""


class Trained:
    """Base class of a trained RNN and a trained teacher.

    Attributes: `artifact`, from which it was loaded, with its `manifest`; `tokenizer`.
    """

    def __init__(self, artifact: Artifact, network: Network, device: torch.device) -> None:
        self.artifact = artifact
        self.tokenizer = load_tokenizer(artifact)
        check_vocabulary(artifact, network.architecture.vocabulary_size)
        self.device = device
        network.to(device)
        self.vocabulary_size, self.slots, self.slot_width = network.architecture.shape
        self.window = network.architecture.window

    def encode_text(self, text: str) -> Tensor:
        """Tokens of a text, (T,). Raises UsageError where the network does not read text.

        Characters that the vocabulary of a `char` tokenizer lacks become its token for unknown.
        """
        data = text.encode("utf-8", "surrogateescape")
        encoded = self._text_tokenizer().encode(data)
        return torch.from_numpy(encoded.astype(np.int64)).to(self.device)

    def decode_tokens(self, tokens: Tokens) -> str:
        """The text of tokens (T,); for images and tasks, their numbers or symbols."""
        return self.tokenizer.decode(self._checked(tokens).flatten().tolist())

    def _text_tokenizer(self) -> TextTokenizer:
        if not isinstance(self.tokenizer, TextTokenizer):
            kind = self.tokenizer.description()["kind"]
            raise UsageError(
                f"{self.artifact.directory}: reads {kind} tokens, not text", "give tokens instead"
            )
        return self.tokenizer

    def _checked(self, tokens: Tokens, lowest: int = 0) -> Tensor:
        """The tokens, or targets, as int64 on the device. Raises UsageError where one is out of
        range."""
        try:
            found = torch.as_tensor(tokens)
        except (TypeError, ValueError) as error:  # text, or rows of several lengths
            raise UsageError(
                f"tokens: {error}", "expected integers, in rows of one length"
            ) from None
        if found.numel() == 0:
            return found.long().to(self.device)
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise UsageError(f"tokens of type {found.dtype}, allowed: integers")
        if not found.is_cuda:
            low, high = int(found.min()), int(found.max())
            if low < lowest or high >= self.vocabulary_size:
                worst = low if low < lowest else high
                raise UsageError(f"token {worst}, allowed: {lowest} to {self.vocabulary_size - 1}")
        return found.long().to(self.device)

    def _batch(self, tokens: Tokens) -> Tensor:
        """Tokens (B, T), checked."""
        found = self._checked(tokens)
        if found.ndim != 2:
            raise UsageError(f"tokens of shape {tuple(found.shape)}, expected (sequences, tokens)")
        return found

    def _memory(self, memory: Tensor, batch: int) -> Tensor:
        """The memory of `batch` sequences. Raises UsageError where it has another shape."""
        expected = (batch, self.slots, self.slot_width)
        if memory.shape != expected:
            raise UsageError(
                f"memory of shape {tuple(memory.shape)}, expected {expected}: one for each sequence"
            )
        return memory

    def _logits(self, read: Callable[[Tensor], Tensor], memory: Tensor) -> Tensor:
        """(..., K, D) -> (..., V), where `read` maps (N, K, D) -> (N, V)."""
        logits = read(memory.reshape(-1, self.slots, self.slot_width))
        return logits.float().unflatten(0, memory.shape[:-2])


class TrainedRNN(Trained):
    """An RNN for inference. It starts from `empty_memory` (K, D) and needs no teacher.

    `network` is its torch module, whose parameters require no gradient.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self.network: RecurrentNetwork = loading.load_rnn(artifact)
        super().__init__(artifact, self.network, device)

    @property
    def empty_memory(self) -> Tensor:
        """The memory before the first token, (K, D)."""
        return self.network.empty_memory.detach()

    def start(self, batch: int = 1) -> Tensor:
        """The empty memory of `batch` sequences, (B, K, D)."""
        return self.network.start(batch).detach().clone()

    @torch.no_grad()
    def logits(self, memory: Tensor) -> Tensor:
        """Logits of the target at memories: (..., K, D) -> (..., V)."""
        return self._logits(self.network.readout, memory)

    @torch.no_grad()
    def step(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Reads one token per sequence: memory (B, K, D), tokens (B,) -> the next memory (B, K, D)
        and the logits (B, V) of what follows. The memory that was given stays as it was."""
        read = self._checked(tokens)
        if read.ndim != 1:
            raise UsageError(
                f"tokens of shape {tuple(read.shape)}, expected one per sequence, (B,)"
            )
        memory = self.network.step(self._memory(memory, len(read)), read)
        return memory, self.network.readout(memory).float()

    @torch.no_grad()
    def rollout(self, tokens: Tokens, memory: Tensor | None = None) -> Tensor:
        """The memory before and after each token: (B, T) -> (B, T + 1, K, D).

        Starts from `memory` (B, K, D), or from the empty memory.
        """
        batch = self._batch(tokens)
        start = None if memory is None else self._memory(memory, len(batch))
        return self.network.rollout(batch, start)

    @torch.no_grad()
    def score(self, sequences: str | Tokens, targets: Tokens | None = None) -> Tensor:
        """Negative log-likelihood of each target in nats, from the empty memory; float64.

        A text, or tokens (T,) -> (T,), or tokens (B, T) -> (B, T): the nll of each token, given
        those before it. With `targets` (B, T + 1), of which `targets[:, i]` follows `i` tokens:
        (B, T + 1), NaN where there is no target (-1). Memory is bounded, however long the text.
        """
        tokens = self.encode_text(sequences) if isinstance(sequences, str) else sequences
        tokens = self._checked(tokens)
        batch = tokens if tokens.ndim == 2 else self._batch(tokens[None])
        if targets is None:
            wanted = torch.nn.functional.pad(batch, (0, 1), value=IGNORE)
        else:
            wanted = self._checked(targets, lowest=IGNORE)
            if wanted.shape != (len(batch), batch.shape[1] + 1):
                raise UsageError(
                    f"targets of shape {tuple(wanted.shape)}, expected "
                    f"{(len(batch), batch.shape[1] + 1)}: one more than tokens in each row"
                )
        pieces = free_running.rollout_in_pieces(
            self.network.transition, self.start(len(batch)), batch
        )
        scores = [
            free_running.score_targets(
                self.network.readout, memories, wanted[:, first : first + memories.shape[1]]
            )[0]
            for first, memories in pieces
        ]
        nll = torch.cat(scores, dim=1)
        if targets is None:
            nll = nll[:, :-1]
        return nll if tokens.ndim == 2 else nll[0]

    def generate(
        self, prompt: str = "", max_tokens: int = 500, **sampling: Unpack[SamplingOptions]
    ) -> str:
        """The continuation of a prompt, without the prompt, until the document ends or
        `max_tokens` were drawn. Raises UsageError where the RNN does not write text."""
        return "".join(self.stream(prompt, max_tokens, **sampling))

    def stream(
        self, prompt: str = "", max_tokens: int = 500, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """As `generate`, in pieces, each as soon as it is drawn."""
        tokenizer = self._text_tokenizer()
        _check_count("max_tokens", max_tokens)
        tokens = self.network.generate(self.encode_text(prompt).tolist(), **_sampling(sampling))
        document = takewhile(lambda token: token != tokenizer.end_of_document, tokens)
        return tokenizer.pieces(islice(document, max_tokens))

    def complete(self, prompts: Tokens, steps: int, **sampling: Unpack[SamplingOptions]) -> Tensor:
        """Draws `steps` tokens after each prompt, in parallel: (B, P) -> (B, steps); P may be 0."""
        _check_count("steps", steps)
        return self.network.complete(self._batch(prompts), steps, **_sampling(sampling))

    def answer(
        self, tokens: Tokens, has_target: Tensor, **sampling: Unpack[SamplingOptions]
    ) -> Tensor:
        """Draws a target at each position where `has_target` (B, T + 1) while reading `tokens`
        (B, T). Returns the targets row by row, (number of targets,)."""
        options = _sampling(sampling)
        return self.network.answer(self._batch(tokens), has_target.to(self.device), **options)


class TrainedTeacher(Trained):
    """A teacher for inference: its encoder makes memories, its decoder reads them.

    `network` is its torch module, whose parameters require no gradient.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self.network: Teacher = loading.load_teacher(artifact)
        super().__init__(artifact, self.network, device)

    @property
    def empty_memory(self) -> Tensor:
        """The memory before the first token, (K, D)."""
        return self.network.encoder.empty_memory().detach()

    @torch.no_grad()
    def encode(self, tokens: Tokens) -> Tensor:
        """The memory before and after each token: (B, T) -> (B, T + 1, K, D)."""
        return self.network.encoder(self._batch(tokens))

    @torch.no_grad()
    def logits(self, memory: Tensor) -> Tensor:
        """Logits of the target at memories: (..., K, D) -> (..., V)."""
        return self._logits(self.network.read, memory)

    @torch.no_grad()
    def decode(self, memory: Tensor, future: Tokens) -> Tensor:
        """Logits of the target at a memory and after each token of its future, predicted from the
        memory alone: (B, K, D), (B, F) -> (B, F + 1, V)."""
        batch = self._batch(future)
        return self.network.decode(self._memory(memory, len(batch)), batch).float()


def load_rnn(path: PathOrURI, device: Device | str | torch.device = "auto") -> TrainedRNN:
    """Loads the RNN of an `rnn` artifact, a path or URI, for inference.

    `device`: `auto` (CUDA if available, else the CPU), or a name that torch knows. Raises
    UsageError where there is no such artifact or device, ArtifactError where it is damaged.
    """
    return TrainedRNN(Artifact.open(path, "rnn"), find_device(device))


def load_teacher(path: PathOrURI, device: Device | str | torch.device = "auto") -> TrainedTeacher:
    """Loads the teacher of an `encoder` artifact, as `load_rnn` does an RNN."""
    return TrainedTeacher(Artifact.open(path, "encoder"), find_device(device))


def find_device(device: Device | str | torch.device) -> torch.device:
    """The torch device of a setting `device`, or of a name that torch knows. Raises UsageError."""
    for name in get_args(Device):
        if device == name:
            return choose_device(name)
    try:
        found = torch.device(device)
    except RuntimeError:
        allowed = ", ".join(get_args(Device))
        raise UsageError(f"`device` {device}: allowed: {allowed}, or cuda:NUMBER") from None
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise UsageError(f"`device` {device}: torch finds {count} CUDA devices")
    return found


def _sampling(options: SamplingOptions) -> Sampling:
    """The options for `sample_each`: with a source of numbers in place of the seed. Raises
    UsageError for an option that does not exist or has a value that is not allowed."""
    for name in options:
        if name not in SamplingOptions.__annotations__:
            allowed = ", ".join(SamplingOptions.__annotations__)
            raise UsageError(f"`{name}`: unknown option, allowed: {allowed}")
    seed = options.get("seed")
    if not isinstance(seed, int | np.integer | None):
        raise UsageError(f"`seed` {seed}: allowed: an integer, or None")
    config = resolve(GenerateConfig, flags={n: v for n, v in options.items() if n != "seed"})
    stream = UniformStream(secrets.randbits(64) if seed is None else int(seed))
    found: Sampling = {"top_k": config.top_k, "top_p": config.top_p}
    found["uniforms"] = lambda count: torch.from_numpy(stream.draw(count))
    if config.temperature is not None:
        found["temperature"] = config.temperature
    return found


def _check_count(name: str, count: int) -> None:
    if count < 0:
        raise UsageError(f"`{name}` {count}: allowed: 0 or more")
