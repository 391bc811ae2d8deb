"""Prints the tables of docs/scaling.md: operations and bytes per token, and the resulting times.

T: window, C: width, L: layers, K: slots, D: slot width, Z = K D, V: vocabulary, F: future tokens.
Operations are those of matrix products, two per multiply-add. A time is operations divided by
operations per second, or bytes divided by bytes per second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TOKENS = (10**8, 10**10, 10**12)


@dataclass(frozen=True)
class Setting:
    """Networks and a machine, which sustains `operations` and `disk` bytes per second."""

    name: str
    operations: float
    disk: float
    window: int
    vocabulary: int
    slots: int
    slot_width: int
    encoder: tuple[int, int]  # C, L
    decoder: tuple[int, int]
    cell: tuple[int, int]
    future: int = 16
    anchors: int = 2
    transitions: int = 32  # per window, for the teacher's cell
    number: int = 2  # bytes per value of a label

    @property
    def memory(self) -> int:
        """Z."""
        return self.slots * self.slot_width


SMALL = Setting("small", 1e11, 1e9, 128, 4096, 4, 64, (128, 2), (128, 1), (192, 1))
LARGE = Setting("large", 3.2e15, 1e10, 1024, 32_768, 16, 256, (1024, 12), (1024, 4), (2048, 2))


def block(width: int) -> float:
    """Weights of a transformer block: attention 4 C^2, gated MLP 8 C^2."""
    return 12 * width**2


def encode(s: Setting) -> float:
    """Operations per token of one pass over a window, which gives all T + 1 memories."""
    width, layers = s.encoder
    attention = 2 * layers * s.window * width  # causal: T / 2 positions on average, 2 products of C
    return 2 * (layers * block(width) + width * s.memory) + attention


def encode_alone(s: Setting) -> float:
    """Operations per label where each needs its own pass over T tokens and K registers."""
    width, layers = s.encoder
    length = s.window + s.slots
    inner = 2 * layers * block(width) + 4 * layers * length * width
    return length * inner + 2 * width * s.memory


def step(s: Setting) -> float:
    """Operations of one transition of the mlp cell and of the linear readout."""
    width, layers = s.cell
    return 2 * (2 * s.memory * width + layers * 8 * width**2) + 2 * s.memory * s.vocabulary


def train_teacher(s: Setting) -> float:
    """Operations per token in training: a backward pass costs two forward passes."""
    width, layers = s.decoder
    symbols = s.slots + s.future
    decode = 2 * layers * block(width) * symbols + 2 * width * s.vocabulary * (s.future + 1)
    dense = 2 * s.memory * s.vocabulary
    share = (s.anchors * decode + s.transitions * step(s)) / s.window
    return 3 * (encode(s) + dense + share)


def train_rnn(s: Setting) -> float:
    """Operations per transition in training, for every method except jacobi."""
    return 3 * step(s)


def label_bytes(s: Setting) -> float:
    return s.memory * s.number


def passes_until_stored_is_cheaper(s: Setting, computed: float) -> float | None:
    """Passes E from which writing labels once and reading them E times is faster than computing
    them E times; None if reading takes longer than computing."""
    compute, move = computed / s.operations, label_bytes(s) / s.disk
    return (compute + move) / (compute - move) if compute > move else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def per_token(settings: Sequence[Setting]) -> str:
    rows = [
        ("`train-encoder`", [big(train_teacher(s)) for s in settings], "2, read"),
        ("`extract-labels`, causal", [big(encode(s)) for s in settings], "2 read, 2 Z written"),
        ("one pass per label", [big(encode_alone(s)) for s in settings], "2 read, 2 Z written"),
        ("`train-rnn`, smt or dmt", [big(train_rnn(s)) for s in settings], "2 Z, read"),
        ("`train-rnn`, bptt", [big(train_rnn(s)) for s in settings], "2, read"),
        ("`generate`", [big(step(s)) for s in settings], "0"),
    ]
    names = [f"operations, {s.name}" for s in settings]
    return table(["", *names, "bytes of data"], [[a, *b, c] for a, b, c in rows])


def per_corpus(s: Setting) -> str:
    """Bytes and times of one pass over each of `TOKENS`."""
    rows = [
        ("tokens on disk", [size(2 * n) for n in TOKENS]),
        ("labels on disk", [size(label_bytes(s) * n) for n in TOKENS]),
        ("train-encoder", [time(train_teacher(s) * n / s.operations) for n in TOKENS]),
        ("extract-labels: compute", [time(encode(s) * n / s.operations) for n in TOKENS]),
        ("extract-labels: write", [time(label_bytes(s) * n / s.disk) for n in TOKENS]),
        ("train-rnn: compute", [time(train_rnn(s) * n / s.operations) for n in TOKENS]),
        ("train-rnn: read", [time(label_bytes(s) * n / s.disk) for n in TOKENS]),
    ]
    head = ["", *(f"10^{len(str(n)) - 1} tokens" for n in TOKENS)]
    return table(head, [[a, *b] for a, b in rows])


def stored_or_not(settings: Sequence[Setting]) -> str:
    rows = []
    for s in settings:
        for name, computed in (("causal", encode(s)), ("one pass per label", encode_alone(s))):
            passes = passes_until_stored_is_cheaper(s, computed)
            rows.append(
                [
                    f"{s.name}, {name}",
                    f"{1e6 * computed / s.operations:.3g}",
                    f"{1e6 * label_bytes(s) / s.disk:.3g}",
                    "never" if passes is None else f"{passes:.1f}",
                ]
            )
    head = ["", "compute, us per label", "read or write, us", "storing is faster from passes"]
    return table(head, rows)


def size(count: float) -> str:
    for unit in ("MB", "GB", "TB"):
        if count < 1000 * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]:
            return f"{count / {'MB': 1e6, 'GB': 1e9, 'TB': 1e12}[unit]:.3g} {unit}"
    return f"{count / 1e15:.3g} PB"


def time(seconds: float) -> str:
    for unit, length, most in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / length:.2g} {unit}"
    days = seconds / 86_400
    return f"{days:,.0f} days" if days >= 100 else f"{days:.2g} days"


def big(count: float) -> str:
    for unit, scale in (("M", 1e6), ("G", 1e9)):
        if count < 1000 * scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e12:.3g} T"


def tables() -> list[str]:
    both = (SMALL, LARGE)
    return [per_token(both), per_corpus(SMALL), per_corpus(LARGE), stored_or_not(both)]


if __name__ == "__main__":
    print("\n".join(tables()))
