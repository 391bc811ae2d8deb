"""An S3 store behind a proxy that fails; then the same command again, with `--resume`."""

import json
import os
import random
import shutil
import subprocess
import sys
import urllib.request
from typing import Any

from faults.outcomes import Outcome, Verdict, judge, verdict
from faults.world import STAGES, World, needed

_PATIENCE = 60.0
"""The store's client tries again, for longer than the other faults take."""
_servers: list[tuple[str, int]] = []


def case(world: World, draw: random.Random, number: int) -> Verdict:
    if not _servers:
        _servers.append(_start(world))
    proxy, uploads = _servers[0]
    stage = draw.choice(["tokens", "encoder", "labels", "rnn"])
    out = f"s3://bucket/out-{draw.randrange(10**9)}"
    command = tuple(f"s3://bucket/{word}" if word in uploads else word for word in STAGES[stage])
    world.fresh(*{"texts", *needed(stage, STAGES[stage])})
    shutil.rmtree(os.environ["SMTKIT_CACHE"], ignore_errors=True)
    fault = draw.choice(["reset", "half", "500", "503", "403", "garbage", "slow"])
    first, count = draw.randrange(1, 25), draw.choice([1, 1, 3, 1000])
    _set(proxy, f"{fault} {first} {count}")
    world.guard()
    ended = world.run((*command, "--out", out), patience=_PATIENCE)
    findings = [judge(ended, same=ended.code == 0)]
    _set(proxy, "none 0 0")
    again = world.run((*command, "--out", out, "--resume"), patience=_PATIENCE)
    findings.append(judge(again, same=again.code == 0, strict=True))
    shutil.rmtree(os.environ["SMTKIT_CACHE"], ignore_errors=True)
    seen = world.run(("inspect", out, "--verify", "--json"), patience=_PATIENCE)
    findings.append(judge(seen, same=_digest(seen.stdout) == _expected(world, stage)))
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ended.stderr))
    return verdict(f"{stage}: {fault} at request {first}, {count} times", findings)


def _expected(world: World, stage: str) -> Any:
    return json.loads((world.made / stage / "manifest.json").read_bytes())["digest"]


def _digest(stdout: bytes) -> Any:
    try:
        return json.loads(stdout)["manifest"]["digest"]
    except (ValueError, KeyError):
        return None


def _start(world: World) -> tuple[str, Any]:
    """Starts store and proxy, and copies artifacts to the store; they end with this process."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "faults.proxy"],
        stdin=subprocess.PIPE,  # it ends when this pipe is closed
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    proxy = process.stdout.readline().strip()
    os.environ["AWS_ENDPOINT_URL"] = proxy
    _request(f"{proxy}/bucket", b"")
    names = ("tokens", "encoder", "labels")
    for name in names:
        for path in sorted((world.made / name).rglob("*")):
            if path.is_file():
                key = path.relative_to(world.made)
                _request(f"{proxy}/bucket/{key}", path.read_bytes())
    _processes.append(process)
    return proxy, names


_processes: list[Any] = []


def _set(proxy: str, plan: str) -> None:
    _request(f"{proxy}/fault", plan.encode())


def _request(url: str, content: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, content, headers, method="PUT")
    with urllib.request.urlopen(request) as response:
        assert response.status == 200
