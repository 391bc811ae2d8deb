"""Splits: shares, a given test split, and cuts by position."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smtkit.corpus import splits
from smtkit.corpus.splits import Fractions, assign_splits, cut


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 10), min_size=1, max_size=100),
    times=st.integers(0, 4),
    validation=st.floats(0, 0.3),
    test=st.floats(0, 0.3),
    seed=st.integers(0, 100),
)
def test_each_held_out_split_has_its_share_to_within_one_document(
    sizes: list[int], times: int, validation: float, test: float, seed: int
) -> None:
    """Short documents and perhaps one that is `times` as long as all of them, and is cut."""
    sizes = [*sizes, times * sum(sizes)]
    fractions = Fractions(validation, test)
    digests = np.random.default_rng(seed).integers(2**63, size=(len(sizes), 2), dtype=np.uint64)
    codes = assign_splits(digests, np.array(sizes), fractions, seed)
    total = sum(sizes)
    whole = [size for size in sizes if 0 < size * 2 < total]
    for code, fraction in ((splits.VALIDATION, validation), (splits.TEST, test)):
        held = sum(size for size, c in zip(sizes, codes, strict=True) if c == code)
        for size, c in zip(sizes, codes, strict=True):
            if c == splits.BY_POSITION:
                starts = (0, *fractions.boundaries(size), size)
                held += starts[code + 1] - starts[code]
        # The last split to choose may find too few documents left.
        if codes.tolist().count(splits.TRAIN):
            assert held <= fraction * total + max(whole, default=0) + 2
            assert held >= fraction * total - 2


@given(
    content=st.text(alphabet="aé\N{EURO SIGN}\N{PILE OF POO}").map(str.encode) | st.binary(),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    positions=st.lists(st.integers(0, 60)),
)
def test_cut_gives_the_same_parts_for_any_blocks(
    content: bytes, shares: tuple[float, float], positions: list[int]
) -> None:
    first, second = sorted(round(share * len(content)) for share in shares)
    ends = sorted({position for position in positions if position < len(content)} | {0})
    blocks = [
        content[start:end] for start, end in zip(ends, [*ends[1:], len(content)], strict=True)
    ]
    pieces = list(cut(blocks, (first, second)))

    parts = [b"", b"", b""]
    for split, piece in pieces:
        assert piece
        parts[split] += piece
    assert [split for split, _ in pieces] == sorted(split for split, _ in pieces)
    assert b"".join(parts) == content
    assert parts == list(cut_slowly(content, first, second))


def cut_slowly(content: bytes, first: int, second: int) -> tuple[bytes, bytes, bytes]:
    """A boundary moves past at most three continuation bytes; it does not move back."""
    starts = []
    for boundary in (first, second):
        start = boundary
        while start < min(len(content), boundary + 3) and content[start] & 0xC0 == 0x80:
            start += 1
        starts.append(start)
    return content[: starts[0]], content[starts[0] : starts[1]], content[starts[1] :]


@given(text=st.text(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_cut_tears_no_character(text: str, shares: tuple[float, float]) -> None:
    content = text.encode("utf-8")
    first, second = sorted(round(share * len(content)) for share in shares)
    parts = ["", "", ""]
    for split, piece in cut([content], (first, second)):
        parts[split] += piece.decode("utf-8")  # raises where a character is torn
    assert "".join(parts) == text


@given(
    size=st.integers(0, 2**50),
    validation=st.floats(0, 1, exclude_max=True),
    test=st.floats(0, 1, exclude_max=True),
)
def test_boundaries_lie_in_order_within_the_document(
    size: int, validation: float, test: float
) -> None:
    if validation + test < 1:
        first, second = Fractions(validation, test).boundaries(size)
        assert 0 <= first <= second <= size


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    given_test=st.integers(0, 10),
    by_position=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_given_test_split_is_exactly_the_given_documents(
    sizes: list[int], given_test: int, by_position: bool, seed: int
) -> None:
    """Contents are few, so that many are equal; equal ones have equal sizes."""
    given_test = min(given_test, len(sizes))
    digests = np.array([[size // 2, 7] for size in sizes], dtype=np.uint64)
    sizes = [size // 2 for size in sizes]
    codes = splits.assign_splits(
        digests,
        np.array(sizes),
        Fractions(0.2, 0.2),
        seed,
        given_test=given_test,
        by_position=by_position,
    ).tolist()
    for n, (size, code) in enumerate(zip(sizes, codes, strict=True)):
        if size == 0:
            assert code == splits.REMOVED
        elif n < given_test:
            assert code == splits.TEST
        else:
            assert (code == splits.REMOVED) == (size in sizes[:n])
            assert not (given_test and code == splits.TEST)
        assert by_position or code != splits.BY_POSITION
