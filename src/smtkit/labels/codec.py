"""How memories are stored: one codec per value of the setting `dtype`.

To store memories in another way, subclass `MemoryCodec`, enter the codec in `CODECS`, and add its
name to `ExtractLabelsConfig.dtype`. Writer, reader and methods only handle columns and decoded
memories.

B: windows, N: memories, K: slots, D: slot width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """A column of a label shard: an array of `shape` per memory; its type in Arrow and in torch."""

    arrow: pa.DataType
    tensor: torch.dtype
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Numbers per memory."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes per memory."""
        return self.numbers * self.arrow.bit_width // 8

    def array(self, values: Tensor) -> NDArray[Any]:
        """The bytes of a tensor as a NumPy array of the Arrow type."""
        return values.contiguous().view(torch.uint8).numpy().view(self.arrow.to_pandas_dtype())

    def is_finite(self, content: memoryview) -> bool:
        """Whether all numbers in the bytes of a column are finite.

        Read as integers, infinity and NaN are the largest; with the sign bit, the largest without a
        sign. Two extremes take a third of the time of testing every number.
        """
        if not self.tensor.is_floating_point:
            return True
        size = self.tensor.itemsize
        integers = torch.int16 if size == 2 else torch.int32
        infinity = int(torch.tensor(math.inf, dtype=self.tensor).view(integers))
        signed, unsigned = (np.frombuffer(content, f"{sign}{size}").max() for sign in "iu")
        return int(signed) < infinity and int(unsigned) < infinity + (1 << 8 * size - 1)


@dataclass(frozen=True)
class MemoryCodec:
    """Converts float32 memories to the columns of a label shard, and back.

    This one stores the numbers in a floating-point type; subclasses store them otherwise.
    """

    arrow: pa.DataType
    tensor: torch.dtype

    def columns(self, slots: int, slot_width: int) -> dict[str, Column]:
        """Each column of a shard, by name."""
        return {"memory": Column(self.arrow, self.tensor, (slots, slot_width))}

    def encode(self, memory: Tensor) -> dict[str, Tensor]:
        """float32 (..., K, D) -> columns (..., *shape).

        A memory that cannot be decoded, because it is not finite or exceeds the range of the type,
        gives a floating-point number that is not finite.
        """
        return {"memory": memory.to(self.tensor)}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Columns (N, *shape) -> float32 (N, K, D), on the device of the columns."""
        return columns["memory"].float()


class Int8Codec(MemoryCodec):
    """Stores integers from -127 to 127 and, per slot, a scale: its largest magnitude / 127."""

    def columns(self, slots: int, slot_width: int) -> dict[str, Column]:
        scale = Column(pa.float32(), torch.float32, (slots,))
        return {**super().columns(slots, slot_width), "scale": scale}

    def encode(self, memory: Tensor) -> dict[str, Tensor]:
        scale = memory.abs().amax(-1) / 127
        steps = memory / torch.where(scale == 0, 1.0, scale)[..., None]
        rounded = steps.round().nan_to_num().clamp(-127, 127)  # NaN remains in the scale
        return {"memory": rounded.to(self.tensor), "scale": scale}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        return columns["memory"] * columns["scale"][..., None]


CODECS = {
    "float16": MemoryCodec(pa.float16(), torch.float16),
    # Neither Arrow nor NumPy has bfloat16: its bits are stored as integers.
    "bfloat16": MemoryCodec(pa.uint16(), torch.bfloat16),
    "float32": MemoryCodec(pa.float32(), torch.float32),
    "int8": Int8Codec(pa.int8(), torch.int8),
}


def are_finite(columns: Mapping[str, Tensor]) -> NDArray[np.bool_]:
    """Whether all numbers of each window are finite: columns (B, ...) -> (B,)."""
    finite = []
    for values in columns.values():
        if values.is_floating_point():
            rows = values.flatten(1)
            # An extreme is NaN if any number is; testing every number takes ten times as long.
            finite.append(torch.isfinite(rows.amax(1)) & torch.isfinite(rows.amin(1)))
    return torch.stack(finite).all(0).numpy()


@dataclass(frozen=True)
class EncodedMemory:
    """N memories as they are stored, to be moved to a device and decoded there."""

    codec: MemoryCodec
    columns: Mapping[str, Tensor]

    def decode(self, index: Tensor) -> Tensor:
        """Memories at `index` (...,) in 0..N - 1 -> float32 (..., K, D)."""
        flat = index.flatten()
        memory = self.codec.decode({name: values[flat] for name, values in self.columns.items()})
        return memory.unflatten(0, index.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> "EncodedMemory":
        """The same memories, with `function` applied to each tensor."""
        columns = {name: function(values) for name, values in self.columns.items()}
        return replace(self, columns=columns)
