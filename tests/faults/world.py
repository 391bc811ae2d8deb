"""Small artifacts of every kind, the commands that use them, and a fresh copy for each case."""

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults import processes
from faults.processes import Ended
from faults.writes import at_write

Command = tuple[str, ...]
Result = dict[str, str]

TRAINING = """
[training]
batch_size = 4
max_steps = 4
warmup_steps = 1
log_every = 1
validate_every = 2
validation_windows = 4
checkpoint_every = 2
"""
ENCODER = (
    """
data.window = 8
encoder = {width = 8, layers = 1, heads = 1, slots = 1, slot_width = 8}
decoder = {width = 8, layers = 1, heads = 1}
cell.width = 8
[objective]
future_length = 2
dynamics_positions = 4
uniformity_positions = 2
uniformity_group = 2
dynamics_start = 1
dynamics_ramp = 1
"""
    + TRAINING
)
RNN = (
    """
cell.width = 8
data.positions = 4
"""
    + TRAINING
)
BPTT = RNN.replace("data.positions = 4", "data.window = 8\nmemory = {slots = 1, slot_width = 8}")
_WORDS = ("ka", "lo", "mi", "nu", "re", "sto", "ve", "zu")
_WORDS += ("qua", "bri", "fen", "gol", "hax", "jip", "wyd")
DMT_SETTINGS = RNN.replace("data.positions = 4\n", "rollout.depth = 4\n")
FILES = {
    "encoder.toml": ENCODER,
    "rnn.toml": RNN,
    "dmt.toml": DMT_SETTINGS,
    "bptt.toml": BPTT,
}


def _words(text: str) -> Command:
    return tuple(text.split())


SPLIT = "--validation-fraction 0.2 --test-fraction 0.2 --quiet"
TOKENIZE = _words(f"tokenize texts {SPLIT}")
SYNTHESIZE = _words(
    "synthesize parity --lengths 4,8 --sequences 24 --validation-sequences 8 --test-sequences 8 -q"
)
TRAIN = _words("train-encoder tokens --config encoder.toml --quiet")
EXTRACT = _words(
    "extract-labels encoder --tokens tokens --max-windows 32 --quiet --set shard_bytes=4000"
)
SMT = _words("train-rnn labels --config rnn.toml --quiet")
DMT = _words("train-rnn labels --method dmt --config dmt.toml --quiet")
TUNE = _words("train-rnn labels --method dmt --init rnn --config dmt.toml --quiet")
_BPTT = _words("train-rnn tokens --method bptt --config bptt.toml --quiet")
EVALUATE = _words("eval rnn --tokens tokens --encoder encoder --windows 8 --quiet")
GENERATE = _words("generate rnn --prompt ka --max-tokens 20 --seed 3")
PART = (*EXTRACT, "--part", "1/2", "--out", "{}")
FINALIZE = (*EXTRACT, "--finalize", "--out", "{}")
BUILDERS: dict[str, Command] = {
    "tokens": TOKENIZE,
    "task": SYNTHESIZE,
    "encoder": TRAIN,
    "labels": EXTRACT,
    "rnn": SMT,
    "evaluation": EVALUATE,
    "chars": _words(f"tokenize texts --tokenizer char {SPLIT}"),
    "pieces": _words(f"tokenize texts --tokenizer sentencepiece --vocab-size 300 {SPLIT}"),
    "pictures": _words(f"tokenize train-images-idx3-ubyte --tokenizer pixel --levels 4 {SPLIT}"),
}
"""Commands that make each artifact, without `--out`."""
STAGES: dict[str, Command] = {**BUILDERS, "dmt": DMT, "bptt": _BPTT}
"""Every way to write an artifact."""

_TEACH = _words("train-encoder {} --config encoder.toml --quiet --out out")
_INSPECT = [("inspect", "{}"), ("inspect", "{}", "--verify", "--json")]
_LOOK = [("inspect", "{}"), ("status", ".")]


def _with_out(command: Command) -> Command:
    return (*command, "--out", "out")


USES: dict[str, list[Command]] = {
    "tokens": [*map(_with_out, (TRAIN, _BPTT, EXTRACT, EVALUATE)), *_INSPECT],
    "task": [_TEACH, *_INSPECT],
    "chars": [_TEACH, *_INSPECT],
    "pieces": [_TEACH, *_INSPECT],
    "pictures": [_TEACH, *_INSPECT],
    "encoder": [
        *map(_with_out, (EXTRACT, EVALUATE)),
        *_INSPECT,
    ],
    "labels": [*map(_with_out, (SMT, DMT)), *_INSPECT],
    "rnn": [GENERATE, *map(_with_out, (EVALUATE, TUNE)), *_INSPECT],
    "evaluation": _INSPECT,
    "cut-encoder": [(*TRAIN, "--resume", "--out", "{}"), *_LOOK],
    "cut-rnn": [(*SMT, "--resume", "--out", "{}"), *_LOOK],
    "cut-dmt": [(*DMT, "--resume", "--out", "{}"), *_LOOK],
    "cut-labels": [(*EXTRACT, "--resume", "--out", "{}"), *_LOOK],
    "parts": [FINALIZE, PART],
}
"""Commands that read each artifact, or go on with an unfinished one; {} is its name."""
CUT = {
    "cut-encoder": ("encoder", "checkpoint.json"),
    "cut-rnn": ("rnn", "checkpoint.json"),
    "cut-dmt": ("dmt", "checkpoint.json"),
    "cut-labels": ("labels", "train-00001.arrow"),
}
"""Unfinished runs: killed when a file of the name has been written."""
KINDS = tuple(USES)


