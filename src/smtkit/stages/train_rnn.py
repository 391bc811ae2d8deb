"""`smtkit train-rnn`: a `labels` artifact (smt, dmt) or a `tokens` artifact (bptt) to an `rnn`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smtkit.config import RolloutConfig, TrainRnnConfig
from smtkit.corpus.tokenizers import check_tokenizers, load_tokenizer
from smtkit.corpus.windows import open_windows
from smtkit.errors import ArtifactError, UsageError
from smtkit.evaluation.free_running import FreeRunning
from smtkit.labels.reader import LabelShards
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceBatch, SequenceSampler
from smtkit.methods.dmt import DaggerMemoryTraining, RolloutSampler
from smtkit.methods.smt import SupervisedMemoryTraining, TransitionSampler
from smtkit.methods.transitions import LabelSequenceSampler
from smtkit.networks.loading import (
    TeacherWeights,
    decoder_of,
    describing,
    network_for_labels,
    network_of,
    network_of_its_own,
    teacher_weights,
    with_empty_memory,
)
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS, Manifest
from smtkit.storage.tensors import MODEL, save_tensors
from smtkit.training.distributed import SharedRun, join
from smtkit.training.loop import Trainer
from smtkit.training.prefetch import Prefetch
from smtkit.training.progress import Progress, Silent
from smtkit.training.protocols import Method, Sampler, Validation

_SPLITS = ("train", "validation")


def run(
    config: TrainRnnConfig,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    init: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Trains an RNN on the artifact `source`: labels, or, with `bptt`, tokens; from the `rnn`
    artifact `init`, or from random weights.

    Under torchrun, the ranks train it together. Raises ArtifactError (a wrong kind, a damaged row,
    an RNN of another teacher or tokenizer), UsageError, NonFiniteLossError, InterruptedRunError.
    """
    ranks = join(config.device)
    device = ranks.device
    read = Artifact.open(source, "tokens" if config.method == "bptt" else "labels")
    begun = _checked_init(config, read, init)
    parents = [artifact for artifact in (read, begun) if artifact]
    with SharedRun(
        ranks,
        out,
        "rnn",
        config,
        parents,
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        torch.manual_seed(config.seed)
        if config.method == "bptt":
            course = _from_tokens(config, read, begun)
        else:
            course = _from_labels(config, read, begun, device)
        with Prefetch(course.train, _readers(config, device)) as train:
            trainer = Trainer(
                course.method,
                train,
                course.validations,
                config.training,
                artifact.directory,
                device,
                progress or Silent(),
                artifact.keep,
                ranks,
            )
            validated = trainer.run()
        if ranks.is_first:
            load_tokenizer(read).save(artifact)
            header = {**course.network.architecture, "window": course.window}
            save_tensors(artifact.directory / MODEL, course.network.state_dict(), header)
            for name in (MODEL, METRICS):
                artifact.add(name)
        statistics = {**trainer.statistics(), "validation": validated}
        return artifact.commit(statistics, describing(config, course.network))


def _readers(config: TrainRnnConfig, device: torch.device) -> int:
    if config.data.readers is not None:
        return config.data.readers
    return 2 if device.type == "cuda" else 0


@dataclass(frozen=True)
class _Course:
    """A method, and what it learns from."""

    method: Method[Any]
    network: RecurrentNetwork
    train: Sampler[Any]
    validations: Sequence[Validation[Any]]
    window: int


def _from_tokens(config: TrainRnnConfig, tokens: Artifact, begun: Artifact | None) -> _Course:
    windows = [open_windows(tokens, split, config.data.window) for split in _SPLITS]
    vocabulary_size = load_tokenizer(tokens).vocabulary_size
    network = network_of(config, begun) if begun else network_of_its_own(config, vocabulary_size)
    size, seed = config.training.batch_size, config.seed
    train = SequenceSampler(windows[0], batch_size=size, seed=seed)
    validation = SequenceSampler(windows[1], batch_size=size, seed=seed, by_length=False)
    method = BackpropagationThroughTime(network, config.bptt_window)
    batches = config.training.validation_batches(windows[1].per_epoch)
    validations = _validations(method, validation, network, validation, batches)
    return _Course(method, network, train, validations, windows[0].window)


def _from_labels(
    config: TrainRnnConfig, labels: Artifact, begun: Artifact | None, device: torch.device
) -> _Course:
    pinned = device.type == "cuda"
    shards = [LabelShards(labels.files(f"{split}-"), pinned=pinned) for split in _SPLITS]
    shape = shards[0].shape
    teacher = teacher_weights(labels)
    network = _network(config, teacher, begun)
    decoder = decoder_of(teacher).to(device) if config.objective.kl_weight else None
    method: Method[Any]
    if config.method == "smt":
        method = SupervisedMemoryTraining(network, config.objective, decoder)
    else:
        method = DaggerMemoryTraining(network, config.objective, config.rollout, decoder)
    train, validation = _label_sources(config, *shards)
    batches = config.training.validation_batches(len(shards[1]))
    sequences = LabelSequenceSampler(
        shards[1], batch_size=config.training.batch_size, seed=config.seed, by_length=False
    )
    validations = _validations(method, validation, network, sequences, batches)
    return _Course(method, network, train, validations, shape.window)


def _validations(
    method: Method[Any],
    source: Sampler[Any],
    network: RecurrentNetwork,
    sequences: Sampler[SequenceBatch],
    batches: int,
) -> list[Validation[Any]]:
    """By the method's own objective, and of the RNN on its own."""
    return [
        Validation(method, source, batches),
        Validation(FreeRunning.of_network(network), sequences, batches),
    ]


def _network(
    config: TrainRnnConfig, teacher: TeacherWeights, begun: Artifact | None
) -> RecurrentNetwork:
    if begun is None:
        return network_for_labels(config, teacher)
    # What bptt has made of the empty memory is not where the labels begin.
    return with_empty_memory(network_of(config, begun), teacher.tensors["empty_memory"])


def _label_sources(
    config: TrainRnnConfig, train: LabelShards, validation: LabelShards
) -> tuple[Sampler[Any], Sampler[Any]]:
    objective, size, seed = config.objective, config.training.batch_size, config.seed

    def source(labels: LabelShards, rollout: RolloutConfig, *, by_length: bool) -> Sampler[Any]:
        if config.method == "smt":
            return TransitionSampler(
                labels,
                objective,
                batch_size=size,
                seed=seed,
                positions=config.data.positions,
                by_length=by_length,
            )
        return RolloutSampler(
            labels, objective, rollout, batch_size=size, seed=seed, by_length=by_length
        )

    # At the depth that the ramp leads to, so that records of validation can be compared.
    settled = config.rollout.model_copy(update={"depth_ramp": 0})
    return (
        source(train, config.rollout, by_length=True),
        source(validation, settled, by_length=False),
    )


def _checked_init(
    config: TrainRnnConfig, read: Artifact, init: str | os.PathLike[str] | None
) -> Artifact | None:
    """The RNN to start from. Raises where it has another tokenizer, or, for training on labels,
    another teacher: its memories would mean something else."""
    if init is None:
        return None
    if config.init_from_labels:
        raise UsageError("--init and --init-from-labels: found both, allowed: one of them")
    begun = Artifact.open(init, "rnn")
    check_tokenizers(begun, read)
    if config.method != "bptt":
        teachers = [artifact.manifest.ancestor("encoder") for artifact in (read, begun)]
        digests = [teacher.digest[:8] if teacher else "none" for teacher in teachers]
        if digests[0] != digests[1]:
            raise ArtifactError(
                f"{begun.directory}: it learned from encoder {digests[1]}, the labels of "
                f"{read.directory} are of encoder {digests[0]}",
                "start from an RNN that was trained on labels of the same encoder",
            )
    return begun
