"""The future decoder: causality, and what a memory contributes."""

import pytest
import torch

from smtkit.config import DecoderConfig
from smtkit.networks.cells import normalize_slots
from smtkit.networks.decoder import DecoderReadout, FutureDecoder
from smtkit.networks.inputs import no_tokens

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 3, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def decoder() -> FutureDecoder:
    config = DecoderConfig(width=16, layers=2, heads=2)
    return FutureDecoder(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()


def _memory(count: int) -> torch.Tensor:
    return normalize_slots(torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64))


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape)


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_future_token_changes_no_logit_up_to_its_position(decoder, changed):
    memory, future = _memory(2), _tokens(2, 5)
    other = future.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    before, after = decoder(memory, future), decoder(memory, other)

    assert before.shape == (2, 6, VOCABULARY)
    torch.testing.assert_close(before[:, : changed + 1], after[:, : changed + 1])
    for position in range(changed + 1, 6):
        assert _differs(before[:, position], after[:, position])


def test_a_decoder_with_an_empty_future_gives_its_first_logits(decoder):
    memory, future = _memory(4), _tokens(4, 5)
    empty = decoder(memory, no_tokens(len(memory), memory.device))

    assert empty.shape == (4, 1, VOCABULARY)
    torch.testing.assert_close(empty[:, 0], decoder(memory, future)[:, 0])
    torch.testing.assert_close(DecoderReadout(decoder)(memory), empty[:, 0])


@pytest.mark.parametrize("slot", range(SLOTS))
def test_every_slot_reaches_every_logit_of_the_decoder(decoder, slot):
    memory, future = _memory(2), _tokens(2, 5)
    other = memory.clone()
    other[:, slot] = -other[:, slot]
    before, after = decoder(memory, future), decoder(other, future)

    for position in range(6):
        assert _differs(before[:, position], after[:, position])
