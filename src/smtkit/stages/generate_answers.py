"""The answers of `smtkit generate` to rows of a task, beside what was asked."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from smtkit import IGNORE
from smtkit.corpus.tokenizers import SymbolTokenizer, Tokenizer
from smtkit.corpus.windows import Windows
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import Sampling


def answered_rows(
    network: RecurrentNetwork, tokenizer: Tokenizer, sampling: Sampling, rows: Windows
) -> Iterator[str]:
    """A line for each of `rows`, and one that counts what is right."""
    assert isinstance(tokenizer, SymbolTokenizer)
    asked = rows.targets != IGNORE
    device = network.empty_memory.device
    inputs, places = (torch.from_numpy(array).to(device) for array in (rows.tokens, asked))
    answers = network.answer(inputs, places, **sampling)
    found = np.full_like(rows.targets, IGNORE)
    found[asked] = answers.cpu().numpy()
    for row, length in enumerate(rows.length):
        cells = zip(
            rows.tokens[row, :length],
            rows.targets[row, 1 : length + 1],
            found[row, 1 : length + 1],
            strict=True,
        )
        yield " ".join(_cell(tokenizer.symbols, *cell) for cell in cells) + "\n"
    right = int((found == rows.targets)[asked].sum())
    yield f"answers right: {right} of {asked.sum()}"


def _cell(symbols: Sequence[str], token: int, target: int, found: int) -> str:
    """A symbol; where an answer is asked, with what was answered and what is right."""
    if target == IGNORE:
        return symbols[token]
    right = f"({symbols[target]})" if found == target else f"not {symbols[target]}"
    return f"{symbols[token]}->{symbols[found]} {right}"
