"""Cells that can run fused, cells that cannot, and the formula of the lstm."""

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import architecture
from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig
from smtkit.errors import UsageError
from smtkit.networks.cells import Cell, GruCell, LstmCell, MlpCell, build_cell, normalize_slots
from smtkit.networks.rnn import RecurrentNetwork

VOCABULARY, SLOTS, SLOT_WIDTH, WIDTH = 11, 2, 6, 8
KINDS = ["mlp", "transformer", "gru", "lstm"]
FUSED = ["gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _cell(kind: str, normalize: str = "none") -> Cell:
    config = CellConfig(kind=kind, normalize=normalize, width=WIDTH, layers=1, heads=2)
    return build_cell(config, SLOTS, SLOT_WIDTH).double()


def _gated(kind: str, gate_bias: tuple[float, float] | None = None, slot_width: int = 6) -> Cell:
    settings = {"normalize": "none", "width": WIDTH, "layers": 1, "heads": 2}
    config = CellConfig(kind=kind, gate=kind != "gru", gate_bias=gate_bias, **settings)
    return build_cell(config, SLOTS, slot_width).double()


def _memory(count: int = 3) -> Tensor:
    return torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64)


def _inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def _steps(cell: Cell, memory: Tensor, inputs: Tensor) -> Tensor:
    """The memory after each input, by one call of the cell per step."""
    memories = []
    for step in range(inputs.shape[1]):
        memory = cell(memory, inputs[:, step])
        memories.append(memory)
    return torch.stack(memories, dim=1)


def _by_hand(cell: LstmCell, memory: Tensor, embedded: Tensor) -> Tensor:
    """One step of the lstm of one sequence, gate by gate; memory (K, D)."""
    weights = dict(cell.unit.named_parameters())
    flat = memory.flatten()
    half = len(flat) // 2
    hidden, carry = flat[:half], flat[half:]
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
    memory, inputs = _memory(), _inputs(3)
    expected = torch.stack([_by_hand(cell, memory[n], inputs[n]) for n in range(3)])

    torch.testing.assert_close(cell(memory, inputs), expected, rtol=1e-12, atol=1e-12)


