"""Forged manifests, tokenizers, headers, records and settings, with checksums that agree."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import xxhash

from faults.outcomes import Verdict, judge_use
from faults.world import KINDS, USES, World

_DIGITS, _DEEP = "@digits@", "@deep@"
_RAW = {f'"{_DIGITS}"': "1" * 5000, f'"{_DEEP}"': "[" * 5000 + "]" * 5000}
_WORDS: list[Any] = [None, True, "", "x" * 10_000, "\x1b[31mred", "\ud800", "1", [], {}, [[]]]
_NUMBERS: list[Any] = [-1, 0, 1, 1.5, -(2**63), 2**31, 10**12, 10**30, 1e308, float("nan")]
ODD = [*_WORDS, *_NUMBERS, float("inf"), _DIGITS, _DEEP]
_SMALL = [*_WORDS, -1, 0, 1.5, float("nan"), float("inf"), _DIGITS, _DEEP]
"""For settings: a large number there is a wish, not a forgery."""


def case(world: World, draw: random.Random, number: int) -> Verdict:
    kind = draw.choice(KINDS)
    use = draw.choice(USES[kind])
    world.prepare(kind, use)
    settings = [world.inside / word for word in use if word.endswith(".toml")]
    if settings and draw.random() < 0.15:
        path = settings[0]
        what = _forge_settings(path, draw)
    else:
        path = draw.choice(world.files(kind))
        what = _forge(path, draw)
        seal(world.inside / kind)
    return judge_use(world, kind, use, f"{path.relative_to(world.inside)}: {what}", forged=True)


def seal(artifact: Path) -> None:
    """Makes sizes and checksums of an artifact agree with its files, where that can be done."""
    for record in (*artifact.glob("run-*/checkpoint.json"), *artifact.glob("run-*/run.json")):
        found = _loaded(record.read_bytes())
        if isinstance(found, dict):
            for tensors in record.parent.glob("checkpoint-*.safetensors"):
                found |= _sizes(tensors) if "xxh3" in found else {}
            found.pop("checksum", None)
            record.write_text(_text(found))
    manifest = artifact / "manifest.json"
    found = _loaded(manifest.read_bytes()) if manifest.is_file() else None
    if isinstance(found, dict) and isinstance(found.get("files"), list):
        for entry in found["files"]:
            name = entry.get("name") if isinstance(entry, dict) else None
            if isinstance(name, str) and "\0" not in name and (artifact / name[:200]).is_file():
                entry |= _sizes(artifact / name)
        found.pop("checksum", None)
        manifest.write_text(_text(found))


def _sizes(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}


def _forge(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    if not content:
        return "nothing"
    if draw.random() < 0.6:
        if path.suffix == ".json":
            return _forge_json(path, content, draw)
        if path.suffix == ".safetensors":
            return _forge_tensors(path, content, draw)
    return _forge_bytes(path, bytearray(content), draw)


def _forge_json(path: Path, content: bytes, draw: random.Random) -> str:
    tree = json.loads(content)
    what = _mutate(tree, draw, ODD)
    path.write_text(_text(tree))
    return what


def _forge_tensors(path: Path, content: bytes, draw: random.Random) -> str:
    size = struct.unpack("<Q", content[:8])[0]
    tree = json.loads(content[8 : 8 + size])
    what = _mutate(tree, draw, ODD)
    header = _text(tree).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    return what


def _forge_bytes(path: Path, content: bytearray, draw: random.Random) -> str:
    """Changes bytes where headers lie: at the beginning or the end, more often than elsewhere."""
    size = len(content)
    first, last = draw.choice([(0, min(size, 600)), (max(0, size - 700), size), (0, size)])
    places = [draw.randrange(first, last) for _ in range(draw.choice([1, 1, 2, 8]))]
    for place in places:
        content[place] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
    path.write_bytes(content)
    return f"bytes {places} changed"


def _forge_settings(path: Path, draw: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = draw.choice([at for at, line in enumerate(lines) if line])
    way = draw.choice(["value", "value", "value", "remove", "twice", "dots", "bytes"])
    if way == "value" and "=" in lines[number]:
        key = lines[number].split("=")[0]
        value = draw.choice(_SMALL)
        lines[number] = f"{key}= {_text(value)}"
    elif way == "remove":
        del lines[number]
    elif way == "twice":
        lines.append(lines[number])
    elif way == "dots":
        lines.append("a." * draw.choice([20, 20_000]) + "b = 1")
    else:
        path.write_bytes(draw.randbytes(200))
        return "random bytes"
    path.write_text("\n".join(lines), errors="replace")
    return f"{way} at line {number}"


def _mutate(tree: Any, draw: random.Random, odd: list[Any]) -> str:
    """Changes one place of a JSON tree; strings that hold JSON are opened."""
    places = list(_places(tree, ""))
    if not places:
        return "nothing"
    parent, key, name = draw.choice(places)
    value = parent[key]
    inner = _loaded(value.encode(errors="replace")) if isinstance(value, str) else None
    if isinstance(inner, dict) and inner:
        what = _mutate(inner, draw, odd)
        parent[key] = _text(inner)
        return f"{name}: {what}"
    way = draw.choice(["remove", "odd", "odd", "odd", "add", "near"])
    if way == "remove":
        del parent[key]
        return f"{name} removed"
    if way == "add" and isinstance(value, dict):
        value["unheard of"] = draw.choice(odd)
        return f"{name}: a key more"
    if way == "near" and type(value) is int:
        parent[key] = value + draw.choice([-1, 1, 10**6])
    else:
        parent[key] = draw.choice(odd)
    return f"{name} = {str(parent[key])[:30]!r}"


def _places(tree: Any, name: str) -> Any:
    """Every value below a tree: its parent, key and name."""
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key, f"{name}.{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{name}.{key}")


def _loaded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _text(tree: Any) -> str:
    text = json.dumps(tree)
    for mark, raw in _RAW.items():
        text = text.replace(mark, raw)
    return text
