"""Memory encoders: what a memory is made of, and slow second ways to the same memories."""

import math

import pytest
import torch
from pydantic import ValidationError

from smtkit.config import EncoderConfig
from smtkit.networks import encoders
from smtkit.networks.encoders import (
    BidirectionalEncoder,
    CausalEncoder,
    GatedEncoder,
    MemoryEncoder,
    RegisterQueries,
    build_encoder,
    select,
)
from smtkit.networks.transformer import rotary, rotate

VOCABULARY, WINDOW, SLOTS, SLOT_WIDTH, WIDTH, HEADS = 11, 7, 3, 8, 16, 2
CONTEXT = 3
EVERY_ENCODER = {
    "projection": {},
    "registers": {"memory": "registers"},
    "gated": {"memory": "gated"},
    "bidirectional": {"kind": "bidirectional"},
    "short-context": {"kind": "bidirectional", "context_length": CONTEXT},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _encoder(window: int = WINDOW, **settings: object) -> MemoryEncoder:
    sizes = {"slots": SLOTS, "slot_width": SLOT_WIDTH, "width": WIDTH, "layers": 2, "heads": HEADS}
    config = EncoderConfig(**{**sizes, "convolution": 3, **settings})
    return build_encoder(config, VOCABULARY, window).double()


@pytest.fixture(params=[0, 3], ids=["attention", "convolution"])
def convolution(request) -> int:
    return request.param


@pytest.fixture(params=EVERY_ENCODER)
def encoder(request, convolution) -> MemoryEncoder:
    return _encoder(convolution=convolution, **EVERY_ENCODER[request.param])


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape)


def _changed(tokens: torch.Tensor, position: int) -> torch.Tensor:
    other = tokens.clone()
    other[:, position] = (other[:, position] + 1) % VOCABULARY
    return other


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


def _normalised(slot: torch.Tensor) -> torch.Tensor:
    return slot / (slot.square().mean() + 1e-6).sqrt()


# What the kinds compute


def _alone(encoder: BidirectionalEncoder, read: torch.Tensor) -> torch.Tensor:
    """The memory (K, D) of one sequence (L,) of tokens, without padding and without a mask."""
    symbols = torch.cat((encoder.input(read), encoder.registers))
    said = encoder.trunk(symbols[None])[0, len(read) :]
    return torch.stack([_normalised(slot) for slot in encoder.projection(said)])


@pytest.mark.parametrize("context_length", [1, CONTEXT, WINDOW, None, 100])
def test_a_bidirectional_memory_is_a_pass_over_its_context_alone(context_length, convolution):
    encoder = _encoder(kind="bidirectional", context_length=context_length, convolution=convolution)
    tokens = _tokens(4, WINDOW)
    memory = encoder(tokens)

    for row in range(4):
        for position in range(WINDOW + 1):
            first = max(0, position - (context_length or WINDOW))
            expected = _alone(encoder, tokens[row, first:position])
            torch.testing.assert_close(memory[row, position], expected)


def test_the_context_length_is_the_window_unless_it_is_set():
    assert _encoder(5, kind="bidirectional").context_length == 5
    assert _encoder(5, kind="bidirectional", context_length=CONTEXT).context_length == CONTEXT


def _queried_slowly(queries: RegisterQueries, inputs: torch.Tensor) -> torch.Tensor:
    """inputs (L, C) -> (L, K, C), with attention written out for each position and head."""
    length, head_width = len(inputs), WIDTH // HEADS
    cosine, sine = rotary(length, head_width, inputs.device, inputs.dtype)
    result = torch.empty(length, SLOTS, WIDTH, dtype=inputs.dtype)
    for i in range(length):
        seen = inputs[: i + 1]
        key, value = queries.key_value(seen).chunk(2, dim=-1)
        for slot in range(SLOTS):
            stream = queries.registers[slot] + inputs[i]
            query = queries.query(stream)
            mixed = []
            for head in range(HEADS):
                own = slice(head * head_width, (head + 1) * head_width)
                turned = rotate(query[own], (cosine[i], sine[i]))
                keys = rotate(key[:, own], (cosine[: i + 1], sine[: i + 1]))
                shares = (keys @ turned / math.sqrt(head_width)).softmax(0)
                mixed.append(shares @ value[:, own])
            stream = stream + queries.output(torch.cat(mixed))
            stream = stream + queries.mlp(queries.mlp_norm(stream))
            result[i, slot] = queries.norm(stream)
    return result


