"""Architectures with weights: saved, loaded, and refused where they do not fit."""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import architecture
from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.errors import ArtifactError, UsageError
from smtkit.networks.architecture import Architecture, Network
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher, Teacher
from smtkit.storage.tensors import load_tensors, save_tensors

VOCABULARY, SLOTS, SLOT_WIDTH = 11, 2, 6
CELLS = ["mlp", "transformer", "gru", "lstm"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _architecture(
    cell: str = "mlp", readout: str = "mlp", encoder: dict[str, Any] | None = None
) -> Architecture:
    sizes = {"slots": SLOTS, "slot_width": SLOT_WIDTH, "width": 16, "heads": 2}
    return architecture(
        VOCABULARY,
        SLOTS,
        SLOT_WIDTH,
        CellConfig(kind=cell, width=16, heads=2),
        ReadoutConfig(kind=readout),
        DecoderConfig(width=16, heads=2),
        encoder=None if encoder is None else EncoderConfig(**sizes, **encoder),
    )


def _assert_equal(one: Network, other: Network) -> None:
    assert one.architecture == other.architecture
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("readout", ["mlp", "decoder"])
def test_a_saved_rnn_is_loaded_as_it_was(tmp_path, cell, readout):
    network = RecurrentNetwork(_architecture(cell, readout))
    network.save(tmp_path / "model")
    loaded = RecurrentNetwork.load(tmp_path / "model")
    tokens = torch.randint(VOCABULARY, (3, 5))

    _assert_equal(loaded, network)
    assert torch.equal(loaded.rollout(tokens), network.rollout(tokens))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded.rollout(tokens).sum().backward()


@pytest.mark.parametrize("cell", ["mlp", "transformer"])
def test_a_saved_rnn_with_gates_is_loaded_as_it_was(tmp_path, cell):
    gates = {"gate": True, "gate_bias": (-4, 1.5), "normalize": "none"}
    plain = _architecture(cell)
    changed = plain.cell.model_copy(update=gates)
    network = RecurrentNetwork(plain.model_copy(update={"cell": changed}))
    network.save(tmp_path / "model")
    loaded = RecurrentNetwork.load(tmp_path / "model")
    tokens = torch.randint(VOCABULARY, (3, 5))

    _assert_equal(loaded, network)
    assert torch.equal(loaded.rollout(tokens), network.rollout(tokens))


@pytest.mark.parametrize(
    "encoder", [{}, {"memory": "registers"}, {"kind": "bidirectional", "context_length": 4}]
)
@pytest.mark.parametrize("readout", ["mlp", "decoder"])
def test_a_saved_teacher_is_loaded_as_it_was(tmp_path, encoder, readout):
    teacher = Teacher(_architecture(readout=readout, encoder=encoder))
    teacher.save(tmp_path / "model")
    loaded = Teacher.load(tmp_path / "model")
    tokens = torch.randint(VOCABULARY, (3, 5))

    _assert_equal(loaded, teacher)
    assert torch.equal(loaded.encoder(tokens), teacher.encoder(tokens))


@pytest.mark.parametrize("readout", ["mlp", "decoder"])
def test_the_teacher_of_labels_is_the_teacher_without_its_encoder(tmp_path, readout):
    teacher = Teacher(_architecture(readout=readout, encoder={}))
    LabelTeacher.of(teacher).save(tmp_path / "model")
    parts = LabelTeacher.load(tmp_path / "model").state_dict()
    expected = teacher.state_dict()

    assert torch.equal(parts.pop("empty_memory"), teacher.encoder.empty_memory())
    assert parts.keys() == {name for name in expected if not name.startswith("encoder.")}
    assert all(torch.equal(parts[name], expected[name]) for name in parts)


def test_loading_draws_no_random_numbers(tmp_path):
    RecurrentNetwork(_architecture()).save(tmp_path / "model")
    before = torch.get_rng_state()
    RecurrentNetwork.load(tmp_path / "model")

    assert torch.equal(torch.get_rng_state(), before)


def test_an_encoder_of_another_memory_is_refused():
    config = _architecture(encoder={}).model_dump()
    config["memory"]["slots"] = 3

    with pytest.raises(ValueError, match="the encoder has 2 slots of 6, the memory 3 of 6"):
        Architecture(**config)


def test_an_rnn_is_no_teacher(tmp_path):
    with pytest.raises(UsageError, match="a teacher has one"):
        Teacher(_architecture())
    RecurrentNetwork(_architecture()).save(tmp_path / "model")

    assert "a teacher has one" in _refused(tmp_path / "model", Teacher)


def _refused(path: Path, network: type[Network] = RecurrentNetwork) -> str:
    with pytest.raises(ArtifactError) as caught:
        network.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200
    return message


def _changed(header: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    *sections, last = key.split(".")
    copied = json.loads(json.dumps(header))
    table = copied
    for section in sections:
        table = table[section]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return copied


HUGE = 10**9
# key of the header, forged value (None: the key is missing), words of the message
FORGED: dict[str, tuple[str, object, tuple[str, ...]]] = {
    "missing key": ("vocabulary_size", None, ("'vocabulary_size'", "found nothing")),
    "missing section": ("cell", None, ("'cell'", "found nothing")),
    "text for a number": ("vocabulary_size", "11", ("'vocabulary_size'", "integer", "found '11'")),
    "fraction": ("memory.slots", 2.5, ("'memory.slots'", "integer", "found 2.5")),
    "truth value": ("memory.slots", True, ("'memory.slots'", "integer", "found True")),
    "list for a section": ("cell", [1], ("'cell'", "found [1]")),
    "unknown kind": ("cell.kind", "rnn\n", ("'cell.kind'", "'mlp'", r"found 'rnn\n'")),
    "negative": ("cell.width", -16, ("'cell.width'", "greater than 0", "found -16")),
    "unknown key": ("cell.size\n", 3, (r"'cell.size\n'", "not permitted", "found 3")),
    "long text": ("cell.kind", "x" * 10**6, ("'cell.kind'", "found 'xxxx")),
    "other vocabulary": ("vocabulary_size", 12, ("[11]", "[12]", "tensor 'readout.layers.bias'")),
    "other width": ("cell.width", 18, ("[16]", "[18]", "tensor 'transition.")),
    "other kind": ("cell.kind", "gru", ("tensor 'transition.cell.", "found", "expected nothing")),
    "hidden readout": ("readout.hidden", 7, ("tensor 'readout.layers.", "expected")),
    "one layer more": (
        "cell.layers",
        2,
        ("tensor 'transition.cell.blocks.1", "found nothing, expected"),
    ),
    "many layers": ("cell.layers", HUGE, ("cell.layers 1000000000", "more than the tensors in")),
    "large width": ("cell.width", HUGE, ("header: ", "1000000000")),
    "large vocabulary": ("vocabulary_size", HUGE, ("expected", "1000000000")),
    "large memory": ("memory.slots", HUGE, ("expected", "1000000000")),
    "width of 60 bits": ("cell.width", 2**60, ()),
    "width of 300 bits": ("cell.width", 2**300, ()),
    "layers of 2000 bits": (
        "cell.layers",
        2**2000,
        ("'cell.layers'", "less than", "found 11481"),
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_refused_in_one_line(tmp_path, name):
    key, value, words = FORGED[name]
    path = tmp_path / "model"
    RecurrentNetwork(_architecture()).save(path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, _changed(header, key, value))
    tracemalloc.start()
    started = time.process_time()
    message = _refused(path)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    for word in words:
        assert word in message
    assert seconds < 5
    assert peak < 2**25


@pytest.mark.parametrize("key", ["encoder.layers", "decoder.layers", "cell.layers"])
def test_layers_without_end_are_refused_wherever_they_are(tmp_path, key):
    path = tmp_path / "model"
    Teacher(_architecture("transformer", encoder={})).save(path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, _changed(header, key, HUGE))

    assert f"{key} {HUGE}" in _refused(path, Teacher)


def test_layers_that_the_network_does_not_have_may_be_many(tmp_path):
    settings = _architecture("gru").model_dump()
    settings["cell"]["layers"] = settings["decoder"]["layers"] = HUGE
    network = RecurrentNetwork(Architecture(**settings))
    network.save(tmp_path / "model")

    _assert_equal(RecurrentNetwork.load(tmp_path / "model"), network)


@pytest.mark.parametrize(
    "header", ["", "{", "[]", "3", "null", '"text"', "[" * 10**5, "9" * 10**4, '{"cell": NaN}']
)
def test_what_is_no_header_is_refused_in_one_line(tmp_path, header):
    path = tmp_path / "model"
    save_file(dict(RecurrentNetwork(_architecture()).state_dict()), path, {"smtkit": header})

    _refused(path)


def _without(tensors: dict[str, Any]) -> None:
    del tensors["empty_memory"]


def _renamed(tensors: dict[str, Any]) -> None:
    tensors["empty\nmemory"] = tensors.pop("empty_memory")


def _longer(tensors: dict[str, Any]) -> None:
    tensors["empty_memory"] = torch.zeros(SLOTS + 1, SLOT_WIDTH)


def _halved(tensors: dict[str, Any]) -> None:
    tensors["empty_memory"] = tensors["empty_memory"].half()


def _more(tensors: dict[str, Any]) -> None:
    tensors["another"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "tensor 'empty_memory': found nothing, expected torch.float32 [2, 6]"),
        (_renamed, "tensor 'empty\\nmemory': found torch.float32 [2, 6], expected nothing"),
        (
            _longer,
            "'empty_memory': found torch.float32 [3, 6], expected torch.float32 [2, 6]",
        ),
        (
            _halved,
            "'empty_memory': found torch.float16 [2, 6], expected torch.float32 [2, 6]",
        ),
        (_more, "tensor 'another': found torch.float32 [3], expected nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "model"
    RecurrentNetwork(_architecture()).save(path)
    tensors, header = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, header)

    assert message in _refused(path)
