"""Training state: saved and loaded exactly; damaged checkpoints are refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import everything_below, flip_byte
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.training.checkpoint import TrainingState


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, so that NaN equals NaN and 0.0 differs from -0.0."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def training_state(seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    return TrainingState(network, torch.optim.AdamW(network.parameters(), lr=0.1))


def train(state: TrainingState, steps: int) -> None:
    """Makes updates on data that depend on the step alone."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        loss = state.network(torch.randn(8, 3, generator=generator)).square().sum()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        state.tokens += 8
        state.seconds += 0.1


def bits(state: TrainingState) -> dict[str, bytes]:
    tensors = dict(state.network.state_dict())
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": tensor for name, tensor in values.items()}
    return {name: bytes_of(tensor) for name, tensor in tensors.items()}


def test_training_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, loaded = training_state(), training_state(seed=1)
    train(state, 3)
    state.save(tmp_path)
    assert bits(loaded) != bits(state)
    assert loaded.load(tmp_path)
    assert bits(loaded) == bits(state)
    assert (loaded.step, loaded.tokens, loaded.seconds) == (3, 24, state.seconds)


def test_training_goes_on_after_loading_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight, stopped, resumed = training_state(), training_state(), training_state(seed=1)
    train(straight, 7)
    train(stopped, 3)
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    train(resumed, 4)
    assert bits(resumed) == bits(straight)


def test_a_directory_without_a_checkpoint_loads_nothing(tmp_path: Path) -> None:
    state = training_state()
    before = bits(state)
    assert not state.load(tmp_path)
    assert bits(state) == before


def test_a_later_checkpoint_replaces_the_earlier(tmp_path: Path) -> None:
    state = training_state()
    for _ in range(3):
        train(state, 1)
        state.save(tmp_path)
    assert set(everything_below(tmp_path)) == {
        "checkpoint.json",
        "checkpoint-000000003.safetensors",
    }


def test_a_checkpoint_that_could_not_be_written_leaves_the_earlier_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = training_state()
    train(state, 1)
    state.save(tmp_path)
    saved = bits(state)
    train(state, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smtkit.storage.tensors.save_file", full)
    with pytest.raises(InputOutputError, match="No space left"):
        state.save(tmp_path)
    loaded = training_state(seed=1)
    assert loaded.load(tmp_path)
    assert loaded.step == 1
    assert bits(loaded) == saved


def damage_by_flipping(directory: Path) -> None:
    path = directory / "checkpoint-000000002.safetensors"
    flip_byte(path, path.stat().st_size - 3)


def damage_by_cutting(directory: Path) -> None:
    os.truncate(directory / "checkpoint-000000002.safetensors", 100)


def damage_by_removing(directory: Path) -> None:
    (directory / "checkpoint-000000002.safetensors").unlink()


def damage_the_record(directory: Path) -> None:
    (directory / "checkpoint.json").write_text("{")


def empty_the_record(directory: Path) -> None:
    (directory / "checkpoint.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_flipping,
        damage_by_cutting,
        damage_by_removing,
        damage_the_record,
        empty_the_record,
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any) -> None:
    state = training_state()
    train(state, 2)
    state.save(tmp_path)
    damage(tmp_path)
    loaded = training_state(seed=1)
    before = bits(loaded)
    with pytest.raises(ArtifactError) as caught:
        loaded.load(tmp_path)
    assert str(tmp_path / "checkpoint") in str(caught.value)
    assert bits(loaded) == before
