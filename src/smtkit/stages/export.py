"""`smtkit export`: an RNN as a program that runs without smtkit, and how well they agree."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smtkit.config import ExportConfig
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers
from smtkit.corpus.windows import open_windows
from smtkit.errors import SmtkitError, UsageError
from smtkit.evaluation.predictors import evenly_spaced
from smtkit.inference import export
from smtkit.inference.parity import IntArray, Parity, StepFunction, bits, compare
from smtkit.inference.trained import TrainedRNN
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.storage.artifact import Artifact
from smtkit.storage.files import named_errors
from smtkit.storage.location import PathOrURI, local_path
from smtkit.storage.tensors import MODEL
from smtkit.training.progress import Progress, Silent

TOLERANCE = 1e-4
_SUFFIXES = {".onnx": "onnx", ".pt2": "torch-export", ".safetensors": "safetensors"}
_SEQUENCES = 2  # drawn from the RNN


@dataclass(frozen=True)
class Quantized:
    """Bits per target of the RNN and of the program with weights of 8 bits, on `targets` targets of
    `source`."""

    source: str
    targets: int
    bits: float
    bits_quantized: float


@dataclass(frozen=True)
class Exported:
    """The files that were written, the program first, with their sizes in bytes; `parity` is None
    for weights alone."""

    files: dict[str, int]
    format: str
    memory: tuple[int, int]
    vocabulary_size: int
    parity: Parity | None
    quantized: Quantized | None


def run(
    config: ExportConfig,
    rnn: PathOrURI,
    out: PathOrURI,
    *,
    tokens: PathOrURI | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes one step of the artifact `rnn` to the file `out`, and what it starts from beside it.

    The program runs `config.steps` tokens beside the RNN; files are written only if each step
    agrees to 1e-4. `tokens`: artifact on whose validation split the cost of `config.quantize` is
    measured; without, on tokens that the RNN draws.

    Raises UsageError, ArtifactError, and SmtkitError where program and RNN differ.
    """
    path = local_path(out, "out")
    kind = _format(config, path)
    _check(config, kind, path, tokens, overwrite)
    trained = TrainedRNN(Artifact.open(rnn, "rnn"), torch.device("cpu"))
    data = _targets(config, trained, tokens) if config.quantize else None
    drawn = trained.complete(
        np.empty((_SEQUENCES, 0), np.int64), config.steps, seed=config.seed
    ).numpy()
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            step = _write(trained, kind, draft)
            parity = compare(trained, step, drawn) if step else None
            _judge(path, parity, progress or Silent())
            quantized = None
            if step and data:
                quantized = _quantize(trained, step, draft, data)
            files = [*export.write_beside(trained, draft), draft]  # the program last
            if not overwrite:
                _check_free(path.parent, files)
            for file in files:
                file.replace(path.parent / file.name)
    sizes = {str(path.parent / f.name): (path.parent / f.name).stat().st_size for f in files[::-1]}
    memory = (trained.slots, trained.slot_width)
    return Exported(sizes, kind, memory, trained.vocabulary_size, parity, quantized)


def _format(config: ExportConfig, path: Path) -> str:
    """The format that is set, or that the suffix of the file names."""
    if config.format is not None:
        return config.format
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    allowed = ", ".join(_SUFFIXES)
    raise UsageError(f"`out` {path}: allowed: a name that ends in {allowed}", "or set `format`")


def _check(
    config: ExportConfig, kind: str, path: Path, tokens: PathOrURI | None, overwrite: bool
) -> None:
    if config.quantize and kind != "onnx":
        raise UsageError(f"`quantize` {config.quantize}: `format` is {kind}, allowed: onnx")
    if tokens is not None and not config.quantize:
        raise UsageError("`tokens`: needed only to measure what `quantize` costs", "leave it out")
    if path.suffix == ".json":
        raise UsageError(f"`out` {path}: the tokenizer is written to that name", "model.onnx")
    if path.is_dir():
        raise UsageError(f"`out` {path}: is a directory", "name a file, for example model.onnx")
    if path.exists() and not overwrite:
        raise UsageError(f"`out` {path}: exists", "`overwrite` replaces it")
    if kind == "onnx":
        export.check_installed()


def _check_free(folder: Path, files: list[Path]) -> None:
    """Raises UsageError where a file would replace another of other content: programs of one RNN in
    several formats share what is beside them."""
    for file in files:
        existing = folder / file.name
        if existing.exists() and existing.read_bytes() != file.read_bytes():
            raise UsageError(f"`out` {existing}: exists", "`overwrite` replaces it")


def _write(trained: TrainedRNN, kind: str, path: Path) -> StepFunction | None:
    """Writes the file, and returns the step that it computes; None for weights alone."""
    if kind == "onnx":
        export.write_onnx(trained, path)
        return export.onnx_step(path)
    if kind == "torch-export":
        export.write_torch_export(trained, path)
        return export.torch_export_step(path)
    path.write_bytes(trained.artifact.read(MODEL)[1])
    RecurrentNetwork.load(path)
    return None


def _judge(path: Path, parity: Parity | None, progress: Progress) -> None:
    """Raises SmtkitError where a step differs from the RNN's; warns where differences grow."""
    if parity is None:
        return
    if parity.one_step > TOLERANCE:
        raise SmtkitError(
            f"`out` {path}: a step of the program differs from the RNN by {parity.one_step:.2g}, "
            f"allowed: {TOLERANCE:g}",
            "nothing was written; other versions of torch, onnxscript and onnxruntime may agree",
        )
    if max(parity.memory, parity.logits) > TOLERANCE:
        progress.warn(
            f"each step agrees to {parity.one_step:.2g}, but over {parity.steps} steps program and "
            f"RNN part by {max(parity.memory, parity.logits):.2g}: this RNN amplifies differences "
            "of rounding"
        )


def _targets(
    config: ExportConfig, trained: TrainedRNN, tokens: PathOrURI | None
) -> tuple[str, IntArray, IntArray]:
    """Name, tokens (B, T) and targets (B, T + 1) on which the cost in bits is measured."""
    if tokens is None:
        shape = (_SEQUENCES, 0)
        drawn = trained.complete(np.empty(shape, np.int64), config.steps + 1, seed=config.seed)
        targets = drawn.numpy()
        return "tokens that the RNN draws", targets[:, :-1], targets
    corpus = Artifact.open(tokens, "tokens")
    check_tokenizers(trained.artifact, corpus)
    window = trained.window if is_stream(corpus) else None
    windows = open_windows(corpus, "validation", window)
    found = windows.read(evenly_spaced(windows, config.windows))
    return f"validation of {corpus.directory}", found.tokens, found.targets


def _quantize(
    trained: TrainedRNN, step: StepFunction, path: Path, data: tuple[str, IntArray, IntArray]
) -> Quantized:
    """Replaces the program in `path` by one with weights of 8 bits."""
    source, tokens, targets = data
    small = path.with_name(f"quantized-{path.name}")
    export.quantize(path, small)
    small.replace(path)
    costs = [bits(trained, each, tokens, targets) for each in (step, export.onnx_step(path))]
    return Quantized(source, int((targets >= 0).sum()), *costs)
