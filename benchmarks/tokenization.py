"""Speed of `smtkit tokenize`, compared with sentencepiece and Hugging Face tokenizers.

    python benchmarks/tokenization.py --mebibytes 1024 --others PYTHON

Every contender converts the same text to a file of token numbers, in a process of its own; they
take turns. The table gives medians, ranges, and ratios of medians within this run. `--others` is
the Python of an environment with `tokenizers`; without it that contender is left out. smtkit also
removes duplicates, splits, verifies and writes Arrow.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import partial
from pathlib import Path

from measure import machine, ratio, spread, table, take_turns

THREADS = os.cpu_count() or 1

SENTENCEPIECE = """
import sys, sentencepiece
processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[2])
with open(sys.argv[1], encoding="utf-8") as text, open(sys.argv[3], "wb") as out:
    while lines := text.readlines(2**22):
        for tokens in processor.encode_as_numpy(lines, num_threads=int(sys.argv[4])):
            out.write(tokens.astype("uint16").tobytes())
"""

TOKENIZERS = """
import sys, array, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
with open(sys.argv[1], encoding="utf-8") as text, open(sys.argv[3], "wb") as out:
    while lines := text.readlines(2**22):
        for encoding in tokenizer.encode_batch_fast(lines):
            array.array("H", encoding.ids).tofile(out)
"""

TRAIN_TOKENIZERS = """
import sys, tokenizers
tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=int(sys.argv[3]), show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
tokenizer.train([sys.argv[1]], trainer)
tokenizer.save(sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--others", help="a Python with tokenizers installed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        text, sample = directory / "text.txt", directory / "sample.txt"
        write_text(text, arguments.mebibytes * 2**20)
        write_text(sample, 4 * 2**20)
        commands = contenders(directory, text, sample, arguments.vocab_size, arguments.others)
        turns = {name: partial(timed, command) for name, command in commands.items()}
        runs = take_turns(turns, arguments.repetitions)
    report(runs, arguments.mebibytes, arguments.vocab_size)


def write_text(path: Path, size: int) -> None:
    """Lines of the standard library in random order."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    lines = [line for source in sources for line in source.read_bytes().splitlines(keepends=True)]
    draw = random.Random(0)
    with path.open("wb") as file:
        written = 0
        while written < size:
            block = b"".join(draw.choices(lines, k=10_000))
            written += file.write(block)


def contenders(
    directory: Path, text: Path, sample: Path, vocab_size: int, others: str | None
) -> dict[str, list[str]]:
    """Commands by name."""
    smtkit = [sys.executable, "-m", "smtkit.cli"]
    out = str(directory / "tokens")
    trained = directory / "trained"
    subprocess.run(
        [*smtkit, "tokenize", str(sample), "--out", str(trained), "-q"]  # noqa: RUF005
        + ["--tokenizer", "sentencepiece", "--vocab-size", str(vocab_size)],
        check=True,
    )
    model = str(next(trained.glob("run-*/tokenizer.model")))
    ours = [*smtkit, "tokenize", str(text), "--out", out, "--overwrite", "-q", "--tokenizer"]
    raw = [str(text), model, str(directory / "raw.bin"), str(THREADS)]
    commands = {
        "smtkit, sentencepiece": [*ours, "sentencepiece", "--tokenizer-model", model],
        "sentencepiece, batches": [sys.executable, "-c", SENTENCEPIECE, *raw],
        "smtkit, char": [*ours, "char"],
        "smtkit, byte": [*ours, "byte"],
    }
    if others:
        saved = str(directory / "tokenizers.json")
        subprocess.run(
            [others, "-c", TRAIN_TOKENIZERS, str(sample), saved, str(vocab_size)], check=True
        )
        raw = [str(text), saved, str(directory / "raw.bin")]
        commands["tokenizers, batches (BPE)"] = [others, "-c", TOKENIZERS, *raw]
    return commands


def timed(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak GiB of a command, from `wait4`."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def report(
    runs: dict[str, list[tuple[float, float, float]]], mebibytes: int, vocab_size: int
) -> None:
    """Prints the table."""
    print(
        f"{mebibytes} MiB of text, vocabulary {vocab_size}; "
        f"{machine(threads=THREADS, others=['sentencepiece'])}\n"
    )
    walls = {name: [seconds for seconds, _, _ in measured] for name, measured in runs.items()}
    rows = []
    for name, measured in runs.items():
        busy = statistics.median(cpu / seconds for seconds, cpu, _ in measured)
        of_base = ratio(walls[name], walls["sentencepiece, batches"])
        peak = max(memory for _, _, memory in measured)
        rows.append((name, spread(walls[name]), f"{of_base:.2f}", f"{busy:.2f}", f"{peak:.2f}"))
    table(
        ["contender", "seconds, median (range)", "of sentencepiece", "cores busy", "peak GiB"], rows
    )


if __name__ == "__main__":
    main()