def test_the_gru_is_that_of_torch():
    cell = _cell("gru")
    unit = nn.GRUCell(8, SLOTS * SLOT_WIDTH).double()
    unit.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in cell.unit.state_dict().items()}
    )
    memory, inputs = _memory(), _inputs(3)
    expected = unit(inputs, memory.flatten(1)).view_as(memory)

    torch.testing.assert_close(cell(memory, inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_normalisation_values_are_left_alone(kind):
    cell = _cell(kind)
    memory, inputs = _memory(), _inputs(3)

    assert torch.equal(cell(memory, inputs), cell.update(memory, inputs))
    assert (cell(memory, inputs).square().mean(-1).sqrt() - 1).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_is_normalised_where_that_is_asked(kind):
    cell = _cell(kind, "slot")
    memory, inputs = _memory(), _inputs(3)
    updated = cell.update(memory, inputs)
    expected = updated / (updated.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    torch.testing.assert_close(cell(memory, inputs), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_changes_no_weight(kind):
    names = [_cell(kind, normalize).state_dict().keys() for normalize in ("slot", "none")]

    assert names[0] == names[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["slot", "none"])
def test_a_rollout_is_a_loop_of_steps(kind, normalize):
    cell = _cell(kind, normalize)
    memory, inputs = _memory(), _inputs(3, 5)

    torch.testing.assert_close(
        cell.rollout(memory, inputs), _steps(cell, memory, inputs), rtol=1e-10, atol=1e-10
    )


def _gradients(
    cell: Cell, memories: Tensor, memory: Tensor, inputs: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    """Gradients of the sum of all numbers of `memories`, each times its number of `weight`."""
    names, parameters = zip(*cell.named_parameters(), strict=True)
    gradients = torch.autograd.grad((memories * weight).sum(), [memory, inputs, *parameters])
    return dict(zip(("memory", "inputs", *names), gradients, strict=True))


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_gradients_of_the_fused_kernels_are_those_of_the_steps(kind, steps):
    cell = _cell(kind)
    memory, inputs = _memory().requires_grad_(), _inputs(3, steps).requires_grad_()
    weight = torch.randn(3, steps, SLOTS, SLOT_WIDTH, dtype=torch.float64)
    fused = _gradients(cell, cell.rollout(memory, inputs), memory, inputs, weight)
    stepped = _gradients(cell, _steps(cell, memory, inputs), memory, inputs, weight)

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
        cell.rollout(_memory(), _inputs(3, 5))

    assert called == ["none"]


@pytest.mark.parametrize("kind", FUSED)
def test_a_rollout_can_be_taken_up_where_another_ended(kind):
    cell = _cell(kind)
    memory, inputs = _memory(), _inputs(3, 7)
    whole = cell.rollout(memory, inputs)
    first = cell.rollout(memory, inputs[:, :4])
    second = cell.rollout(first[:, -1], inputs[:, 4:])

    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["slot", "none"])
def test_sequences_do_not_meet_in_a_rollout(kind, normalize):
    cell = _cell(kind, normalize)
    memory, inputs = _memory(), _inputs(3, 5)
    whole = cell.rollout(memory, inputs)
    for n in range(3):
        alone = cell.rollout(memory[n : n + 1], inputs[n : n + 1])
        torch.testing.assert_close(alone[0], whole[n], rtol=1e-10, atol=1e-10)


def test_the_lstm_refuses_a_memory_without_two_halves():
    with pytest.raises(UsageError, match=r"3 x 5 numbers: cell\.kind = lstm needs two halves"):
        build_cell(CellConfig(kind="lstm"), slots=3, slot_width=5)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_the_other_cells_take_an_odd_memory(kind):
    cell = build_cell(CellConfig(kind=kind, width=WIDTH), slots=3, slot_width=5)

    assert cell.double()(_inputs(2).new_ones(2, 3, 5), _inputs(2)).shape == (2, 3, 5)


def test_the_gru_cell_is_the_formula_of_gated_recurrent_units():
    cell = GruCell(SLOTS, SLOT_WIDTH, WIDTH).double()
    memory, inputs = _memory(4), _inputs(4)
    state = memory.flatten(1)
    names = ("reset", "update", "new")
    from_input = dict(
        zip(
            names,
            (inputs @ cell.unit.weight_ih_l0.T + cell.unit.bias_ih_l0).chunk(3, dim=1),
            strict=True,
        )
    )
    from_state = dict(
        zip(
            names,
            (state @ cell.unit.weight_hh_l0.T + cell.unit.bias_hh_l0).chunk(3, dim=1),
            strict=True,
        )
    )
    reset = torch.sigmoid(from_input["reset"] + from_state["reset"])
    update = torch.sigmoid(from_input["update"] + from_state["update"])
    new = torch.tanh(from_input["new"] + reset * from_state["new"])
    updated = ((1 - update) * new + update * state).view_as(memory)
    expected = updated / (updated.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    torch.testing.assert_close(cell(memory, inputs), expected)


def test_the_mlp_cell_adds_its_output_to_the_memory():
    cell = MlpCell(SLOTS, SLOT_WIDTH, WIDTH, 1).double()
    with torch.no_grad():
        cell.to_memory.weight.zero_()
        cell.to_memory.bias.zero_()
    memory, inputs = normalize_slots(_memory(4)), _inputs(4)

    torch.testing.assert_close(cell(memory, inputs), memory, rtol=0, atol=1e-5)


def test_normalisation_divides_each_slot_by_its_root_mean_square():
    memory = 5 * torch.randn(4, SLOTS, SLOT_WIDTH, dtype=torch.float64)
    normalised = normalize_slots(memory)

    for row in range(4):
        for slot in range(SLOTS):
            values = memory[row, slot].tolist()
            scale = math.sqrt(sum(value**2 for value in values) / SLOT_WIDTH + 1e-6)
            expected = [value / scale for value in values]
            assert normalised[row, slot].tolist() == pytest.approx(expected)


def test_a_memory_of_zeros_is_normalised_to_zeros():
    assert (normalize_slots(torch.zeros(2, SLOTS, SLOT_WIDTH)) == 0).all()


class _Accumulator(Cell):
    """A new cell, as a user would write one: the memory is the sum of the inputs."""

    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        return memory + inputs.view_as(memory)


def _network_with(cell: Cell) -> RecurrentNetwork:
    parts = CellConfig(width=SLOTS * SLOT_WIDTH), ReadoutConfig(), DecoderConfig(width=8, heads=2)
    network = RecurrentNetwork(architecture(VOCABULARY, SLOTS, SLOT_WIDTH, *parts))
    network.transition.cell = cell
    return network


def test_a_new_cell_rolls_out_in_the_network():
    cell = _Accumulator()
    cell.normalize = False
    network, tokens = _network_with(cell), torch.randint(VOCABULARY, (4, 6))
    added = network.transition.input(tokens).unflatten(-1, (SLOTS, SLOT_WIDTH))
    memories = network.rollout(tokens)

    assert torch.equal(memories[:, 0], network.start(4))
    torch.testing.assert_close(memories[:, 1:], network.empty_memory + added.cumsum(1))


def test_a_new_cell_normalises_its_slots_by_default():
    network, tokens = _network_with(_Accumulator()), torch.randint(VOCABULARY, (4, 6))
    memory = network.start(4)
    for step in range(6):
        added = network.transition.input(tokens[:, step]).view_as(memory)
        memory = normalize_slots(memory + added)

    torch.testing.assert_close(network.rollout(tokens)[:, -1], memory)
    torch.testing.assert_close(memory.square().mean(-1), torch.ones(4, SLOTS), rtol=1e-4, atol=0)


# Gates.

GATED = ["mlp", "transformer", "gru"]


@pytest.mark.parametrize("kind", GATED[:2])
def test_a_gate_replaces_a_share_of_each_number(kind):
    cell, memory, inputs = _gated(kind), _memory(), _inputs(3)
    outputs: list[Tensor] = []
    cell.to_memory.register_forward_hook(lambda *call: outputs.append(call[-1]))
    updated = cell(memory, inputs)
    (output,) = outputs
    slots, numbers = (1, SLOTS * SLOT_WIDTH) if kind == "mlp" else (SLOTS, SLOT_WIDTH)
    found, before = (values.reshape(3, slots, numbers) for values in (updated, memory))
    for n in range(3):
        for slot in range(slots):
            row = output.reshape(3, slots, 2 * numbers)[n, slot].tolist()
            for j in range(numbers):
                gate = 1 / (1 + math.exp(-row[j]))
                expected = (1 - gate) * before[n, slot, j] + gate * math.tanh(row[numbers + j])
                assert found[n, slot, j].item() == pytest.approx(expected.item())


def _without_candidates(cell: Cell) -> None:
    """Makes the cell replace by zeros."""
    if isinstance(cell, GruCell):
        affected, candidate = list(cell.unit.parameters()), slice(2 * cell.unit.hidden_size, None)
    else:
        affected = list(cell.to_memory.parameters())
        candidate = slice(cell.to_memory.out_features // 2, None)
    with torch.no_grad():
        for parameter in affected:
            parameter[candidate] = 0


def _replaced_share(cell: Cell, memory: Tensor, inputs: Tensor) -> Tensor:
    """Share of each number of the memory that a step replaces, (N, K, D)."""
    _without_candidates(cell)
    return 1 - cell(memory, inputs) / memory


@torch.no_grad()
@pytest.mark.parametrize("bias", [-3.0, 0.0, 1.5])
@pytest.mark.parametrize("kind", GATED)
def test_initially_gates_open_as_far_as_their_bias(kind, bias):
    cell = _gated(kind, (bias, bias), slot_width=512)
    memory = torch.randn(200, SLOTS, 512, dtype=torch.float64)
    share = _replaced_share(cell, memory, _inputs(200))

    assert share.logit().mean().item() == pytest.approx(bias, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("kind", GATED)
def test_biases_are_spread_over_the_numbers_of_each_slot(kind):
    cell = _gated(kind, (-4, 1.5))
    for name, parameter in cell.named_parameters():
        if "weight" in name and ("unit" in name or "to_memory" in name):
            parameter.zero_()
    share = _replaced_share(cell, _memory(), _inputs(3))
    expected = [1 / (1 + math.exp(4 - 5.5 * j / 5)) for j in range(6)]

    torch.testing.assert_close(share, torch.tensor(expected).double().expand_as(share))


@pytest.mark.parametrize("kind", GATED[:2])
def test_gates_are_half_open_unless_a_bias_is_given(kind):
    cell = _gated(kind)

    assert not cell.to_memory.bias[: cell.to_memory.out_features // 2].any()


def test_without_a_bias_the_gru_starts_from_the_weights_of_torch():
    torch.manual_seed(1)
    cell = build_cell(CellConfig(kind="gru", width=WIDTH), SLOTS, SLOT_WIDTH)
    torch.manual_seed(1)
    unit = nn.GRU(WIDTH, SLOTS * SLOT_WIDTH)

    for name, values in unit.state_dict().items():
        assert torch.equal(cell.unit.state_dict()[name], values)


@pytest.mark.parametrize("kind", GATED[:2])
def test_a_gated_memory_stays_between_minus_one_and_one(kind):
    cell = _gated(kind, (3.0, 3.0))
    memory, inputs = _memory().tanh(), 10 * _inputs(3, 20)
    memories = cell.rollout(memory, inputs)

    assert memories.abs().max() < 1
    torch.testing.assert_close(memories, _steps(cell, memory, inputs))