def content_of(directory: Path) -> Result:
    """Checksums of the files of an artifact, by the names in its manifest. Times are left out."""
    found: Result = {}
    runs = [run for run in directory.glob("run-*") if not run.is_symlink()]
    for path in sorted(path for run in runs for path in run.glob("*")):
        if path.is_symlink() or not path.is_file():
            found[path.name] = "no ordinary file"
            continue
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            content = repr([_untimed(line) for line in content.splitlines()]).encode()
        elif path.name == "checkpoint.json":
            content = repr(_untimed(content)).encode()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def _untimed(text: bytes) -> object:
    """A record without times, and without checksums of what has times."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return text
    timed = ("seconds", "tokens_per_second", "metrics", "checksum")
    return {key: value for key, value in record.items() if key not in timed}


def snapshot(directory: Path) -> dict[str, str]:
    """Checksums of all files below a directory, and its links and folders."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder or special file"
    return found


class World:
    """Artifacts made once, and a directory in which each case finds a copy of those it names."""

    def __init__(self, root: Path) -> None:
        self.made = root / "made"
        self._case = root / "case"
        self.inside = self._case / "inside"
        self.outside = self._case / "outside"
        self._untouched: dict[str, str] = {}
        self.expected: dict[tuple[str, Command], tuple[Ended, Result]] = {}
        """How a use of each undamaged artifact ends, and what it makes."""
        os.environ["SMTKIT_CACHE"] = str(root / "cache")
        self._make()

    def fresh(self, *names: str) -> None:
        """Empties the directory of the case, and copies artifacts and inputs into it."""
        shutil.rmtree(self._case, ignore_errors=True)
        self.inside.mkdir(parents=True)
        self.outside.mkdir()
        for number in range(3):
            (self.outside / f"file-{number}").write_text(f"outside {number}\n" * 20)
        for name in (*names, *FILES):
            source = self.made / name
            if source.is_dir():
                shutil.copytree(source, self.inside / name, symlinks=True)
            else:
                shutil.copyfile(source, self.inside / name)

    def guard(self) -> None:
        """Remembers what is outside; `is_untouched` compares it."""
        self._untouched = snapshot(self.outside)

    def is_untouched(self) -> bool:
        beside = {path.name for path in self._case.iterdir()} == {"inside", "outside"}
        return beside and snapshot(self.outside) == self._untouched

    def run(self, command: Sequence[object], **options: Any) -> Ended:
        """Runs a command in the directory of the case."""
        return processes.run(command, self.inside, **options)

    def run_use(self, kind: str, use: Command, patience: float) -> Ended:
        """Runs a use of an artifact; a part of the work is followed by the end of it."""
        ended = self.run(self.named(kind, use), patience=patience)
        if use != PART or ended.code != 0:
            return ended
        return self.run(self.named(kind, FINALIZE), patience=patience)

    def result(self, ended: Ended, out: str = "out") -> Result:
        """Everything that a command has made."""
        found = content_of(self.inside / out) if (self.inside / out).is_dir() else {}
        return {**found, "stdout": hashlib.sha256(ended.stdout).hexdigest()}

    def prepare(self, kind: str, use: Command) -> None:
        """Copies what a use of an artifact needs; measures first how it ends undamaged."""
        if (kind, use) not in self.expected:
            self.fresh(*needed(kind, use))
            ended = self.run_use(kind, use, patience=60)
            usual = (0, 3) if use in _LOOK else (0,)  # 3: it is unfinished
            assert ended.code in usual, f"{use}: {ended.stderr}"
            self.expected[kind, use] = (ended, self.result(ended, out_of(kind, use)))
        self.fresh(*needed(kind, use))

    def files(self, name: str) -> list[Path]:
        """The files of an artifact in the directory of the case."""
        return sorted(path for path in (self.inside / name).rglob("*") if path.is_file())

    def named(self, kind: str, use: Command) -> Command:
        return tuple(word.format(kind) for word in use)

    def _make(self) -> None:
        self.made.mkdir(parents=True)
        (self.made / "texts").mkdir()
        draw = random.Random(0)
        for number in range(8):
            words = (f"{draw.choice(_WORDS)}{draw.choice(_WORDS)}" for _ in range(24))
            text = " ".join(words)
            (self.made / "texts" / f"{number}.txt").write_text(text)
        header = struct.pack(">IIII", 0x803, 16, 2, 4)
        (self.made / "train-images-idx3-ubyte").write_bytes(header + draw.randbytes(16 * 8))
        for name, content in FILES.items():
            (self.made / name).write_text(content)
        for name, command in BUILDERS.items():
            self._must((*command, "--out", name))
        for name, (stage, last) in CUT.items():
            command = (*STAGES[stage], "--out", name)
            ended = processes.run(command, self.made, before=_die_after(last))
            assert ended.code == -9, ended.stderr
        self._must((*EXTRACT, "--part", "1/2", "--out", "parts"))
        self._must((*EXTRACT, "--part", "2/2", "--out", "parts"))

    def _must(self, command: Command) -> None:
        ended = processes.run(command, self.made, patience=60)
        assert ended.code == 0, f"{command}: {ended.stderr}"


def out_of(kind: str, use: Command) -> str:
    """Where a use writes its artifact."""
    return use[use.index("--out") + 1].format(kind) if "--out" in use else "out"


def needed(kind: str, use: Sequence[str]) -> set[str]:
    """The artifacts and inputs that a command names."""
    inputs = {*BUILDERS, *CUT, "parts", "texts", "train-images-idx3-ubyte"}
    return {kind, *use} & inputs


def _die_after(name: str) -> Callable[[], None]:
    """Kills the process at the first write after the file `name` was put in its place."""
    seen = []

    def act(event: str, target: str) -> None:
        if seen:
            os.kill(os.getpid(), 9)
        if event == "os.rename" and target.endswith(name):
            seen.append(target)

    return lambda: at_write(act)
