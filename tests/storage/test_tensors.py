"""Weights in safetensors: exact, without pickle, refused when damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts import everything_below
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.tensors import load_tensors, save_tensors


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, so that NaN equals NaN and 0.0 differs from -0.0."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_and_header_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weird = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45])
    tensors = {
        "float32": weird,
        "float16": weird.half(),
        "bfloat16": weird.bfloat16(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    header = {"width": 3, "names": ["a", "\N{SNOWMAN}"], "nested": {"x": None}}
    save_tensors(path, tensors, header)
    loaded, found = load_tensors(path)
    assert found == header
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bytes_of(loaded[name]) == bytes_of(tensor), name


def test_slices_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "t.safetensors", {"first": whole[:3], "second": whole[3:]}, {})
    loaded, _ = load_tensors(tmp_path / "t.safetensors")
    assert loaded["first"].tolist() == [0, 1, 2]
    assert loaded["second"].tolist() == [3, 4, 5]


def test_weights_are_one_plain_safetensors_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {"x": 1})
    assert load_file(tmp_path / "t.safetensors")["a"].tolist() == [1, 1]
    assert set(everything_below(tmp_path)) == {"t.safetensors"}


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    header = {"b": 1, "a": 2}
    save_tensors(tmp_path / "1", {"x": torch.ones(2), "y": torch.zeros(3)}, header)
    save_tensors(
        tmp_path / "2", {"y": torch.zeros(3), "x": torch.ones(2)}, dict(reversed(header.items()))
    )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weights": Trap()}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not weights"):
        load_tensors(tmp_path / "model.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0, 4, 8, 60, -1])
def test_weights_cut_short_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {"x": 1})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_tensors(path)


def test_weights_without_our_header_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ArtifactError, match=r"foreign\.safetensors"):
        load_tensors(tmp_path / "foreign.safetensors")


def test_weights_that_cannot_be_written_are_an_input_output_error(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match=r"model\.safetensors"):
        save_tensors(tmp_path / "missing" / "model.safetensors", {"a": torch.ones(2)}, {})
