"""`smtkit train-rnn`: trains an RNN on `labels` (smt, dmt) or `tokens` (bptt); writes an `rnn`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch

from smtkit.config import TrainRnnConfig
from smtkit.corpus.stored_tokenizer import check_tokenizers, check_vocabulary, load_tokenizer
from smtkit.corpus.windows import WindowReader, check_fit, open_windows
from smtkit.errors import ArtifactError, UsageError
from smtkit.evaluation.free_running import FreeRunning
from smtkit.evaluation.samples import sampler
from smtkit.labels.reader import LabelShards
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceSampler
from smtkit.methods.dmt import DaggerMemoryTraining, RolloutSampler
from smtkit.methods.smt import SupervisedMemoryTraining, TransitionSampler
from smtkit.methods.transitions import overfitting_warning
from smtkit.networks.architecture import Architecture
from smtkit.networks.decoder import DecoderReadout
from smtkit.networks.loading import check_parts, load_label_teacher, load_rnn
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.listeners import Listener
from smtkit.training.loop import Trainer
from smtkit.training.metrics import Record
from smtkit.training.prefetch import Prefetch
from smtkit.training.progress import Progress
from smtkit.training.protocols import Method, Sampler, Validation

_SPLITS = ("train", "validation")
_PARTS = ("memory", "cell", "readout", "decoder")
"""Sections of the config that describe the network."""


def run(
    config: TrainRnnConfig,
    labels_or_tokens: PathOrURI,
    out: PathOrURI,
    *,
    init: PathOrURI | None = None,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
    **existing: Unpack[Existing],
) -> Manifest:
    """Trains an RNN on an artifact: labels, or tokens with method `bptt`.

    The weights start from the `rnn` artifact `init`, or from random numbers. Under torchrun, the
    ranks train one RNN together.

    Raises ArtifactError (wrong kind, damaged row, `init` of another teacher or tokenizer),
    UsageError, NonFiniteLossError, InterruptedRunError.
    """
    ranks = join(config.device)
    data = Artifact.open(labels_or_tokens, "tokens" if config.method == "bptt" else "labels")
    initial = _open_initial(config, data, init)
    parents = [artifact for artifact in (data, initial) if artifact]
    with SharedRun(ranks, out, "rnn", config, parents, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        tokenizer = load_tokenizer(data)
        torch.manual_seed(config.seed)
        prepare = _prepare_bptt if config.method == "bptt" else _prepare_labels
        training = prepare(config, data, initial, ranks.device)
        with Prefetch(training.train, _readers(config, ranks.device)) as train:
            trainer = Trainer(
                training.method,
                train,
                training.validations(config),
                config.training,
                artifact.directory,
                ranks=ranks,
                progress=progress,
                on_checkpoint=artifact.keep,
                listeners=listeners,
                review=training.review,
                sample=sampler(
                    config.training, FreeRunning.of_network(training.network), tokenizer
                ),
            )
            validated = trainer.run()
            weights = trainer.weights()
        if ranks.is_first:
            tokenizer.save(artifact)
            training.network.save(artifact.directory / MODEL, weights)
            for name in (MODEL, *trainer.files()):
                artifact.add(name)
        # Labels or `init` may have determined parts of the network: record the trained one.
        parts = {part: getattr(training.network.architecture, part) for part in _PARTS}
        statistics = {**trainer.statistics(), "validation": validated}
        return artifact.commit(statistics, config.model_copy(update=parts))


def _open_initial(
    config: TrainRnnConfig, data: Artifact, init: PathOrURI | None
) -> Artifact | None:
    """Opens the artifact of the RNN to start from.

    Raises ArtifactError if it has another tokenizer or, for training on labels, another teacher,
    whose memories mean something else.
    """
    if init is None:
        return None
    if config.init_from_labels:
        raise UsageError("`init` and `init_from_labels`: found both, allowed: one of them")
    initial = Artifact.open(init, "rnn")
    check_tokenizers(initial, data)
    if config.method != "bptt":
        teachers = [artifact.manifest.ancestor("encoder") for artifact in (data, initial)]
        digests = [teacher.digest[:8] if teacher else "none" for teacher in teachers]
        if digests[0] != digests[1]:
            raise ArtifactError(
                f"{initial.directory}: it learned from encoder {digests[1]}, the labels of "
                f"{data.directory} are of encoder {digests[0]}",
                "start from an RNN that was trained on labels of the same encoder",
            )
    return initial


def _readers(config: TrainRnnConfig, device: torch.device) -> int:
    if config.data.readers is not None:
        return config.data.readers
    return 2 if device.type == "cuda" else 0


@dataclass(frozen=True)
class _Training:
    """A method with its network, the samplers for training and validation, the validation split,
    and the review of its validations."""

    method: Method[Any]
    network: RecurrentNetwork
    train: Sampler[Any]
    validation: Sampler[Any]
    held_out: WindowReader
    review: Callable[[Sequence[Record]], str | None] = lambda _: None

    def validations(self, config: TrainRnnConfig) -> list[Validation[Any]]:
        """The method's own objective, and the RNN free-running."""
        batches = config.training.validation_batches(self.held_out.per_epoch)
        sequences = _sequences(config, self.held_out, by_length=False)
        return [
            Validation(self.method, self.validation, batches),
            Validation(FreeRunning.of_network(self.network), sequences, batches),
        ]


