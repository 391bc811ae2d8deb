"""Tiny configs, and artifacts that are built once a session through the stages' Python API."""

import json
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import torch

from smtkit.cli import app
from smtkit.config import (
    CellConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    EvaluateConfig,
    ExtractLabelsConfig,
    MemoryConfig,
    ReadoutConfig,
    SynthesizeConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
)
from smtkit.corpus.seeded import UniformStream
from smtkit.corpus.shards import TokenShards, decode_tokens, stream_schema
from smtkit.corpus.windows import Windows
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.networks.architecture import Architecture
from smtkit.stages import extract_labels, synthesize, tokenize, train_encoder, train_rnn
from smtkit.storage.manifest import METRICS
from subprocesses import python

# A deadline would be an assertion on the clock.
hypothesis.settings.register_profile("smtkit", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("smtkit")

WINDOW = 16
pytest_plugins = ["evaluations", "object_store", "small_text"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> None:
    """Background jobs ignore SIGINT or SIGHUP, and so would all processes that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def encoder_config(**changes: Any) -> TrainEncoderConfig:
    """A teacher that trains in a moment; `changes` replace values, or keys of a section."""
    tiny = {
        "data": {"window": WINDOW},
        "encoder": {"slots": 2, "slot_width": 8, "width": 16, "layers": 2, "heads": 2},
        "decoder": {"width": 16, "layers": 1, "heads": 2},
        "cell": {"width": 16},
        "objective": {
            "future_length": 4,
            "dynamics_positions": 8,
            "uniformity_positions": 4,
            "uniformity_group": 2,
            "dynamics_start": 2,
            "dynamics_ramp": 4,
        },
        "training": {
            "batch_size": 8,
            "max_steps": 12,
            "warmup_steps": 2,
            "log_every": 2,
            "validate_every": 6,
            "validation_windows": 16,
            "checkpoint_every": 4,
        },
    }
    return TrainEncoderConfig(**_merged(tiny, changes))


def rnn_config(**changes: Any) -> TrainRnnConfig:
    """An RNN that trains in a moment; `changes` replace values, or keys of a section."""
    tiny = {
        "cell": {"width": 16},
        "data": {"positions": 8},
        "training": {
            "batch_size": 8,
            "max_steps": 12,
            "warmup_steps": 2,
            "log_every": 2,
            "validate_every": 6,
            "validation_windows": 16,
            "checkpoint_every": 4,
        },
    }
    return TrainRnnConfig(**_merged(tiny, changes))


def architecture(
    vocabulary_size: int,
    slots: int,
    slot_width: int,
    cell: CellConfig,
    readout: ReadoutConfig,
    decoder: DecoderConfig,
    *,
    encoder: EncoderConfig | None = None,
    window: int = WINDOW,
) -> Architecture:
    """The architecture of an RNN or, with `encoder`, of a teacher."""
    return Architecture(
        vocabulary_size=vocabulary_size,
        window=window,
        memory=MemoryConfig(slots=slots, slot_width=slot_width),
        encoder=encoder,
        decoder=decoder,
        cell=cell,
        readout=readout,
    )


def evaluate_config(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"windows": 1000, "batch_size": 4, **changes})


def _merged(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def write_text(path: Path, words: int, seed: int = 0) -> Path:
    """A text of `words` random words, some of them with characters of two bytes."""
    choose = random.Random(seed).choice
    lexicon = ["memory", "slot", "drift", "état", "naïve", "window", "cell", "of", "the", "über"]
    path.write_text(" ".join(choose(lexicon) for _ in range(words)), encoding="utf-8")
    return path


def tokenized(path: Path, out: Path, tokenizer: str = "byte") -> Path:
    """A `tokens` artifact of a file or a directory, of which a fifth is held out."""
    tokenize.run(
        TokenizeConfig(
            inputs=[str(path)], tokenizer=tokenizer, validation_fraction=0.1, test_fraction=0.1
        ),
        out,
    )
    return out


def arrow_columns(paths: Sequence[Path]) -> dict[str, list[Any]]:
    """The columns of Arrow files, as Python lists, read with nothing of smtkit."""
    columns: dict[str, list[Any]] = {}
    for path in paths:
        for name, column in pa.ipc.open_file(path).read_all().to_pydict().items():
            columns.setdefault(name, []).extend(column)
    return columns


def shards(artifact: Path, split: str) -> list[Path]:
    return sorted(artifact.glob(f"run-*/{split}-*.arrow"))


def split_tokens(tokens: Path, split: str) -> list[int]:
    """All tokens of a split of a `tokens` artifact."""
    return [token for row in arrow_columns(shards(tokens, split))["tokens"] for token in row]


def write_stream(
    directory: Path, content: Sequence[Sequence[Sequence[int]]], vocabulary_size: int = 257
) -> TokenShards:
    """A token stream of shards of batches of tokens."""
    schema = stream_schema(vocabulary_size)
    paths = []
    for number, batches in enumerate(content):
        paths.append(directory / f"shard-{number:05d}.arrow")
        with pa.OSFile(str(paths[-1]), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for tokens in batches:
                columns = {"document": [0], "offset": [0], "tokens": [list(tokens)]}
                writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))
    return TokenShards(
        [
            decode_tokens(path.read_bytes(), path, vocabulary_size, None, len(batches))
            for path, batches in zip(paths, content, strict=True)
        ]
    )


def numbered_labels(path: Path, lengths: list[int], window: int = 6) -> LabelShards:
    """Rows whose every number says where it comes from: row r, position i is 100 r + i."""
    rows = len(lengths)
    places = 100 * np.arange(rows)[:, None] + np.arange(window + 1)
    memory = np.repeat(places[:, :, None, None], 2 * 3, axis=-1).reshape(rows, window + 1, 2, 3)
    windows = Windows(
        tokens=places[:, :window], targets=places + 50, length=np.array(lengths, dtype=np.int64)
    )
    shape = LabelShape(window, 2, 3, 10_000, "float32")
    write_labels(path, shape, windows, memory.astype(np.float32), np.arange(rows))
    return LabelShards([path])


def uniforms(seed: int) -> Callable[[int], torch.Tensor]:
    """A source of numbers for `sample_each`, as the stages make it."""
    stream = UniformStream(seed)
    return lambda count: torch.from_numpy(stream.draw(count))


def tensor_fields(batch: object) -> list[str]:
    """Names of the fields and properties of a batch that are tensors."""
    names = [name for name in dir(batch) if not name.startswith("_")]
    return [name for name in names if isinstance(getattr(batch, name), torch.Tensor)]


def label_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Every column of every row of label shards, by pyarrow alone; memory (T + 1, K, D)."""
    found = []
    for path in paths:
        batch = pa.ipc.open_file(path).get_batch(0)
        shape = LabelShape.of(batch.schema, path)
        for row in range(batch.num_rows):
            scalars = {name: batch[name][row] for name in batch.schema.names}
            columns = {
                name: scalar.values.to_numpy() if hasattr(scalar, "values") else scalar.as_py()
                for name, scalar in scalars.items()
            }
            memory = columns["memory"].reshape(-1, shape.slots, shape.slot_width)
            found.append({**columns, "memory": memory})
    return found


def write_keys_values(out: Path) -> Path:
    """A `tokens` artifact of rows of a task, of two lengths."""
    config = SynthesizeConfig(
        task="keys-values",
        lengths=[8, 12],
        sequences=60,
        validation_sequences=20,
        test_sequences=20,
        vocabulary=13,
    )
    synthesize.run(config, out)
    return out


@pytest.fixture(scope="session")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokens` artifact of rows of the parity task, of 4 and 9 tokens. Read only."""
    out = tmp_path_factory.mktemp("parity") / "tokens"
    settings = {"sequences": 64, "validation_sequences": 16, "test_sequences": 16}
    synthesize.run(SynthesizeConfig(task="parity", lengths=[4, 9], **settings), out)
    return out


def validation_records(artifact: Path) -> list[dict[str, Any]]:
    """The validations in the metrics of a training run."""
    (path,) = artifact.glob(f"run-*/{METRICS}")
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["split"] == "validation"]


def model_bytes(artifact: Path) -> bytes:
    (path,) = artifact.glob("run-*/model.safetensors")
    return path.read_bytes()


@dataclass(frozen=True)
class Pipeline:
    """The directories of one chain of artifacts."""

    tokens: Path
    encoder: Path
    labels: Path
    rnn: Path


def build_pipeline(
    directory: Path,
    tokens: Path,
    encoder: TrainEncoderConfig,
    labels: ExtractLabelsConfig,
    rnn: TrainRnnConfig,
) -> Pipeline:
    """Everything after `tokens`, in `directory`."""
    built = Pipeline(tokens, directory / "encoder", directory / "labels", directory / "rnn")
    train_encoder.run(encoder, built.tokens, built.encoder)
    extract_labels.run(labels, built.encoder, built.tokens, built.labels)
    train_rnn.run(rnn, built.labels, built.rnn)
    return built


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A chain of artifacts of many short texts, tokenized as bytes. Read only."""
    directory = tmp_path_factory.mktemp("pipeline")
    (directory / "texts").mkdir()
    for number in range(40):
        write_text(directory / "texts" / f"{number}.txt", words=40, seed=number)
    tokens = tokenized(directory / "texts", directory / "tokens")
    return build_pipeline(directory, tokens, encoder_config(), ExtractLabelsConfig(), rnn_config())


@pytest.fixture(scope="session")
def character_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A chain of artifacts of one text, tokenized as characters. Read only."""
    directory = tmp_path_factory.mktemp("characters")
    tokens = tokenized(write_text(directory / "text.txt", 800), directory / "tokens", "char")
    return build_pipeline(
        directory,
        tokens,
        encoder_config(training={"max_steps": 2}),
        ExtractLabelsConfig(),
        rnn_config(training={"max_steps": 2}),
    )


class Recorder:
    """A listener that remembers what it was warned of, and shown."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.shown: list[tuple[str, str]] = []

    def show(self, title: str, text: str) -> None:
        self.shown.append((title, text))

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class KilledError(Exception):
    """Stands for the end of the process."""


class Killer(Recorder):
    """Ends the process, so to say, at a step of training."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        if task == "training" and completed == self._step:
            raise KilledError


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str

    def line(self) -> str:
        """The message of an error: the one line on stderr; there is nothing on stdout."""
        assert self.stdout == ""
        assert self.stderr.startswith("smtkit: ")
        assert self.stderr.count("\n") == 1
        assert self.stderr.endswith("\n")
        return self.stderr.removeprefix("smtkit: ").rstrip("\n")


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["smtkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            app.main()
        captured = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        return Result(exited.value.code, captured.out, captured.err)

    return run


def on_ranks(count: int, *jobs: tuple[str, Config, Any]) -> str:
    """Runs stages on `count` ranks, one after the other; returns what they print.

    A job is (stage, config, paths, keywords of `run`). With the keyword `stop_at`, rank 1 receives
    SIGTERM at that step.
    """
    content = [
        (stage, type(config).__name__, config.model_dump(exclude_unset=True), arguments)
        for stage, config, *arguments in jobs
    ]
    ranks = Path(__file__).with_name("ranks.py")
    process = python(ranks, count, json.dumps(content, default=str))
    assert process.returncode == 0, process.stderr
    return process.stdout
