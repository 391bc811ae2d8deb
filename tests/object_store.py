"""Fixtures: an S3 server on this machine, and caches as of several machines.

The server is a process of its own: pyarrow closes a stream that is collected without letting other
threads of its process run.
"""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from smtkit.storage.location import locate
from smtkit.storage.manifest import MANIFEST, Manifest
from smtkit.storage.remote import Remote

BUCKET = "bucket"

_SERVER = """
import logging, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A store with one bucket."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
    )
    try:
        assert server.stdout
        where = f"http://127.0.0.1:{int(server.stdout.readline())}"
        request = urllib.request.Request(f"{where}/{BUCKET}", method="PUT")
        assert urllib.request.urlopen(request).status == 200
        yield where
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def store(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty directory; this machine has an empty cache."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("SMTKIT_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives this process an empty cache, as if it ran on another machine."""
    machines = iter(range(100))

    def move() -> None:
        monkeypatch.setenv("SMTKIT_CACHE", str(tmp_path / f"cache-{next(machines)}"))

    return move


def at(uri: str) -> Remote:
    remote = locate(uri)
    assert isinstance(remote, Remote)
    return remote


def objects(uri: str) -> set[str]:
    return set(at(uri).sizes())


def named(manifest: Manifest) -> set[str]:
    return {MANIFEST, *(entry.name for entry in manifest.files)}


def put(uri: str, name: str, content: bytes) -> None:
    """Writes an object with pyarrow alone."""
    filesystem, root = fs.FileSystem.from_uri(uri)
    with filesystem.open_output_stream(f"{root}/{name}") as stream:
        stream.write(content)