def _sequences(
    config: TrainRnnConfig, windows: WindowReader, *, by_length: bool = True
) -> SequenceSampler:
    size = config.training.batch_size
    return SequenceSampler(windows, batch_size=size, seed=config.seed, by_length=by_length)


def _prepare_bptt(
    config: TrainRnnConfig, tokens: Artifact, initial: Artifact | None, _: torch.device
) -> _Training:
    windows, held_out = (open_windows(tokens, split, config.data.window) for split in _SPLITS)
    if config.data.window is not None:
        check_fit(windows, f"data.window = {config.data.window}", "train")
    if initial is not None:
        network = _load_initial(config, initial, windows.window)
    else:
        vocabulary_size = load_tokenizer(tokens).vocabulary_size
        network = RecurrentNetwork(Architecture.of_rnn(config, vocabulary_size, windows.window))
    method = BackpropagationThroughTime(network, config.bptt_window)
    validation = _sequences(config, held_out, by_length=False)
    return _Training(method, network, _sequences(config, windows), validation, held_out)


def _prepare_labels(
    config: TrainRnnConfig, labels: Artifact, initial: Artifact | None, device: torch.device
) -> _Training:
    pinned = device.type == "cuda"
    rows, held_out = (LabelShards(labels.files(f"{split}-"), pinned=pinned) for split in _SPLITS)
    teacher = load_label_teacher(labels)
    found = (rows.shape.vocabulary_size, rows.shape.slots, rows.shape.slot_width)
    if found != teacher.architecture.shape or held_out.shape != rows.shape:
        raise ArtifactError(f"{labels.directory}: its rows and its teacher are of other sizes")
    check_vocabulary(labels, teacher.architecture.vocabulary_size)
    if initial is not None:
        network = _load_initial(config, initial, rows.shape.window)
    else:
        network = _new_network(config, teacher, rows.shape.window)
    network.fix_empty_memory(teacher.empty_memory)
    decoder = None
    if config.objective.kl_weight:
        if teacher.decoder is None:
            raise UsageError(
                "`objective.kl_weight`: the teacher of these labels has no decoder of its own",
                "leave it at 0, or train a teacher with `decoder.kind` = transformer",
            )
        decoder = teacher.decoder.to(device)
    method: Method[Any]
    sampler: Callable[..., Sampler[Any]]
    in_validation: dict[str, Any] = {"by_length": False}
    if config.method == "smt":
        method = SupervisedMemoryTraining(network, config.objective, decoder)
        sampler = partial(TransitionSampler, positions=config.data.positions)
    else:
        method = DaggerMemoryTraining(network, config.objective, config.rollout, decoder)
        sampler = partial(RolloutSampler, rollout=config.rollout)
        # At the final depth of the ramp, so that records of one run are comparable.
        in_validation["rollout"] = config.rollout.model_copy(update={"depth_ramp": 0})
    sampler = partial(
        sampler,
        objective=config.objective,
        batch_size=config.training.batch_size,
        seed=config.seed,
    )
    train, validation = sampler(rows), sampler(held_out, **in_validation)
    review = partial(
        overfitting_warning,
        weights=method.weights(0),
        windows=rows.per_epoch,
        batch_size=config.training.batch_size,
    )
    return _Training(method, network, train, validation, held_out, review)


def _load_initial(config: TrainRnnConfig, initial: Artifact, window: int) -> RecurrentNetwork:
    """The network of `initial`, to be trained on windows of `window` tokens."""
    network = load_rnn(initial)
    check_vocabulary(initial, network.architecture.vocabulary_size)
    check_parts(config, network.architecture, _PARTS, f"`init` {initial.directory} has a")
    network.architecture = network.architecture.model_copy(update={"window": window})
    return network.train().requires_grad_(True)


def _new_network(config: TrainRnnConfig, teacher: LabelTeacher, window: int) -> RecurrentNetwork:
    """A network for the labels of `teacher`, whose memory and decoder it shares.

    The weights are random; but a readout that is the decoder starts from the teacher's, and with
    `init_from_labels` transition and readout start from the co-trained ones.
    """
    cotrained, found = config.init_from_labels, teacher.architecture
    check_parts(config, found, ("memory", "decoder"), "the labels are of a")
    if cotrained:
        why = "`init_from_labels` starts from the co-trained"
        check_parts(config, found, ("cell", "readout"), why)
    else:
        if config.readout.kind == "decoder" and teacher.decoder is None:
            raise UsageError(
                "`readout.kind` = decoder: the teacher of these labels has no decoder of its own",
                "use `readout.kind` = mlp, or a teacher with `decoder.kind` = transformer",
            )
        found = found.model_copy(update={"cell": config.cell, "readout": config.readout})
    network = RecurrentNetwork(found.model_copy(update={"encoder": None, "window": window}))
    if cotrained:
        network.transition.load_state_dict(teacher.transition.state_dict())
    if isinstance(network.readout, DecoderReadout):
        assert teacher.decoder is not None
        network.readout.decoder.load_state_dict(teacher.decoder.state_dict())
    elif cotrained and teacher.readout is not None:
        network.readout.load_state_dict(teacher.readout.state_dict())
    return network
