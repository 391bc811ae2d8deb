"""Files of every input format with damage: `tokenize` refuses them, or reads what is there."""

import gzip
import io
import json
import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from faults.outcomes import Outcome, Verdict, judge, verdict
from faults.world import World
from image_files import IMAGES, idx_bytes

_TEXTS = [f"a text of number {number} ünd more" for number in range(30)]
_TOKENIZERS = {"text": ("byte", "char"), "pixel": ("pixel",)}


def case(world: World, draw: random.Random, number: int) -> Verdict:
    """Formats take turns."""
    name, (kind, write) = list(_SAMPLES.items())[number % len(_SAMPLES)]
    content = bytearray(write())
    damages = [draw.choice(_DAMAGES)(content, draw) for _ in range(draw.choice([1, 1, 2, 4]))]
    world.fresh()
    (world.inside / "in").mkdir()
    (world.inside / "in" / name).write_bytes(content)
    world.guard()
    tokenizer = draw.choice(_TOKENIZERS[kind])
    command = ["tokenize", f"in/{name}", "--out", "out", "--quiet", "--tokenizer", tokenizer]
    if draw.random() < 0.3:
        command += ["--errors", "skip"]
    ended = world.run(command)
    findings = [judge(ended, same=False, forged=True)]
    if ended.code and (world.inside / "out").exists():
        findings.append((Outcome.CRASHED, f"an error, and a directory is left: {ended.stderr}"))
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ended.stderr))
    return verdict(f"{', '.join(damages)}; {' '.join(command)}", findings)


def _flip(content: bytearray, draw: random.Random) -> str:
    place, bit = _place(content, draw), draw.randrange(8)
    content[place] ^= 1 << bit
    return f"bit {bit} of byte {place} flipped"


def _change(content: bytearray, draw: random.Random) -> str:
    place = _place(content, draw)
    content[place] = draw.choice([0, 1, 0x22, 0x5B, 0x7B, 0x7F, 0x80, 0xFF])
    return f"byte {place} is {content[place]}"


def _number(content: bytearray, draw: random.Random) -> str:
    """Four bytes, as the sizes in headers have them, become a large or negative number."""
    place = _place(content, draw)
    value = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])
    content[place : place + 4] = value
    return f"bytes from {place} are {value!r}"


def _cut(content: bytearray, draw: random.Random) -> str:
    place = draw.randrange(1, len(content))
    del content[place:]
    return f"cut to {place} bytes"


def _repeat(content: bytearray, draw: random.Random) -> str:
    place = _place(content, draw)
    content[place:place] = content[place : place + 40] * draw.choice([1, 100, 5000])
    return f"bytes from {place} repeated"


_DAMAGES = [_flip, _flip, _change, _change, _number, _cut, _repeat]


def _place(content: bytearray, draw: random.Random) -> int:
    """In the headers at the beginning or the end, or anywhere."""
    size = len(content)
    first, last = draw.choice([(0, min(size, 120)), (max(0, size - 400), size), (0, size)])
    return draw.randrange(first, last)


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _lines() -> bytes:
    rows = ({"text": text, "more": [1, {"a": None}]} for text in _TEXTS)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table() -> bytes:
    return (
        "id,text\n" + "".join(f'{n},"{text}, ""so"""\n' for n, text in enumerate(_TEXTS))
    ).encode()


def _parquet(**options: object) -> Callable[[], bytes]:
    table = pa.table({"id": range(len(_TEXTS)), "text": _TEXTS})
    return lambda: _saved(lambda file: pa.parquet.write_table(table, file, **options))


def _zstd(content: bytes) -> bytes:
    return b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in (content, content))


def _picture(kind: str) -> bytes:
    return _saved(lambda file: Image.fromarray(IMAGES[0]).save(file, kind))


_SAMPLES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a.txt": ("text", lambda: "\n".join(_TEXTS).encode()),
    "a.jsonl": ("text", _lines),
    "a.csv": ("text", _table),
    "a.txt.gz": ("text", lambda: gzip.compress("\n".join(_TEXTS).encode())),
    "a.jsonl.gz": ("text", lambda: gzip.compress(_lines())),
    "a.csv.zst": ("text", lambda: _zstd(_table())),
    "a.parquet": ("text", _parquet()),
    "b.parquet": ("text", _parquet(compression="zstd", use_dictionary=False, row_group_size=7)),
    "c.parquet": ("text", _parquet(data_page_version="2.0", compression="gzip")),
    "a.png": ("pixel", lambda: _picture("png")),
    "a.npy": ("pixel", lambda: _saved(lambda file: np.save(file, IMAGES))),
    "a.npz": ("pixel", lambda: _saved(lambda file: np.savez_compressed(file, images=IMAGES))),
    "train-images-idx3-ubyte": ("pixel", lambda: idx_bytes(IMAGES)),
    "train-images-idx3-ubyte.gz": ("pixel", lambda: gzip.compress(idx_bytes(IMAGES))),
}
"""A file of every format: the kind of its tokenizer, and its bytes."""
