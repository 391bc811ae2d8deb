"""The RNN: rollouts, and generation against slow second ways to the same tokens."""

from itertools import islice

import pytest
import torch

from conftest import architecture, uniforms
from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig
from smtkit.networks.rnn import RecurrentNetwork

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 3, 8
CELLS = ["mlp", "transformer", "gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape)


def _network(readout: str = "mlp", cell: str = "mlp") -> RecurrentNetwork:
    parts = (
        CellConfig(kind=cell, width=16, heads=2),
        ReadoutConfig(kind=readout, hidden=8 if readout == "mlp" else None),
        DecoderConfig(width=16, layers=1, heads=2),
    )
    network = RecurrentNetwork(architecture(VOCABULARY, SLOTS, SLOT_WIDTH, *parts))
    network.requires_grad_(False).empty_memory.copy_(torch.randn(SLOTS, SLOT_WIDTH))
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize("cell", CELLS)
def test_a_rollout_is_a_loop_of_steps(cell):
    network, tokens = _network(cell=cell), _tokens(3, 6)
    memory = network.empty_memory.expand(3, -1, -1)
    expected = [memory]
    for position in range(6):
        memory = network.step(memory, tokens[:, position])
        expected.append(memory)

    torch.testing.assert_close(network.rollout(tokens), torch.stack(expected, dim=1))


def test_a_rollout_goes_on_from_a_memory():
    network, tokens = _network(), _tokens(3, 6)
    whole = network.rollout(tokens)

    torch.testing.assert_close(network.rollout(tokens[:, 2:], whole[:, 2]), whole[:, 2:])


def test_the_empty_memory_is_saved_with_the_network():
    assert "empty_memory" in _network().state_dict()


def test_a_fixed_empty_memory_is_not_trained():
    network, memory = _network().requires_grad_(True), torch.ones(SLOTS, SLOT_WIDTH)
    network.fix_empty_memory(memory)
    network.rollout(_tokens(2, 3)).sum().backward()

    assert torch.equal(network.start(2), memory.double().expand(2, -1, -1))
    assert network.empty_memory.grad is None
    assert network.transition.input.weight.grad.any()


@pytest.mark.parametrize("readout", ["mlp", "decoder"])
def test_generation_without_temperature_takes_the_likeliest_token(readout):
    network, prompt = _network(readout), [3, 1, 4]
    written = list(prompt)
    for _ in range(12):
        memory = network.rollout(torch.tensor([written]))[:, -1]
        written.append(int(network.readout(memory)[0].argmax()))

    assert list(islice(network.generate(prompt, temperature=0), 12)) == written[3:]


def test_generation_without_a_prompt_starts_from_the_empty_memory():
    network = _network()
    likeliest = int(network.readout(network.empty_memory[None])[0].argmax())

    assert next(network.generate(temperature=0)) == likeliest


def test_generation_is_repeatable_with_a_seeded_generator():
    network = _network()
    texts = [list(islice(network.generate(uniforms=uniforms(7)), 30)) for _ in range(2)]

    assert texts[0] == texts[1]


def test_memory_does_not_grow_while_generating():
    network = _network()
    sizes = set()

    def note(cell, inputs):
        memory, token = inputs
        sizes.add((memory.shape, memory.untyped_storage().nbytes(), token.shape))

    network.transition.register_forward_pre_hook(note)
    list(islice(network.generate([1, 2]), 200))

    number_bytes = 8
    assert sizes == {((1, SLOTS, SLOT_WIDTH), SLOTS * SLOT_WIDTH * number_bytes, (1,))}
