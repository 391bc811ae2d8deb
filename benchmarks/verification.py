"""Cost of verifying the artifacts of a quickstart run, beside reading them unchecked.

    make quickstart
    python benchmarks/verification.py pipelines/quickstart/artifacts

Contenders read the same files, which the page cache holds, and take turns; CPU seconds of one
thread. The last column is what verification adds, as a share of the seconds that the stage took.
"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from measure import machine, parser, seconds, spread, table, take_turns
from safetensors.torch import load_file

from smtkit.corpus.shards import read_split
from smtkit.labels.format import LABEL_SPLITS
from smtkit.labels.reader import LabelShards
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import ALONE
from smtkit.training.parallel import ParallelNetwork

CPU = torch.device("cpu")
Contender = Callable[[], object]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("artifacts", type=Path)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens, encoder, labels, rnn = (
        Artifact.open(arguments.artifacts / name) for name in ("tokens", "encoder", "labels", "dmt")
    )
    network = ParallelNetwork(load_teacher(encoder), ALONE, "none")
    steps = encoder.manifest.statistics["steps"]
    teacher_seconds, rnn_seconds = (each.manifest.statistics["seconds"] for each in (encoder, rnn))
    cases: dict[str, tuple[Contender, Contender, float, int]] = {
        "tokens, train and validation": (
            lambda: [read_split(tokens, split) for split in LABEL_SPLITS],
            lambda: [mapped(path) for split in LABEL_SPLITS for path in tokens.files(split)],
            teacher_seconds,
            1,
        ),
        "weights of the teacher": (
            lambda: load_teacher(encoder),
            lambda: load_file(encoder.file(MODEL)),
            teacher_seconds,
            1,
        ),
        "weights of the RNN": (
            lambda: load_rnn(rnn),
            lambda: load_file(rnn.file(MODEL)),
            rnn_seconds,
            1,
        ),
        "labels, every row once": (
            lambda: [LabelShards(labels.files(split)).verify() for split in LABEL_SPLITS],
            lambda: [copied(path) for split in LABEL_SPLITS for path in labels.files(split)],
            rnn_seconds,
            1,
        ),
        f"weights after each of {steps} updates": (
            network.non_finite,
            lambda: None,
            teacher_seconds,
            steps,
        ),
    }
    print(machine(threads=arguments.threads))
    rows = []
    for name, (verified, unchecked, stage, times) in cases.items():
        found = take_turns(
            {
                "verified": lambda work=verified: seconds(work, CPU),
                "unchecked": lambda work=unchecked: seconds(work, CPU),
            },
            arguments.repetitions,
        )
        added = [a - b for a, b in zip(found["verified"], found["unchecked"], strict=True)]
        share = 100 * times * sorted(added)[len(added) // 2] / stage
        milliseconds = ([1000 * value for value in values] for values in found.values())
        rows.append((name, *(spread(values, 2) for values in milliseconds), f"{share:.2f}%"))
    table(("what is read", "verified, ms", "unchecked, ms", "of its stage"), rows)


def mapped(path: Path) -> int:
    """Reads every value of a shard through a memory map."""
    batches = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["tokens"].chunks
    return sum(int(batch.flatten().to_numpy().sum()) for batch in batches)


def copied(path: Path) -> int:
    """Copies a file into memory, a row's size at a time."""
    buffer = bytearray(2**15)
    with path.open("rb", buffering=0) as file:
        return sum(iter(lambda: file.readinto(buffer), 0))


if __name__ == "__main__":
    main()
