"""Inputs: rows of the embedding, and sequences without any."""

import numpy as np
import pytest
import torch

from smtkit.networks.inputs import TokenEmbedding, no_tokens


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_an_input_is_the_row_of_its_token(shape):
    embedding, tokens = TokenEmbedding(11, 5), torch.randint(11, shape)
    inputs = embedding(tokens)

    assert inputs.shape == (*shape, 5)
    for index in np.ndindex(shape):
        assert torch.equal(inputs[index], embedding.weight[tokens[index]])


def test_no_tokens_give_no_inputs():
    tokens = no_tokens(3, torch.device("cpu"))

    assert tokens.shape == (3, 0)
    assert TokenEmbedding(11, 5)(tokens).shape == (3, 0, 5)
