"""The synthetic tasks, against solvers in plain Python that read the names of the tokens."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smtkit import IGNORE
from smtkit.config import SynthesizeConfig, resolve
from smtkit.corpus.task_rows import TaskRows, generate, symbols
from smtkit.corpus.tasks import TASKS
from smtkit.errors import UsageError

Answers = dict[int, tuple[str, int | None]]
"""Position of a token with an answer: the answer, and where it was written, or None."""

WITH_NOOPS = ("string-copy", "stack", "keys-values", "recency")


def case(task: str, *lengths: int, vocabulary: int = 11, **changes: Any) -> SynthesizeConfig:
    if task == "parity":
        vocabulary = 2
    return SynthesizeConfig(
        task=task, lengths=lengths, sequences=1, vocabulary=vocabulary, **changes
    )


CASES = [
    case("retrieval", 4),
    case("retrieval", 5, 17, 24, noise=0.3),
    case("retrieval", 20, noise=0.0, vocabulary=5),
    case("string-copy", 2),
    case("string-copy", 24, 10, 16),
    case("string-copy", 24, 10, 16, reverse=True, noise=0.3),
    case("stack", 2, depth=1),
    case("stack", 13, 40, depth=3),
    case("stack", 13, 40, depth=5, noise=0.4),
    case("keys-values", 3),
    case("keys-values", 9, 16, 25),
    case("keys-values", 60),
    case("keys-values", 9, 16, 25, pairs=2, noise=0.3),
    case("keys-values", 12, pairs=5, vocabulary=12),
    case("modular-arithmetic", 5, 6, 12),
    case("modular-arithmetic", 9, vocabulary=2),
    case("parity", 1, 30),
    case("recency", 2, vocabulary=3),
    case("recency", 7, 30),
    case("recency", 7, 30, noise=0.5),
]
over_cases = pytest.mark.parametrize(
    "settings", CASES, ids=lambda each: f"{each.task} {each.lengths} {each.noise or ''}".strip()
)


def rows_of(
    settings: SynthesizeConfig, count: int, seed: int = 0, split: str = "train"
) -> TaskRows:
    (rows,) = generate(settings, seed, split, count, block=count)
    return rows


def joined(blocks: list[TaskRows]) -> dict[str, list[Any]]:
    return {
        name: [row for block in blocks for row in getattr(block, name).tolist()]
        for name in ("tokens", "targets", "distance", "length")
    }


def solve(settings: SynthesizeConfig, names: list[str]) -> Answers:
    if settings.task not in WITH_NOOPS:
        return SOLVERS[settings.task](settings, names)
    positions = [position for position, name in enumerate(names) if name != "."]
    answers = SOLVERS[settings.task](settings, [names[position] for position in positions])
    return {positions[query]: (answer, positions[at]) for query, (answer, at) in answers.items()}


def solve_retrieval(settings: SynthesizeConfig, names: list[str]) -> Answers:
    assert [names.count(mark) for mark in "#?"] == [1, 1]
    assert names[-1] == "?"
    needle = names.index("#") + 1
    assert needle < len(names) // 2
    assert names[needle].startswith("a")
    return {len(names) - 1: (names[needle], needle)}


def solve_string_copy(settings: SynthesizeConfig, names: list[str]) -> Answers:
    string, rest = names[: names.index("|")], names[names.index("|") :]
    assert len(string) == len(rest)
    copied = list(enumerate(string))
    if settings.reverse:
        copied.reverse()
    assert rest[1:] == [symbol for _, symbol in copied[:-1]]
    return {len(string) + n: (symbol, at) for n, (at, symbol) in enumerate(copied)}


def solve_stack(settings: SynthesizeConfig, names: list[str]) -> Answers:
    held: list[tuple[str, int]] = []
    answers: Answers = {}
    for position, name in enumerate(names):
        if name == "pop":
            answers[position] = held.pop()
        else:
            assert name.startswith("push ")
            held.append((name, position))
            assert len(held) <= settings.depth
    return answers


def solve_keys_values(settings: SynthesizeConfig, names: list[str]) -> Answers:
    written: dict[str, tuple[str, int]] = {}
    position = 0
    while position + 1 < len(names) and names[position + 1].startswith("v"):
        assert names[position] not in written
        written[names[position]] = names[position + 1], position + 1
        position += 2
    keys = sum(name.startswith("k") for name in symbols(settings))
    assert len(written) == (settings.pairs or max(1, min(len(names) // 4, keys)))
    assert position < len(names)
    return {position: written[names[position]] for position in range(position, len(names))}


def solve_modular_arithmetic(settings: SynthesizeConfig, names: list[str]) -> Answers:
    x, y = [int(name) for name in names[::2]], [int(name) for name in names[1::2]]
    size = settings.vocabulary
    fits = [
        (w, b)
        for w, b in itertools.product(range(1, size), range(size))
        if all((w * x[pair] + b) % size == y[pair] for pair in (0, 1))
    ]
    ((w, b),) = fits
    assert all((w * known + b) % size == value for known, value in zip(x, y, strict=False))
    return {2 * pair: (str((w * x[pair] + b) % size), None) for pair in range(2, len(x))}


def solve_parity(settings: SynthesizeConfig, names: list[str]) -> Answers:
    return {
        position: (str(names[: position + 1].count("1") % 2), None)
        for position in range(len(names))
    }


def solve_recency(settings: SynthesizeConfig, names: list[str]) -> Answers:
    answers: Answers = {}
    for position, name in enumerate(names):
        for before in reversed(range(position)):
            if names[before] == name:
                answers[position] = names[before + 1], before + 1
                break
    return answers


SOLVERS = {
    "retrieval": solve_retrieval,
    "string-copy": solve_string_copy,
    "stack": solve_stack,
    "keys-values": solve_keys_values,
    "modular-arithmetic": solve_modular_arithmetic,
    "parity": solve_parity,
    "recency": solve_recency,
}


def assert_solved(settings: SynthesizeConfig, rows: TaskRows) -> None:
    """Every number of the rows is that of the solver, by the convention of the task rows."""
    names, width = symbols(settings), max(settings.lengths)
    number = {name: token for token, name in enumerate(names)}
    for tokens, targets, distance, length in zip(
        rows.tokens.tolist(),
        rows.targets.tolist(),
        rows.distance.tolist(),
        rows.length.tolist(),
        strict=True,
    ):
        assert length in settings.lengths
        assert tokens[length:] == [0] * (width - length)
        expected_targets, expected_distance = [IGNORE] * (width + 1), [-1] * (width + 1)
        answers = solve(settings, [names[token] for token in tokens[:length]])
        for query, (answer, written) in answers.items():
            expected_targets[query + 1] = number[answer]
            expected_distance[query + 1] = -1 if written is None else query - written
        assert targets == expected_targets
        assert distance == expected_distance


@over_cases
def test_a_solver_agrees_with_every_target_and_distance(settings):
    assert_solved(settings, rows_of(settings, 300))


@pytest.mark.parametrize("task", TASKS)
def test_a_solver_agrees_at_the_default_vocabulary(task):
    settings = case(task, 64, vocabulary=TASKS[task].vocabulary)

    assert_solved(settings, rows_of(settings, 20))


@st.composite
def any_settings(draw: st.DrawFn, task: str) -> SynthesizeConfig:
    sizes = {"parity": st.just(2), "modular-arithmetic": st.sampled_from([2, 3, 11, 23, 24])}
    noise = st.none() | (st.just(0.0) if task in sizes else st.floats(0, 1))
    lengths = st.integers(1, 40)
    if task == "string-copy":
        lengths = lengths.map(lambda length: (length + 1) // 2 * 2)
    return SynthesizeConfig(
        task=task,
        lengths=draw(st.lists(lengths, min_size=1, max_size=4)),
        sequences=1,
        vocabulary=draw(sizes.get(task, st.integers(2, 40))),
        noise=draw(noise),
        reverse=task == "string-copy" and draw(st.booleans()),
        depth=draw(st.integers(1, 6)),
        pairs=draw(st.none() | st.integers(1, 8)) if task == "keys-values" else None,
    )


@pytest.mark.parametrize("task", TASKS)
@hypothesis_settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**64), block=st.integers(1, 12))
def test_settings_are_refused_or_make_solvable_rows(task, data, seed, block):
    settings = data.draw(any_settings(task))
    try:
        blocks = generate(settings, seed, "test", 12, block)
    except UsageError:
        assume(False)

    for rows in blocks:
        assert_solved(settings, rows)


@over_cases
def test_arrays_have_the_shapes_and_types_of_the_contract(settings):
    width = max(settings.lengths)
    blocks = list(generate(settings, 0, "train", 10, block=4))

    assert [len(rows.length) for rows in blocks] == [4, 4, 2]
    for rows in blocks:
        count = len(rows.length)
        assert (rows.tokens.shape, rows.tokens.dtype) == ((count, width), np.int64)
        assert (rows.targets.shape, rows.targets.dtype) == ((count, width + 1), np.int64)
        assert (rows.distance.shape, rows.distance.dtype) == ((count, width + 1), np.int32)
        assert (rows.length.shape, rows.length.dtype) == ((count,), np.int64)


@over_cases
@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_rows_do_not_depend_on_the_block(settings, block):
    blocks = list(generate(settings, 3, "train", 65, block))

    assert joined(blocks) == joined([rows_of(settings, 65, seed=3)])


@over_cases
def test_a_smaller_set_is_the_beginning_of_a_larger_one(settings):
    smaller, larger = (joined([rows_of(settings, count)]) for count in (100, 1000))

    assert smaller == {name: column[:100] for name, column in larger.items()}


@pytest.mark.parametrize("task", TASKS)
def test_no_sequences_are_no_blocks(task):
    assert list(generate(case(task, 12), 0, "train", 0)) == []


@pytest.mark.parametrize("task", TASKS)
def test_rows_seeds_and_splits_differ(task):
    settings = case(task, 64)
    sets = [(0, "train"), (1, "train"), (0, "validation"), (0, "test")]
    rows = [row for seed, split in sets for row in rows_of(settings, 50, seed, split).tokens]

    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("task", WITH_NOOPS)
@pytest.mark.parametrize("length", [20, 30])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25, 0.5])
def test_noise_is_the_share_of_noops(task, length, noise):
    rows = rows_of(case(task, length, noise=noise), 50)

    assert set((rows.tokens == 0).sum(axis=1).tolist()) == {int(noise * length) // 2 * 2}


@pytest.mark.parametrize("task", WITH_NOOPS)
def test_noops_are_anywhere_equally_often(task):
    rows = rows_of(case(task, 20, noise=0.4), 4000)

    assert np.abs((rows.tokens == 0).mean(axis=0) - 0.4).max() < 5 * np.sqrt(0.24 / 4000)


@pytest.mark.parametrize(("noise", "share"), [(None, 1), (1.0, 1), (0.0, 0), (0.3, 0.3)])
def test_noise_of_retrieval_is_the_probability_of_a_distractor(noise, share):
    rows = rows_of(case("retrieval", 23, noise=noise), 1000)
    fillers = 20 * 1000

    blanks = int((rows.tokens == 0).sum())

    spread = 5 * np.sqrt(share * (1 - share) / fillers)
    assert abs(blanks / fillers - (1 - share)) <= spread


def test_reverse_turns_the_copy_of_the_same_string():
    settings = case("string-copy", 16)
    forward, backward = (
        rows_of(settings, 20),
        rows_of(settings.model_copy(update={"reverse": True}), 20),
    )

    assert forward.tokens[:, :8].tolist() == backward.tokens[:, :8].tolist()
    assert forward.targets[:, 9:].tolist() == backward.targets[:, :8:-1].tolist()


def test_lengths_are_drawn_equally_often():
    lengths = (6, 8, 12, 18)
    counts = Counter(rows_of(case("string-copy", *lengths), 8000).length.tolist())

    assert sorted(counts) == list(lengths)
    # 99.99th percentile of chi squared with 3 degrees of freedom
    assert sum((count - 2000) ** 2 / 2000 for count in counts.values()) < 21.1


def test_a_length_given_twice_comes_twice_as_often():
    counts = Counter(rows_of(case("recency", 6, 9, 9), 9000).length.tolist())

    assert abs(counts[9] / 9000 - 2 / 3) < 5 * np.sqrt(2 / 9 / 9000)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "recency"])
def test_no_answer_is_likelier_than_another(task):
    settings = case(task, 24)
    rows = rows_of(settings, 6000)
    # The last answer of each row: one per row, so that the counts are of independent answers.
    last = 23 if task == "modular-arithmetic" else 24
    answers = rows.targets[:, last]
    counts = np.array(list(Counter(answers[answers != IGNORE].tolist()).values()))

    possible = {"parity": 2, "modular-arithmetic": 11, "retrieval": 8, "keys-values": 5}
    assert len(counts) == possible.get(task, 9)
    expected = counts.sum() / len(counts)
    # 99.99th percentile of chi squared with 10 degrees of freedom
    assert ((counts - expected) ** 2 / expected).sum() < 35.6


def test_the_needle_is_anywhere_in_the_first_half():
    distance = Counter(rows_of(case("retrieval", 20), 9000).distance[:, -1].tolist())

    assert sorted(distance) == list(range(10, 19))
    assert max(abs(count - 1000) for count in distance.values()) < 5 * np.sqrt(1000)


@pytest.mark.parametrize("pairs", [1, 2, 4, 5])
def test_every_key_is_equally_likely_at_every_pair(pairs):
    keys = rows_of(case("keys-values", 24, pairs=pairs), 5000).tokens[:, : 2 * pairs : 2]

    for column in keys.T:
        counts = np.bincount(column, minlength=6)[1:6]
        assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_every_pair_is_queried_equally_often():
    rows = rows_of(case("keys-values", 13, pairs=3), 6000)
    queried = Counter(12 - int(distance) for distance in rows.distance[:, -1])

    assert sorted(queried) == [1, 3, 5]
    assert max(abs(count - 2000) for count in queried.values()) < 5 * np.sqrt(2000)


def test_the_stack_reaches_every_depth_and_no_more():
    rows = rows_of(case("stack", 64, depth=4), 200)
    heights = np.cumsum(np.where(rows.tokens == 1, -1, 1), axis=1)

    assert set(heights.flatten().tolist()) == {0, 1, 2, 3, 4}
    may_do_both = (heights[:, :-1] > 0) & (heights[:, :-1] < 4)
    pops = (rows.tokens[:, 1:] == 1)[may_do_both]
    assert abs(pops.mean() - 0.5) < 5 * 0.5 / np.sqrt(pops.size)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (case("retrieval", 12), [".", "#", "?", *(f"a{n}" for n in range(8))]),
        (case("string-copy", 12), [".", "|", *(f"a{n}" for n in range(9))]),
        (case("stack", 12), [".", "pop", *(f"push {n}" for n in range(9))]),
        (case("keys-values", 12, vocabulary=6), [".", "k0", "k1", "v0", "v1", "v2"]),
        (case("modular-arithmetic", 12, vocabulary=3), ["0", "1", "2"]),
        (case("parity", 12), ["0", "1"]),
        (case("recency", 12, vocabulary=4), [".", "a0", "a1", "a2"]),
    ],
    ids=lambda each: each.task if isinstance(each, SynthesizeConfig) else "",
)
def test_symbols_name_the_tokens(settings, expected):
    assert symbols(settings) == expected


@pytest.mark.parametrize("task", TASKS)
@hypothesis_settings(max_examples=20)
@given(data=st.data())
def test_every_token_has_one_symbol_of_its_own(task, data):
    settings = data.draw(any_settings(task))
    try:
        names = symbols(settings)
    except UsageError:
        assume(False)

    assert len(names) == len(set(names)) == settings.vocabulary
    rows = rows_of(settings, 8)
    assert rows.tokens.min() >= 0
    assert max(rows.tokens.max(), rows.targets.max()) < settings.vocabulary


@pytest.mark.parametrize("task", TASKS)
def test_every_token_occurs(task):
    settings = case(task, 24, noise=0.5 if task in (*WITH_NOOPS, "retrieval") else None)

    assert set(rows_of(settings, 500).tokens.flatten().tolist()) == set(range(settings.vocabulary))


def flags(task: str, *lengths: int, vocabulary: int = 11, **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "lengths": list(lengths),
        "sequences": 1,
        "vocabulary": vocabulary,
        **changes,
    }


REFUSED = [
    (flags("retrieval", 12, 3), "^`lengths` 3: retrieval needs 4"),
    (flags("retrieval", 12, vocabulary=4), "^`vocabulary` 4: retrieval needs 5"),
    (flags("retrieval", 12, noise=1.5), "noise.* 1"),
    (flags("retrieval", 12, reverse=True), "reverse"),
    (flags("string-copy", 12, 7), "^`lengths` 7: .* allowed: even"),
    (flags("string-copy", 0), "lengths.* 0"),
    (flags("string-copy", 12, vocabulary=3), "^`vocabulary` 3: string-copy needs 4"),
    (flags("string-copy", 12, noise=1.0), "^`lengths` 12 with `noise` 1.0 leaves 0: string-copy"),
    (flags("stack", 12, depth=0), "depth.* 0"),
    (flags("stack", 1), "^`lengths` 1: stack needs 2"),
    (flags("stack", 12, noise=-0.1), "noise.* 0"),
    (flags("stack", 12, pairs=2), "pairs"),
    (flags("keys-values", 2), "^`lengths` 2: keys-values needs 3"),
    (flags("keys-values", 12, pairs=0), "pairs.* 0"),
    (flags("keys-values", 60, pairs=6), "^`pairs` 6: allowed: 1 to 5, .* `vocabulary` 11"),
    (flags("keys-values", 30, 10, pairs=5), "^`lengths` 10: keys-values with `pairs` 5 needs 11"),
    (flags("keys-values", 12, pairs=4, noise=0.4), "^`lengths` 12 with `noise` 0.4 leaves 8: .* 9"),
    (flags("keys-values", 12, vocabulary=4), "^`vocabulary` 4: keys-values needs 5"),
    (flags("modular-arithmetic", 4), "^`lengths` 4: modular-arithmetic needs 5"),
    (flags("modular-arithmetic", 12, vocabulary=9), "^`vocabulary` 9: .* allowed: primes"),
    (flags("modular-arithmetic", 12, vocabulary=1), "vocabulary.* 2"),
    (flags("modular-arithmetic", 12, noise=0.1), "^`noise` 0.1: modular-arithmetic allows 0"),
    (flags("parity", 12, vocabulary=3), "^`vocabulary` 3: .* allowed: 2"),
    (flags("parity", 12, vocabulary=2, noise=float("nan")), "noise"),
    (flags("parity", 0, vocabulary=2), "lengths.* 0"),
    (flags("recency", -5), "lengths.* 0"),
    (flags("recency"), "lengths"),
    (flags("parroting", 12), "task.*'retrieval', 'string-copy'"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_impossible_settings_are_refused_in_one_line(flags, message):
    for attempt in (symbols, lambda settings: generate(settings, 0, "train", 10)):
        with pytest.raises(UsageError, match=message) as raised:
            attempt(resolve(SynthesizeConfig, flags=flags))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("found", "below", "above"), [(4, 3, 5), (64, 61, 67), (100, 97, 101)])
def test_a_modulus_that_is_no_prime_is_answered_with_the_nearest(found, below, above):
    with pytest.raises(UsageError) as raised:
        symbols(case("modular-arithmetic", 12, vocabulary=found))

    assert raised.value.hint == f"the nearest are {below} and {above}"


@pytest.mark.parametrize("prime", [2, 3, 5, 7, 11, 61, 97, 257])
def test_a_prime_modulus_is_allowed(prime):
    assert len(symbols(case("modular-arithmetic", 12, vocabulary=prime))) == prime