def test_registers_attend_to_what_is_said_up_to_their_position(convolution):
    encoder = _encoder(memory="registers", convolution=convolution)
    tokens = _tokens(2, WINDOW)
    memory = encoder(tokens)

    for row in range(2):
        symbols = torch.cat((encoder.bos[None], encoder.input(tokens[row])))
        slots = encoder.projection(
            _queried_slowly(encoder.registers, encoder.trunk(symbols[None])[0])
        )
        for position in range(WINDOW + 1):
            for slot in range(SLOTS):
                expected = _normalised(slots[position, slot])
                torch.testing.assert_close(memory[row, position, slot], expected)


# What all encoders promise


def test_an_encoder_gives_a_memory_for_every_prefix(encoder):
    assert encoder(_tokens(2, WINDOW)).shape == (2, WINDOW + 1, SLOTS, SLOT_WIDTH)


@pytest.mark.parametrize("changed", range(WINDOW))
def test_a_token_changes_the_memories_after_it_alone(encoder, changed):
    tokens = _tokens(2, WINDOW)
    before, after = encoder(tokens), encoder(_changed(tokens, changed))

    torch.testing.assert_close(before[:, : changed + 1], after[:, : changed + 1])
    remembered = getattr(encoder, "context_length", WINDOW)
    for position in range(changed + 1, WINDOW + 1):
        forgotten = position - changed > remembered
        assert _differs(before[:, position], after[:, position]) != forgotten


def test_tokens_older_than_the_context_do_not_matter():
    encoder = _encoder(**EVERY_ENCODER["short-context"])
    tokens, others = _tokens(2, 20), _tokens(2, 20)
    others[:, -CONTEXT:] = tokens[:, -CONTEXT:]
    before, after = encoder(tokens)[:, -1], encoder(others)[:, -1]

    torch.testing.assert_close(before, after)
    assert _differs(before, encoder(_changed(tokens, 20 - CONTEXT))[:, -1])


def test_encoding_at_positions_is_a_selection_of_all(encoder):
    tokens = _tokens(3, WINDOW)
    memory = encoder.encode(tokens)
    positions = torch.tensor([[0, WINDOW], [3, 3], [6, 1]])
    chosen = encoder.encode_at(tokens, positions)

    torch.testing.assert_close(chosen, memory[torch.arange(3)[:, None], positions])
    everywhere = torch.arange(WINDOW + 1).expand(3, -1)
    torch.testing.assert_close(encoder.encode_at(tokens, everywhere), memory)


@pytest.mark.parametrize("settings", ["bidirectional", "short-context"])
def test_a_memory_that_is_asked_for_twice_costs_one_pass(settings):
    encoder, tokens = _encoder(**EVERY_ENCODER[settings]), _tokens(3, WINDOW)
    passes: list[int] = []
    encoder.trunk.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    positions = torch.tensor([[2, 5, 2, 2], [WINDOW, 0, 0, 1], [4, 4, 4, 4]])
    memory = encoder.encode_at(tokens, positions)
    distinct = sum(len(set(row)) for row in positions.tolist())

    assert sum(passes) == distinct
    encoder.trunk._forward_pre_hooks.clear()
    expected = encoder.encode(tokens)[torch.arange(3)[:, None], positions]
    torch.testing.assert_close(memory, expected)
    weights = torch.randn_like(memory)
    parameters = list(encoder.parameters())
    found = torch.autograd.grad((memory * weights).sum(), parameters)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 20, 70, 1000])
