"""Output heads, against matrix products."""

import pytest
import torch

from smtkit.networks.heads import MlpReadout, TokenHead

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 3, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _memory(count: int) -> torch.Tensor:
    return torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64)


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


def test_a_linear_readout_is_a_matrix_product():
    readout = MlpReadout(VOCABULARY, SLOTS, SLOT_WIDTH, None).double()
    memory = _memory(4)
    expected = memory.reshape(4, -1) @ readout.layers.weight.T + readout.layers.bias

    torch.testing.assert_close(readout(memory), expected)


def test_an_mlp_readout_tells_slots_apart():
    readout = MlpReadout(VOCABULARY, SLOTS, SLOT_WIDTH, 8).double()
    memory = _memory(4)

    assert readout(memory).shape == (4, VOCABULARY)
    assert _differs(readout(memory), readout(memory.flip(1)))


def test_an_mlp_readout_has_one_hidden_layer():
    readout = MlpReadout(VOCABULARY, SLOTS, SLOT_WIDTH, 8).double()
    memory = _memory(4)
    first, _, last = readout.layers
    hidden = torch.nn.functional.gelu(memory.reshape(4, -1) @ first.weight.T + first.bias)

    torch.testing.assert_close(readout(memory), hidden @ last.weight.T + last.bias)


def test_a_token_head_reads_features_of_any_leading_shape():
    head, features = TokenHead(5, VOCABULARY).double(), torch.randn(2, 3, 5, dtype=torch.float64)

    for i in range(2):
        for j in range(3):
            expected = head.weight @ features[i, j] + head.bias
            torch.testing.assert_close(head(features)[i, j], expected)
