"""The transition: input embedding and cell, the same for teacher and RNN."""

import pytest
import torch

from conftest import architecture
from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.networks.cells import normalize_slots
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.networks.transition import Transition

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 3, 8
CELLS = ["mlp", "transformer", "gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _transition(kind: str) -> Transition:
    config = CellConfig(kind=kind, width=16, layers=2, heads=2)
    return Transition(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()


def _memory(count: int) -> torch.Tensor:
    return normalize_slots(torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64))


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape)


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_gives_a_normalised_memory(kind):
    after = _transition(kind)(_memory(5), _tokens(5))
    mean_square = after.square().mean(-1)

    assert after.shape == (5, SLOTS, SLOT_WIDTH)
    torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", CELLS)
def test_rows_do_not_leak_into_each_other(kind):
    transition, memory, token = _transition(kind), _memory(5), _tokens(5)
    other_memory, other_token = memory.clone(), token.clone()
    other_memory[2], other_token[2] = -memory[2], (token[2] + 1) % VOCABULARY
    before, after = transition(memory, token), transition(other_memory, other_token)

    rest = [0, 1, 3, 4]
    torch.testing.assert_close(before[rest], after[rest])
    assert _differs(before[2], after[2])


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_reads_its_token_and_every_slot(kind):
    transition, memory, token = _transition(kind), _memory(1), _tokens(1)
    before = transition(memory, token)

    assert _differs(before, transition(memory, (token + 1) % VOCABULARY))
    for slot in range(SLOTS):
        other = memory.clone()
        other[:, slot] = -other[:, slot]
        assert _differs(before, transition(other, token))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("normalize", ["slot", "none"])
def test_a_rollout_is_a_loop_of_transitions(kind, normalize):
    config = CellConfig(kind=kind, normalize=normalize, width=16, layers=2, heads=2)
    transition = Transition(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()
    memory, tokens = _memory(3), _tokens(3, 6)
    memories = transition.rollout(memory, tokens)

    for step in range(6):
        memory = transition(memory, tokens[:, step])
        torch.testing.assert_close(memories[:, step], memory)


@pytest.mark.parametrize("kind", CELLS)
def test_the_teachers_transition_loads_into_the_rnn(kind):
    parts = (
        CellConfig(kind=kind, width=16, layers=2, heads=2),
        ReadoutConfig(),
        DecoderConfig(width=16, heads=2),
    )
    encoder = EncoderConfig(slots=SLOTS, slot_width=SLOT_WIDTH, width=16, heads=2)
    shape = VOCABULARY, SLOTS, SLOT_WIDTH
    teacher = Teacher(architecture(*shape, *parts, encoder=encoder)).double()
    rnn = RecurrentNetwork(architecture(*shape, *parts)).double()
    memory, tokens = _memory(4), _tokens(4)
    assert _differs(rnn.step(memory, tokens), teacher.step(memory, tokens))
    rnn.transition.load_state_dict(teacher.transition.state_dict())

    assert torch.equal(rnn.step(memory, tokens), teacher.step(memory, tokens))