@pytest.mark.parametrize("settings", ["bidirectional", "short-context"])
def test_chunks_do_not_change_memories(monkeypatch, settings, at_once):
    encoder, tokens = _encoder(**EVERY_ENCODER[settings]), _tokens(3, WINDOW)
    whole = encoder(tokens)
    forwards = []
    encoder.trunk.register_forward_pre_hook(lambda _, inputs: forwards.append(inputs[1].numel()))
    monkeypatch.setattr(encoders, "_TOKENS_AT_ONCE_ON_CPU", at_once)

    torch.testing.assert_close(encoder(tokens), whole)
    assert max(forwards) <= max(at_once, encoder.context_length + SLOTS)
    if at_once >= 3 * (WINDOW + 1) * (WINDOW + SLOTS):
        assert len(forwards) == 1


def test_the_empty_memory_is_the_same_whatever_the_tokens(encoder):
    nothing = torch.empty(1, 0, dtype=torch.int64)
    empty = encoder(nothing)[:, 0]

    torch.testing.assert_close(encoder(_tokens(5, 4))[:, 0], empty.expand(5, -1, -1))
    first = torch.zeros(5, 2, dtype=torch.int64)
    torch.testing.assert_close(
        encoder.encode_at(_tokens(5, 9), first), empty[:, None].expand(5, 2, -1, -1)
    )


def test_sequences_of_a_batch_are_encoded_independently(encoder):
    tokens = _tokens(3, WINDOW)
    alone = torch.cat([encoder(row[None]) for row in tokens])

    torch.testing.assert_close(encoder(tokens), alone)


def test_slots_of_memory_differ_and_are_normalised_or_bounded(encoder):
    memory = encoder(_tokens(2, WINDOW))
    mean_square = memory.square().mean(-1)

    if isinstance(encoder, GatedEncoder):
        assert memory.abs().max() < 1
    else:
        torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=0, atol=1e-4)
    for position in range(WINDOW + 1):
        assert _differs(memory[:, position, 0], memory[:, position, 1])


def test_gradients_reach_all_parameters(encoder):
    tokens = torch.arange(VOCABULARY)[None]
    memory = encoder(tokens)
    (memory * torch.randn_like(memory)).sum().backward()

    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_gradients_of_the_empty_memory_reach_the_registers_alone():
    encoder = _encoder(**EVERY_ENCODER["bidirectional"])
    memory = encoder.encode_at(_tokens(2, WINDOW), torch.zeros(2, 1, dtype=torch.int64))
    (memory * torch.randn_like(memory)).sum().backward()

    assert encoder.registers.grad.isfinite().all()
    assert encoder.registers.grad.any()
    assert not encoder.input.weight.grad.any()


@pytest.mark.parametrize("settings", EVERY_ENCODER)
def test_compiling_an_encoder_compiles_what_every_method_calls(settings):
    encoder, tokens = _encoder(**EVERY_ENCODER[settings]), _tokens(2, WINDOW)
    memory, graphs = encoder(tokens), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    encoder.compile(backend=backend)
    positions = torch.tensor([[0, 3], [WINDOW, 1]])
    expected = memory[torch.arange(2)[:, None], positions]
    torch.testing.assert_close(encoder.encode_at(tokens, positions), expected)
    assert graphs
    torch.testing.assert_close(encoder(tokens), memory)


