"""The numbers of stored memories: float32 and back, in the types that labels are kept in.

B: windows, T: window, K: slots, D: slot width, M: memories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_STEP = 127


@dataclass(frozen=True)
class StoredType:
    """How numbers lie on disk, and what they are to torch. `scaled`: a factor a slot goes with
    them."""

    arrow: pa.DataType
    array: np.dtype[Any]
    tensor: torch.dtype
    scaled: bool = False


STORED_TYPES = {
    "float16": StoredType(pa.float16(), np.dtype(np.float16), torch.float16),
    # Neither Arrow nor numpy has bfloat16: its bits, as whole numbers.
    "bfloat16": StoredType(pa.uint16(), np.dtype(np.uint16), torch.bfloat16),
    "float32": StoredType(pa.float32(), np.dtype(np.float32), torch.float32),
    "int8": StoredType(pa.int8(), np.dtype(np.int8), torch.int8, scaled=True),
}
SCALE = np.dtype(np.float32)


def encode(memory: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """float32 (..., K, D) to the numbers stored, and, of int8, scales (..., K), float32.

    A scale is 1/127 of the slot's largest absolute number. What is not finite, or out of range,
    comes out not finite: numbers, or of int8 the scale.
    """
    stored = STORED_TYPES[dtype]
    if not stored.scaled:
        return memory.to(stored.tensor), None
    scale = memory.abs().amax(-1) / LARGEST_STEP
    steps = memory / torch.where(scale == 0, 1.0, scale)[..., None]
    return steps.round().nan_to_num().clamp(-LARGEST_STEP, LARGEST_STEP).to(stored.tensor), scale


def decode(numbers: Tensor, scale: Tensor) -> Tensor:
    """(M, K, D) float32 of stored numbers, where they lie; scale (M, K), or (0,): there is none."""
    if numbers.dtype != torch.int8:
        return numbers.float()
    return numbers * scale[..., None]


def bits(numbers: Tensor, dtype: str) -> NDArray[Any]:
    """The numbers of `encode` as the array that is written."""
    stored = STORED_TYPES[dtype]
    if stored.tensor is torch.bfloat16:
        numbers = numbers.view(torch.int16)
    return numbers.numpy().view(stored.array)
