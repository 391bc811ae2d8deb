"""Cells that can run fused, cells that cannot, and the formula of the lstm."""

import pytest
import torch
from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig
from smtkit.errors import UsageError
from smtkit.networks.cells import Cell, LstmCell, build_cell, normalize_slots
from smtkit.networks.rnn import RecurrentNetwork

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 2, 6
KINDS = ["mlp", "transformer", "gru", "lstm"]
FUSED = ["gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _cell(kind: str, normalize: str = "none") -> Cell:
    config = CellConfig(kind=kind, normalize=normalize, width=8, layers=1, heads=2)
    return build_cell(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()


def _memory(count: int = 3) -> Tensor:
    return torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64)


def _tokens(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape)


def _steps(cell: Cell, memory: Tensor, tokens: Tensor) -> Tensor:
    """Memories after each token, one call of the cell after the other."""
    memories = []
    for step in range(tokens.shape[1]):
        memory = cell(memory, tokens[:, step])
        memories.append(memory)
    return torch.stack(memories, dim=1)


def _by_hand(cell: LstmCell, memory: Tensor, token: Tensor) -> Tensor:
    """One step of the lstm of one sequence, gate by gate; memory (K, D)."""
    weights = dict(cell.unit.named_parameters())
    flat = memory.flatten()
    half = len(flat) // 2
    hidden, carry = flat[:half], flat[half:]
    embedded = cell.embedding.weight[token]
    of_gate = [
        weights["weight_ih_l0"][gate * half : (gate + 1) * half] @ embedded
        + weights["bias_ih_l0"][gate * half : (gate + 1) * half]
        + weights["weight_hh_l0"][gate * half : (gate + 1) * half] @ hidden
        + weights["bias_hh_l0"][gate * half : (gate + 1) * half]
        for gate in range(4)
    ]
    entry, forget, candidate, output = of_gate
    carry = carry / (1 + torch.exp(-forget)) + torch.tanh(candidate) / (1 + torch.exp(-entry))
    hidden = torch.tanh(carry) / (1 + torch.exp(-output))
    return torch.cat((hidden, carry)).view(SLOTS, SLOT_WIDTH)


def test_the_lstm_is_the_textbook_formula():
    cell = _cell("lstm")
    assert isinstance(cell, LstmCell)
    memory, token = _memory(), _tokens(3)
    expected = torch.stack([_by_hand(cell, memory[n], token[n]) for n in range(3)])

    torch.testing.assert_close(cell(memory, token), expected, rtol=1e-12, atol=1e-12)


def test_the_gru_is_that_of_torch():
    cell = _cell("gru")
    unit = nn.GRUCell(8, SLOTS * SLOT_WIDTH).double()
    unit.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in cell.unit.state_dict().items()}
    )
    memory, token = _memory(), _tokens(3)
    expected = unit(cell.embedding(token), memory.flatten(1)).view_as(memory)

    torch.testing.assert_close(cell(memory, token), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_normalisation_values_are_left_alone(kind):
    cell = _cell(kind)
    memory, token = _memory(), _tokens(3)

    assert torch.equal(cell(memory, token), cell.update(memory, token))
    assert (cell(memory, token).square().mean(-1).sqrt() - 1).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_is_normalised_where_that_is_asked(kind):
    cell = _cell(kind, "slot")
    memory, token = _memory(), _tokens(3)
    updated = cell.update(memory, token)
    expected = updated / (updated.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    torch.testing.assert_close(cell(memory, token), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_changes_no_weight(kind):
    names = [_cell(kind, normalize).state_dict().keys() for normalize in ("slot", "none")]

    assert names[0] == names[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["slot", "none"])
def test_a_rollout_is_a_loop_of_steps(kind, normalize):
    cell = _cell(kind, normalize)
    memory, tokens = _memory(), _tokens(3, 5)

    torch.testing.assert_close(
        cell.rollout(memory, tokens), _steps(cell, memory, tokens), rtol=1e-10, atol=1e-10
    )


def _gradients(cell: Cell, memories: Tensor, memory: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Of a sum of all memories' numbers, each with a weight of its own."""
    names, parameters = zip(*cell.named_parameters(), strict=True)
    gradients = torch.autograd.grad((memories * weight).sum(), [memory, *parameters])
    return dict(zip(("memory", *names), gradients, strict=True))


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_gradients_of_the_fused_kernels_are_those_of_the_steps(kind, steps):
    cell = _cell(kind)
    memory, tokens = _memory().requires_grad_(), _tokens(3, steps)
    weight = torch.randn(3, steps, SLOTS, SLOT_WIDTH, dtype=torch.float64)
    fused = _gradients(cell, cell.rollout(memory, tokens), memory, weight)
    stepped = _gradients(cell, _steps(cell, memory, tokens), memory, weight)

    assert len(fused) == 6
    for name, gradient in stepped.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(fused[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", FUSED)
def test_only_a_cell_that_does_not_normalise_runs_fused(kind):
    called = []
    for normalize in ("slot", "none"):
        cell = _cell(kind, normalize)
        cell.unit.register_forward_hook(lambda *_, normalize=normalize: called.append(normalize))
        cell.rollout(_memory(), _tokens(3, 5))

    assert called == ["none"]


@pytest.mark.parametrize("kind", FUSED)
def test_a_rollout_can_be_taken_up_where_another_ended(kind):
    cell = _cell(kind)
    memory, tokens = _memory(), _tokens(3, 7)
    whole = cell.rollout(memory, tokens)
    first = cell.rollout(memory, tokens[:, :4])
    second = cell.rollout(first[:, -1], tokens[:, 4:])

    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["slot", "none"])
def test_sequences_do_not_meet_in_a_rollout(kind, normalize):
    cell = _cell(kind, normalize)
    memory, tokens = _memory(), _tokens(3, 5)
    whole = cell.rollout(memory, tokens)
    for n in range(3):
        alone = cell.rollout(memory[n : n + 1], tokens[n : n + 1])
        torch.testing.assert_close(alone[0], whole[n], rtol=1e-10, atol=1e-10)


def test_the_lstm_refuses_a_memory_without_two_halves():
    with pytest.raises(UsageError, match=r"3 x 5 numbers: cell\.kind = lstm needs two halves"):
        build_cell(CellConfig(kind="lstm"), VOCABULARY, slots=3, slot_width=5)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_the_other_cells_take_an_odd_memory(kind):
    cell = build_cell(CellConfig(kind=kind, width=8), VOCABULARY, slots=3, slot_width=5)

    assert cell(torch.randn(2, 3, 5), _tokens(2)).shape == (2, 3, 5)


class _Accumulator(Cell):
    """A cell of one's own: what it remembers is a sum of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, SLOTS * SLOT_WIDTH)

    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        return memory + self.embedding(token).view_as(memory)


def _network_with(cell: Cell) -> RecurrentNetwork:
    network = RecurrentNetwork(
        VOCABULARY,
        SLOTS,
        SLOT_WIDTH,
        CellConfig(width=8),
        ReadoutConfig(),
        DecoderConfig(width=8, heads=2),
    )
    network.cell = cell
    return network


def test_a_cell_of_ones_own_rolls_out_in_the_network():
    cell = _Accumulator()
    cell.normalize = False
    network, tokens = _network_with(cell), _tokens(4, 6)
    added = cell.embedding(tokens).unflatten(-1, (SLOTS, SLOT_WIDTH))
    memories = network.rollout(tokens)

    assert torch.equal(memories[:, 0], network.start(4))
    torch.testing.assert_close(memories[:, 1:], network.empty_memory + added.cumsum(1))


def test_a_cell_of_ones_own_normalises_its_slots_unless_told_otherwise():
    network, tokens = _network_with(_Accumulator()), _tokens(4, 6)
    memory = network.start(4)
    for step in range(6):
        added = network.cell.embedding(tokens[:, step]).view_as(memory)
        memory = normalize_slots(memory + added)

    torch.testing.assert_close(network.rollout(tokens)[:, -1], memory)
    torch.testing.assert_close(memory.square().mean(-1), torch.ones(4, SLOTS), rtol=1e-4, atol=0)
