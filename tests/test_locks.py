"""Locks on directories: one holder, whoever comes and goes, also where directories have none."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smtkit.artifacts.locks import LOCK, DirectoryLock
from smtkit.errors import InputOutputError

ROUNDS = 200


def test_there_is_one_holder_and_nothing_stays(tmp_path):
    first = DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path, shared=True)
    first.release()

    assert not list(tmp_path.iterdir())
    DirectoryLock(tmp_path).release()


def test_many_may_share_it_and_keep_one_out(tmp_path):
    shared = [DirectoryLock(tmp_path, shared=True) for _ in range(3)]
    for holder in shared:
        with pytest.raises(BlockingIOError):
            DirectoryLock(tmp_path)
        holder.release()
    DirectoryLock(tmp_path).release()


def test_what_a_killed_process_leaves_locks_nobody_out(tmp_path):
    code = (
        "import os, sys, pathlib, smtkit.artifacts.locks as locks\n"
        "lock = locks.DirectoryLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]

    DirectoryLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def _count(directory: Path) -> None:
    for _ in range(ROUNDS):
        lock = DirectoryLock(directory, wait=True)
        counter = directory / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
        lock.release()


def test_who_waits_gets_it_alone_though_its_file_comes_and_goes(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert int((tmp_path / "counter").read_text()) == 3 * ROUNDS


def test_over_nfs_what_is_locked_is_open_for_writing(tmp_path, monkeypatch):
    """As fcntl(2) has it of NFS: flock becomes a lock on the file's bytes, and asks for as much."""
    lock = fcntl.flock

    def of_nfs(file: int, kind: int) -> None:
        writable = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if kind & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    DirectoryLock(tmp_path).release()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputOutputError, match=f"{tmp_path}.*cannot be locked: No locks available"):
        DirectoryLock(tmp_path)
