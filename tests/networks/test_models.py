"""The networks: causality, independence of rows, and slow second ways to the same numbers."""

import cmath
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import architecture
from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.networks.cells import GruCell, MlpCell, normalize_slots
from smtkit.networks.decoder import DecoderReadout, FutureDecoder
from smtkit.networks.encoders import CausalEncoder, select
from smtkit.networks.heads import MlpReadout
from smtkit.networks.inputs import no_tokens
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import sample_each
from smtkit.networks.transformer import (
    Attention,
    CausalConvolution,
    Transformer,
    rotary,
    rotate,
)
from smtkit.networks.transition import Transition

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 3, 8
CELLS = ["mlp", "transformer", "gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[0, 3], ids=["attention", "convolution"])
def encoder(request) -> CausalEncoder:
    config = EncoderConfig(
        slots=SLOTS,
        slot_width=SLOT_WIDTH,
        width=16,
        layers=2,
        heads=2,
        convolution=request.param,
    )
    return CausalEncoder(config, VOCABULARY).double()


@pytest.fixture
def decoder() -> FutureDecoder:
    config = DecoderConfig(width=16, layers=2, heads=2)
    return FutureDecoder(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()


def _transition(kind: str) -> Transition:
    config = CellConfig(kind=kind, width=16, layers=2, heads=2)
    return Transition(config, VOCABULARY, SLOTS, SLOT_WIDTH).double()


def _memory(count: int) -> torch.Tensor:
    return normalize_slots(torch.randn(count, SLOTS, SLOT_WIDTH, dtype=torch.float64))


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


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


def test_an_encoder_gives_a_memory_for_every_prefix(encoder):
    assert encoder(_tokens(2, 7)).shape == (2, 8, SLOTS, SLOT_WIDTH)


@pytest.mark.parametrize("changed", [0, 3, 6])
def test_a_token_changes_no_memory_up_to_its_position(encoder, changed):
    tokens = _tokens(2, 7)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    before, after = encoder(tokens), encoder(other)

    torch.testing.assert_close(before[:, : changed + 1], after[:, : changed + 1])
    for position in range(changed + 1, 8):
        assert _differs(before[:, position], after[:, position])


def test_one_pass_equals_encoding_every_prefix_alone(encoder):
    tokens = _tokens(2, 7)
    memory = encoder(tokens)

    for length in range(8):
        torch.testing.assert_close(memory[:, length], encoder(tokens[:, :length])[:, -1])


def test_the_empty_memory_is_the_same_for_all_sequences(encoder):
    memory = encoder(_tokens(5, 4))

    torch.testing.assert_close(memory[:, 0], memory[:1, 0].expand(5, -1, -1))


def test_encoding_at_positions_selects_from_the_whole(encoder):
    tokens = _tokens(3, 7)
    positions = torch.tensor([[0, 7], [3, 3], [6, 1]])
    memory, chosen = encoder(tokens), encoder.encode_at(tokens, positions)

    for row in range(3):
        for column in range(2):
            wanted = memory[row, positions[row, column]]
            torch.testing.assert_close(chosen[row, column], wanted)


def test_slots_of_memory_have_a_root_mean_square_of_one(encoder):
    mean_square = encoder(_tokens(2, 7)).square().mean(-1)

    torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=0, atol=1e-4)


def test_sequences_of_a_batch_are_encoded_independently(encoder):
    tokens = _tokens(3, 7)
    alone = torch.cat([encoder(row[None]) for row in tokens])

    torch.testing.assert_close(encoder(tokens), alone)


def test_select_looks_up_each_row_by_its_own_positions():
    values, positions = torch.randn(3, 5, 2), torch.tensor([[4, 0], [1, 1], [2, 3]])
    naive = [[values[row, i].tolist() for i in positions[row]] for row in range(3)]

    assert select(values, positions).tolist() == naive


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


def test_the_gru_cell_is_the_formula_of_gated_recurrent_units():
    cell = GruCell(SLOTS, SLOT_WIDTH, 16).double()
    memory, inputs = _memory(4), torch.randn(4, 16, dtype=torch.float64)
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
    cell = MlpCell(SLOTS, SLOT_WIDTH, 16, 1).double()
    with torch.no_grad():
        cell.to_memory.weight.zero_()
        cell.to_memory.bias.zero_()
    memory, inputs = _memory(4), torch.randn(4, 16, dtype=torch.float64)

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


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    query, key = torch.randn(2, 8, dtype=torch.float64)
    rotation = rotary(20, 8, torch.device("cpu"), torch.float64)
    queries, keys = (rotate(vector.expand(1, 1, 20, -1), rotation)[0, 0] for vector in (query, key))
    products = queries @ keys.T

    for distance in range(-10, 11):
        diagonal = products.diagonal(distance)
        # The angles are computed in float32.
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert _differs(products.diagonal(0)[:10], products.diagonal(1)[:10])


def _rotated(vector: list[float], position: int) -> list[complex]:
    """Pairs (first half, second half) as complex numbers, turned by their angles."""
    half = len(vector) // 2
    return [
        complex(vector[k], vector[half + k])
        * cmath.exp(1j * position / 10_000 ** (2 * k / len(vector)))
        for k in range(half)
    ]


def _naive_attention(attention: Attention, inputs: np.ndarray, *, causal: bool) -> np.ndarray:
    """Attention of one sequence (L, C), one head and one pair of positions at a time."""
    length, width = inputs.shape
    head_width = width // attention.heads
    weight = attention.query_key_value.weight.detach().numpy()
    query, key, value = ((inputs @ weight.T)[:, n * width : (n + 1) * width] for n in range(3))
    mixed = np.zeros((length, width))
    for head in range(attention.heads):
        own = slice(head * head_width, (head + 1) * head_width)
        for i in range(length):
            turned = _rotated(query[i, own].tolist(), i)
            seen = range(i + 1) if causal else range(length)
            scores = [
                sum(
                    (q * k.conjugate()).real
                    for q, k in zip(turned, _rotated(key[j, own].tolist(), j), strict=True)
                )
                / math.sqrt(head_width)
                for j in seen
            ]
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed[i, own] = sum(
                share * value[j, own] for share, j in zip(shares, seen, strict=True)
            )
    return mixed @ attention.output.weight.detach().numpy().T


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_a_loop_over_pairs_of_positions(causal):
    attention = Attention(16, 2, causal=causal).double()
    inputs = torch.randn(2, 6, 16, dtype=torch.float64)
    rotation = rotary(6, 8, inputs.device, inputs.dtype)
    mixed = attention(inputs, rotation).detach().numpy()

    for row in range(2):
        expected = _naive_attention(attention, inputs[row].numpy(), causal=causal)
        np.testing.assert_allclose(mixed[row], expected, atol=1e-5)


def test_a_transformer_tells_the_order_of_its_inputs():
    transformer = Transformer(16, 1, 2, causal=False).double()
    inputs = torch.randn(1, 5, 16, dtype=torch.float64)
    reversed_twice = transformer(inputs.flip(1)).flip(1)

    assert _differs(transformer(inputs), reversed_twice)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_causal_convolution_is_a_grouped_convolution(kernel, length):
    convolution = CausalConvolution(16, kernel).double()
    inputs = torch.randn(2, length, 16, dtype=torch.float64)
    padded = F.pad(inputs.transpose(1, 2), (kernel - 1, 0))
    expected = F.conv1d(padded, convolution.weight.T[:, None], groups=16).transpose(1, 2)

    torch.testing.assert_close(convolution(inputs), expected)


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


def test_a_network_is_rebuilt_from_its_architecture():
    network = _network("decoder", "transformer")
    rebuilt = RecurrentNetwork(network.architecture).double()
    rebuilt.load_state_dict(network.state_dict())
    tokens = _tokens(2, 5)

    torch.testing.assert_close(rebuilt.rollout(tokens), network.rollout(tokens))


def test_the_empty_memory_is_saved_with_the_network():
    assert "empty_memory" in _network().state_dict()


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
    texts = [
        list(islice(network.generate(generator=torch.Generator().manual_seed(7)), 30))
        for _ in range(2)
    ]

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


LOGITS = [1.0, 3.0, 0.0, 2.0, -1.0]


def _sample(**settings) -> int:
    return int(sample_each(torch.tensor([LOGITS]), **settings))


def _softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def _kept(probabilities: list[float], tokens: set[int]) -> list[float]:
    total = sum(probabilities[token] for token in tokens)
    return [p / total if token in tokens else 0.0 for token, p in enumerate(probabilities)]


# softmax(LOGITS) is about 0.086, 0.636, 0.032, 0.234, 0.012
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, _softmax(LOGITS)),
        ({"temperature": 2.0}, _softmax([logit / 2 for logit in LOGITS])),
        ({"temperature": 0.5}, _softmax([logit * 2 for logit in LOGITS])),
        ({"top_k": 1}, _kept(_softmax(LOGITS), {1})),
        ({"top_k": 3}, _kept(_softmax(LOGITS), {0, 1, 3})),
        ({"top_k": 99}, _softmax(LOGITS)),
        ({"top_p": 0.1}, _kept(_softmax(LOGITS), {1})),
        ({"top_p": 0.6}, _kept(_softmax(LOGITS), {1})),
        ({"top_p": 0.65}, _kept(_softmax(LOGITS), {1, 3})),
        ({"top_p": 0.9}, _kept(_softmax(LOGITS), {0, 1, 3})),
        ({"top_p": 1.0}, _softmax(LOGITS)),
        # Among the two likeliest alone, token 1 has probability 0.73.
        ({"top_k": 2, "top_p": 0.7}, _kept(_softmax(LOGITS), {1})),
    ],
)
def test_samples_follow_their_distribution(settings, expected):
    draws = 3000
    generator = torch.Generator().manual_seed(1)
    counts = Counter(_sample(generator=generator, **settings) for _ in range(draws))

    for token, probability in enumerate(expected):
        deviation = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[token] / draws - probability) <= 4 * deviation


def test_a_temperature_of_zero_takes_the_likeliest():
    assert {_sample(temperature=0) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert {_sample(temperature=temperature) for _ in range(20)} == {1}
