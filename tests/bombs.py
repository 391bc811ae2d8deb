"""Small files that expand to much: written here, never stored."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet

MIB = 2**20


def _gzipped(path: Path, start: bytes, block: bytes, count: int, end: bytes = b"") -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(start)
        for _ in range(count):
            file.write(block)
        file.write(end)


def _png(path: Path, width: int, height: int, rows: int | None = None) -> None:
    """A black picture of `rows` rows (default: all) whose header promises `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data + packer.flush())
        + chunk(b"IEND", b"")
    )


def _parquet(path: Path, texts: pa.Array, **options: object) -> None:
    options = {"compression": "zstd", "write_statistics": False, **options}
    pa.parquet.write_table(pa.table({"text": texts}), path, **options)


def _repeated(value: bytes, count: int) -> pa.Array:
    indices = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.binary()))


def _npy_header(path: Path, shape: tuple[int, ...], fortran: bool) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _npz(path: Path, shape: tuple[int, ...], fortran: bool = False) -> None:
    with (
        ZipFile(path, "w", ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as file,
    ):
        file.write(_npy_header(path, shape, fortran))
        for _ in range(int(np.prod(shape)) // MIB):
            file.write(bytes(MIB))


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one long line of JSON": (
        "a.jsonl.gz",
        lambda path: _gzipped(path, b'{"text": "', b"x" * MIB, 60, b'"}\n'),
    ),
    "one long line of JSON with an emoji": (
        "a.jsonl.gz",
        lambda path: _gzipped(path, '{"text": "\N{PILE OF POO}'.encode(), b"x" * MIB, 60, b'"}\n'),
    ),
    "objects of JSON": (
        "a.jsonl.gz",
        lambda path: _gzipped(path, b'{"text": "a", "more": [{}', b",{}" * 2**18, 60, b"]}\n"),
    ),
    "many objects of JSON under the bound": (
        "a.jsonl.gz",
        lambda path: _gzipped(path, b'{"text": "a", "more": [{}', b",{}" * 2**18, 20, b"]}\n"),
    ),
    "line of JSON that fits": (
        "a.jsonl.gz",
        lambda path: _gzipped(path, '{"text": "\N{PILE OF POO}'.encode(), b"x" * MIB, 15, b'"}\n'),
    ),
    "field of CSV": (
        "a.csv",
        lambda path: path.write_bytes(b"text\n" + b"x" * 128 * MIB + b"\n"),
    ),
    "field of CSV with an emoji": (
        "a.csv",
        lambda path: path.write_bytes(
            b"text\n" + "\N{PILE OF POO}".encode() + b"x" * 15 * MIB + b"\n"
        ),
    ),
    "quoted fields of CSV": (
        "a.csv.gz",
        lambda path: _gzipped(path, b'text\n"', b"\n" * MIB, 60, b'"\n'),
    ),
    "rows of CSV": ("a.csv.gz", lambda path: _gzipped(path, b"text\n", b"x\n" * 2**19, 60)),
    "columns of CSV": ("a.csv.gz", lambda path: _gzipped(path, b"text", b"," * MIB, 60)),
    "equal texts of parquet": (
        "a.parquet",
        lambda path: _parquet(path, _repeated(bytes(MIB), 1024)),
    ),
    "many empty texts of parquet": (
        "a.parquet",
        lambda path: _parquet(path, _repeated(b"", 10**8)),
    ),
    "a page of parquet": (
        "a.parquet",
        lambda path: _parquet(path, pa.array([bytes(2**30)]), use_dictionary=False),
    ),
    "pages of parquet": (
        "a.parquet",
        lambda path: _parquet(
            path,
            pa.array([bytes(MIB)] * 1000),
            use_dictionary=False,
            data_page_size=MIB,
            write_batch_size=1,
        ),
    ),
    "picture of 8000 x 8000": ("a.png", lambda path: _png(path, 8000, 8000)),
    "picture of 13000 x 13000": ("a.png", lambda path: _png(path, 13000, 13000)),
    "picture of 30000 x 30000 that is not there": (
        "a.png",
        lambda path: _png(path, 30000, 30000, 1),
    ),
    "picture that fits": ("a.png", lambda path: _png(path, 1448, 1448)),
    "IDX of one image": (
        "a-images-idx3-ubyte.gz",
        lambda path: _gzipped(path, struct.pack(">IIII", 0x803, 1, 8192, 8192), bytes(MIB), 64),
    ),
    "IDX of small images": (
        "a-images-idx3-ubyte.gz",
        lambda path: _gzipped(path, struct.pack(">IIII", 0x803, 60 * MIB, 1, 1), bytes(MIB), 60),
    ),
    "npz of one image": ("a.npz", lambda path: _npz(path, (1, 8192, 8192))),
    "npz in Fortran order": ("a.npz", lambda path: _npz(path, (512, 1024, 1024), fortran=True)),
    "npz of many images": ("a.npz", lambda path: _npz(path, (1024, 1024, 1024))),
}