def _gated_by_hand(
    encoder: GatedEncoder, tokens: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """Memories (T + 1, K, D) of one sequence (T,), step by step, from `start` (K, D)."""
    slots = start @ encoder.from_memory.weight.T + encoder.from_memory.bias
    sequence = torch.cat((slots + encoder.slot_embedding, encoder.input(tokens)))
    memories = [start]
    for i in range(len(tokens)):
        feature = encoder.trunk(sequence[None, : SLOTS + i + 1])[0, -1]
        gate, candidate = encoder.gate_and_candidate(feature).view(2, SLOTS, SLOT_WIDTH)
        gate = 1 / (1 + torch.exp(-gate))
        memories.append((1 - gate) * memories[-1] + gate * torch.tanh(candidate))
    return torch.stack(memories)


@pytest.mark.parametrize("begins", ["empty", "start"])
def test_gated_memory_is_kept_or_overwritten_step_by_step(begins, convolution):
    encoder, tokens = _encoder(memory="gated", convolution=convolution), _tokens(3, WINDOW)
    start = torch.rand(3, SLOTS, SLOT_WIDTH).double() if begins == "start" else None
    memory = encoder.encode(tokens, start)

    for row in range(3):
        first = encoder.initial if start is None else start[row]
        torch.testing.assert_close(memory[row], _gated_by_hand(encoder, tokens[row], first))


@pytest.mark.parametrize(("bias", "kept"), [((-30.0, -30.0), True), ((30.0, 30.0), False)])
def test_the_bias_of_the_gates_sets_what_is_kept(bias, kept):
    """Shut gates keep the memory exactly; open ones leave nothing of it."""
    encoder, tokens = _encoder(memory="gated", gate_bias=bias), _tokens(2, WINDOW)
    starts = torch.rand(2, 2, SLOTS, SLOT_WIDTH).double()
    with torch.no_grad():  # only the bias decides
        encoder.gate_and_candidate.weight.zero_()
    one, other = (encoder.encode(tokens, start) for start in starts)

    if kept:
        torch.testing.assert_close(one, starts[0][:, None].expand_as(one))
    else:
        torch.testing.assert_close(one[:, 1:], other[:, 1:])


def test_biases_of_the_gates_are_spread_over_a_slot():
    encoder = _encoder(memory="gated", gate_bias=(-4.0, 1.5))
    bias = encoder.gate_and_candidate.bias[: SLOTS * SLOT_WIDTH].view(SLOTS, SLOT_WIDTH)

    assert (bias[0] == bias[2]).all()
    assert (bias[0, 0], bias[0, -1]) == (-4.0, 1.5)
    torch.testing.assert_close(bias[0].diff(), torch.full((SLOT_WIDTH - 1,), 5.5 / 7).double())


@pytest.mark.parametrize("settings", EVERY_ENCODER)
def test_an_encoder_is_rebuilt_from_its_tensors(settings):
    encoder, other = _encoder(**EVERY_ENCODER[settings]), _encoder(**EVERY_ENCODER[settings])
    tokens = _tokens(2, WINDOW)
    assert _differs(encoder(tokens), other(tokens))
    other.load_state_dict(encoder.state_dict())

    torch.testing.assert_close(encoder(tokens), other(tokens))


def test_causal_encoders_alone_give_all_memories_in_one_pass():
    parallel = {name: _encoder(**settings).parallel for name, settings in EVERY_ENCODER.items()}

    assert parallel == {
        "projection": True,
        "registers": True,
        "gated": True,
        "bidirectional": False,
        "short-context": False,
    }
    assert isinstance(_encoder(), CausalEncoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bidirectional", "memory": "registers"}, r"memory = registers .* projection"),
        ({"context_length": 9}, r"context_length \(9\) .* unset"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        EncoderConfig(**settings)


def test_one_pass_equals_encoding_every_prefix_alone(encoder):
    tokens = _tokens(2, WINDOW)
    memory = encoder(tokens)

    for length in range(WINDOW + 1):
        torch.testing.assert_close(memory[:, length], encoder(tokens[:, :length])[:, -1])


def test_select_looks_up_each_row_by_its_own_positions():
    values, positions = torch.randn(3, 5, 2), torch.tensor([[4, 0], [1, 1], [2, 3]])
    naive = [[values[row, i].tolist() for i in positions[row]] for row in range(3)]

    assert select(values, positions).tolist() == naive
