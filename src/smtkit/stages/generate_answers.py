"""The answers of `smtkit generate` to rows of a task, beside what was asked."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from smtkit.config import GenerateConfig
from smtkit.convention import IGNORE
from smtkit.data.tokenizers import SymbolTokenizer, Tokenizer
from smtkit.data.windows import Windows
from smtkit.models.rnn import RecurrentNetwork


def answered_rows(
    config: GenerateConfig,
    network: RecurrentNetwork,
    tokenizer: Tokenizer,
    generator: torch.Generator,
    rows: Windows,
) -> Iterator[str]:
    """A line for each of `rows`, and one that counts what is right."""
    assert isinstance(tokenizer, SymbolTokenizer)
    asked = rows.targets != IGNORE
    answers = network.answer(
        torch.from_numpy(rows.tokens).to(network.empty_memory.device),
        torch.from_numpy(asked).to(network.empty_memory.device),
        temperature=config.temperature or 0.0,
        top_k=config.top_k,
        top_p=config.top_p,
        generator=generator,
    )
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
