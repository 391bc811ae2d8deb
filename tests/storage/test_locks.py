"""Locks on directories: exclusive and shared, between processes, and over NFS."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smtkit.errors import InputOutputError
from smtkit.storage.locks import LOCK, DirectoryLock

ROUNDS = 200


def test_one_process_holds_the_lock_and_release_removes_its_file(tmp_path):
    first = DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path, shared=True)
    first.release()

    assert not list(tmp_path.iterdir())
    DirectoryLock(tmp_path).release()


def test_a_shared_lock_excludes_exclusive_ones(tmp_path):
    shared = [DirectoryLock(tmp_path, shared=True) for _ in range(3)]
    for holder in shared:
        with pytest.raises(BlockingIOError):
            DirectoryLock(tmp_path)
        holder.release()
    DirectoryLock(tmp_path).release()


def test_the_lock_file_of_a_killed_process_locks_nobody_out(tmp_path):
    code = (
        "import os, sys, pathlib, smtkit.storage.locks as locks\n"
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


def test_waiting_processes_hold_the_lock_one_at_a_time(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert int((tmp_path / "counter").read_text()) == 3 * ROUNDS


def test_the_lock_file_is_open_for_writing_as_nfs_requires(tmp_path, monkeypatch):
    """On NFS, flock locks the file's bytes, and needs it to be open for writing: see fcntl(2)."""
    lock = fcntl.flock

    def of_nfs(file: int, kind: int) -> None:
        writable = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if kind & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    DirectoryLock(tmp_path).release()


def test_release_does_not_remove_the_lock_file_of_another_holder(tmp_path):
    lost = DirectoryLock(tmp_path)
    (tmp_path / LOCK).unlink()
    held = DirectoryLock(tmp_path)
    lost.release()
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path)
    held.release()


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        DirectoryLock(tmp_path / "in")
    assert not (tmp_path / "elsewhere").exists()


def test_release_ignores_a_lock_file_that_cannot_be_removed(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    held = DirectoryLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        held.release()
    DirectoryLock(tmp_path).release()


def test_a_lock_file_that_is_stale_on_nfs_is_opened_again(tmp_path, monkeypatch):
    lock, stale = fcntl.flock, [True]

    def once(file: int, kind: int) -> None:
        if stale and stale.pop():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", once)
    DirectoryLock(tmp_path).release()
    assert not stale


def test_release_with_remove_keeps_the_file_while_others_share_the_lock(tmp_path):
    first, second = (DirectoryLock(tmp_path, shared=True) for _ in range(2))
    first.release(remove=True)
    assert (tmp_path / LOCK).exists()
    second.release(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def none(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputOutputError, match=f"{tmp_path}.*cannot be locked: No locks available"):
        DirectoryLock(tmp_path)
