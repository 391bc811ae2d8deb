"""Runs commands of smtkit in forks of this process, which has imported torch once.

This process must have one thread: work that starts threads is done in forks.
"""

import gc
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY = 2**30  # the most that a command may use, in bytes
SECONDS = 10.0  # the most that a fault may add to the time of a command
_ADDRESS_SPACE = 6 * 2**30  # beyond it allocations fail, before the machine is in trouble


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: negative for a signal. peak: resident memory in bytes."""

    code: int
    stdout: bytes
    stderr: str
    seconds: float
    peak: int
    hung: bool = False


def prepare() -> None:
    """Imports what commands use, so that forks need not."""
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401

    from smtkit.cli import program, results, terminal  # noqa: F401
    from smtkit.cli.commands import COMMANDS  # noqa: F401
    from smtkit.stages import (  # noqa: F401
        evaluate,
        extract_labels,
        generate,
        inspect,
        synthesize,
        tokenize,
        train_encoder,
        train_rnn,
    )

    gc.collect()
    gc.freeze()


def run(
    arguments: Sequence[object],
    directory: Path,
    *,
    before: Callable[[], None] | None = None,
    killed_after: float | None = None,
    patience: float = SECONDS,
) -> Ended:
    """Runs `smtkit ARGUMENTS` in `directory`. `before` is called in the new process.

    `killed_after`: seconds until SIGKILL. `patience`: seconds until the command has hung.
    """
    output = [os.memfd_create("stdout"), os.memfd_create("stderr")]
    started = time.monotonic()
    if not (child := os.fork()):
        _work([str(each) for each in arguments], directory, output, before)
    code, peak, hung = _wait(child, killed_after, patience)
    seconds = time.monotonic() - started
    stdout, stderr = (_content(descriptor) for descriptor in output)
    return Ended(code, stdout, stderr.decode(errors="replace"), seconds, peak, hung)


def in_fork(work: Callable[[], object]) -> None:
    """Does work in another process, whose memory and threads this one does not inherit."""
    if not (child := os.fork()):
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def _work(
    arguments: list[str], directory: Path, output: list[int], before: Callable[[], None] | None
) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(directory)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output[0], 1)
        os.dup2(output[1], 2)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from smtkit.cli import app

        sys.argv = ["smtkit", *arguments]
        if before:
            before()
        app.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _wait(child: int, killed_after: float | None, patience: float) -> tuple[int, int, bool]:
    """Exit code, peak memory, and whether the child had to be ended."""
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    limit = patience if killed_after is None else killed_after
    late = not poll.poll(limit * 1000)
    if late:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, late and killed_after is None


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, min(size, 2**22), 0)
    os.close(descriptor)
    return content
