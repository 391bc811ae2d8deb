"""Starts the ranks of `--nproc`, and ends all ranks, torchrun's too, with one error line.

torchrun does the rest. It does not do this:

- One line on stderr and the exit code of the first rank to fail. torchrun prints a report of many
  lines, returns 1, and orders failures by timestamps of one second.
- End ranks that wait in a collective for one that has failed, within seconds; or for one that does
  not answer, because it, its machine or the network has stopped, after `--patience`.
- Give a run that was sent SIGINT, SIGTERM or SIGHUP the time it needs to save; torchrun kills
  after 30 s.

The first rank to fail writes its exit code to the TCPStore of the run, which torchrun or `launch`
serves; a thread in each rank polls the store. The same thread counts up a number of this rank in
the store, and watches that of the next rank.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from smtkit.errors import SmtkitError, UsageError
from smtkit.training.interrupts import SIGNALS

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 3.0
"""Time for a rank to clean up after another has failed."""
_LOST_CODE = 74
"""Exit code of a rank that waits for one that does not answer."""
_CONNECT_TIMEOUT = timedelta(seconds=10)
_PROGRAM = "import sys; from smtkit.cli.app import main; sys.argv[0] = 'smtkit'; main()"

_watched = threading.Event()
"""Set in a rank whose watching thread has started."""


def is_rank() -> bool:
    """Whether torchrun or `launch` started this process."""
    return "RANK" in os.environ


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def must_launch(count: int | None) -> bool:
    """Whether `count` ranks must be started. Raises UsageError if torchrun started other ranks."""
    if count is None or not is_rank():
        return (count or 1) > 1
    if str(count) != (found := os.environ.get("WORLD_SIZE")):
        raise UsageError(f"`nproc` {count}: torchrun started {found} ranks", "leave `nproc` out")
    return False


def launch(count: int) -> int:
    """Runs this command line as `count` ranks on this machine; returns the exit code.

    Raises SmtkitError if a rank ended without an error line, as a killed process does.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in ranks:
            process.send_signal(number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        for rank in range(count):
            # In a session of its own: Ctrl-C reaches it through this process only.
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *sys.argv[1:]],
                env=_environment(rank, count, port),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            ranks.append(process)
        # Imported after the ranks are started: they import torch at the same time.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address = {"host_name": "127.0.0.1", "port": port, "master_listen_fd": listener.detach()}
        return _wait(ranks, TCPStore(**address, is_master=True, wait_for_workers=False))
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // count)),
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # broken connections are reported in our one line
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], store: "TCPStore") -> int:
    """Waits for all ranks; once one has failed, for the others only a short time."""
    failed = None
    while failed is None:
        codes = [process.poll() for process in ranks]
        if all(code == 0 for code in codes):
            return 0
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        time.sleep(0.05)
    code = ranks[failed].returncode
    code = code if code > 0 else 128 - code
    no_line_printed = _record_failure(store, code) is None
    deadline = time.monotonic() + 2 * _GRACE_SECONDS
    for process in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    if no_line_printed:
        end = signal.Signals(code - 128).name if code > 128 else f"exit code {code}"
        error = SmtkitError(f"rank {failed} of {len(ranks)} ended by {end}")
        error.exit_code = code
        raise error
    return code


def code_of_the_first(code: int, patience: float = 0.0) -> int | None:
    """Records that this rank fails with `code`, after waiting `patience` seconds for others to.

    Returns the exit code of the rank that failed before; None if this is the first, which prints
    the error.
    """
    time.sleep(patience)
    try:
        return _record_failure(_connect(), code)
    except RuntimeError:  # the store is gone, and with it every other rank
        return None


def _record_failure(store: "TCPStore", code: int) -> int | None:
    """Stores the exit code, if it is the first; returns the one stored before."""
    if store.add(f"{_key()}/count", 1) == 1:
        store.set(_key(), str(code))
        return None
    return int(store.get(_key()))


def _connect() -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_CONNECT_TIMEOUT)


def _key(name: str = "failed") -> str:
    """A new key per attempt: torchrun may restart the ranks with the same store."""
    return f"smtkit/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextlib.contextmanager
def among_ranks(patience: float) -> Iterator[None]:
    """In the block, this rank ends soon after another has failed, even if it waits for it; also if
    another has not answered for `patience` seconds."""
    if not is_rank():
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(done, patience), daemon=True).start()
    _watched.set()
    yield  # after an error the thread keeps running: this process must not hang
    from smtkit.training.distributed import leave

    leave()
    done.set()


def end(code: int) -> NoReturn:
    """Ends this process. A watched rank ends without Python's cleanup, which could crash in the
    watching thread, or wait for a GPU connection to a rank that is gone."""
    if _watched.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _watch(done: threading.Event, patience: float) -> None:
    """Ends this process when another rank has failed or does not answer, or the store is gone."""
    code, store, heartbeat = None, None, _Heartbeat()
    while code is None:
        if done.wait(_POLL_SECONDS):
            return
        try:
            if store is None:
                store = _connect()
            elif store.check([_key()]):
                code = int(store.get(_key()))
            elif heartbeat.silence(store) > patience:
                code = _LOST_CODE
                if _record_failure(store, code) is None:
                    print(f"smtkit: {heartbeat.problem(patience)}", file=sys.stderr, flush=True)
        except RuntimeError:
            # Without torchrun's agent, rank 0 serves the store only once all ranks have joined.
            code = 74 if store else None
    if not done.wait(_GRACE_SECONDS):
        os._exit(code)


class _Heartbeat:
    """Shows the next rank, in a ring, that this one is alive, and measures how long that is silent.

    Silence is counted in polls: a machine that was suspended finds its own clock ahead.
    """

    def __init__(self) -> None:
        self._rank, self._size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._next = (self._rank + 1) % self._size
        self._last, self._silent_polls = -1, 0

    def silence(self, store: "TCPStore") -> float:
        """Seconds since the next rank was last known to be alive. To be called in every poll."""
        store.add(f"{_key('alive')}/{self._rank}", 1)
        found = store.add(f"{_key('alive')}/{self._next}", 0)
        self._silent_polls = self._silent_polls + 1 if found == self._last else 0
        self._last = found
        return self._silent_polls * _POLL_SECONDS

    def problem(self, patience: float) -> str:
        return (
            f"rank {self._next} of {self._size} has not answered for {patience:g} s: it or its "
            "machine has stopped (--patience allows more time)"
        )
