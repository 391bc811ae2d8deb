"""One command on several processes: `--nproc` starts them, and the first to fail speaks for all.

A rank that fails says so in the store that torchrun, or the process that `--nproc` runs in, keeps
for the ranks. The others look there: none waits for one that has ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from smtkit.errors import SmtkitError, UsageError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_LOOK_EVERY = 0.5  # seconds
_GRACE = 3.0  # seconds in which a rank may clean up after another failed
_REACH = timedelta(seconds=10)
_COMMAND = "import sys; from smtkit.cli.app import main; sys.argv[0] = 'smtkit'; main()"

_watched = threading.Event()  # set: this process is a rank that looks after the others


class RanksError(SmtkitError):
    """A rank ended without a word, as one does that is killed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_rank() -> bool:
    """Whether torchrun, or `--nproc`, started this process."""
    return "RANK" in os.environ


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def must_launch(count: int | None) -> bool:
    """Whether the ranks have to be started. Raises UsageError where torchrun started others."""
    if count is None or not is_rank():
        return count is not None and count > 1
    if str(count) != os.environ.get("WORLD_SIZE"):
        found = os.environ.get("WORLD_SIZE")
        raise UsageError(f"--nproc {count}: torchrun started {found} ranks", "leave --nproc out")
    return False


def launch(count: int) -> int:
    """Runs this command line on `count` ranks of this machine; returns the exit code.

    They are told what torchrun tells its own. Not torchrun itself: it gives a signalled run 30
    seconds to save, takes time to the second to find the first failure, and reports on many lines.
    """
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    command = [sys.executable, "-P", "-c", _COMMAND, *sys.argv[1:]]
    ranks: list[subprocess.Popen[bytes]] = []
    with _passing_signals_to(ranks):
        try:
            for rank in range(count):
                environment = _environment(rank, count, port)
                # A session of its own: Ctrl-C comes from here, once, and not from the terminal too.
                ranks.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
                    )
                )
            # While the ranks import it too.
            from torch.distributed import TCPStore  # type: ignore[attr-defined]

            store = TCPStore(
                "127.0.0.1",
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
            return _first_failure(ranks, store)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        # More threads than cores are far slower than one.
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // count)),
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # what a broken connection means is said here, in one line
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextlib.contextmanager
def _passing_signals_to(ranks: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    def pass_on(number: int, frame: object) -> None:
        for process in ranks:
            process.send_signal(number)  # to one that has ended, nothing

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(ranks: Sequence["subprocess.Popen[bytes]"], store: "TCPStore") -> int:
    """Waits for all to end; for those that do not after one has failed, no longer than a moment."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)
    code = ranks[failed].returncode
    code = code if code > 0 else 128 - code
    silent = _claim(store, code) is None
    deadline = time.monotonic() + 2 * _GRACE
    for process in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    if silent:
        raise RanksError(f"rank {failed} of {len(ranks)} ended by {_end(code)}", code)
    return code


def _end(code: int) -> str:
    return signal.Signals(code - 128).name if code > 128 else f"exit code {code}"


def code_of_the_first(code: int, patience: float = 0.0) -> int | None:
    """Of a rank that fails: the exit code of one that failed before and has spoken; None where this
    is the first. `patience`: seconds to wait for another to be that."""
    time.sleep(patience)
    try:
        return _claim(_reach(), code)
    except RuntimeError:  # the store is gone: nobody else can speak
        return None


def _claim(store: "TCPStore", code: int) -> int | None:
    key = _key()
    if store.add(f"{key}/count", 1) == 1:
        store.set(key, str(code))
        return None
    return int(store.get(key))


def _reach() -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_REACH)


def _key() -> str:
    """torchrun may start the ranks again, with the same store."""
    return f"smtkit/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextlib.contextmanager
def among_ranks() -> Iterator[None]:
    """While the block runs, this rank ends soon after another has failed, whatever it waits for."""
    if not is_rank():
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(done,), daemon=True).start()
    _watched.set()
    yield  # after an error the watch goes on: nothing may keep this process
    from smtkit.training.distributed import leave

    done.set()
    leave()


def end(code: int) -> NoReturn:
    """Ends this process; a rank at once: its watch may not be torn down in the middle of a call,
    and a GPU's connections may wait for ranks that are no more."""
    if _watched.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _watch(done: threading.Event) -> None:
    try:
        store = _reach_patiently(done)
        while not done.wait(_LOOK_EVERY):
            if store.check([_key()]):
                code = int(store.get(_key()))
                break
        else:
            return
    except RuntimeError:
        code = 74  # whoever kept the store is gone, and with it the run
    if not done.wait(_GRACE):
        os._exit(code)


def _reach_patiently(done: threading.Event) -> "TCPStore":
    """The first rank may keep the store itself, from when all have come."""
    while True:
        try:
            return _reach()
        except RuntimeError:
            if done.wait(_LOOK_EVERY):
                raise
