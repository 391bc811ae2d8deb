"""Ctrl-C while a command starts: exit code 130, without a traceback."""

import os
import signal
import threading
from pathlib import Path

import pytest

from smtkit.cli.startup import ended_by_interrupt
from subprocesses import python

# Sends SIGINT to this process when `module` is imported, inside a handler that loses exceptions as
# the initialisation of extension modules does.
INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass

MODULE = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
from smtkit.cli.app import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "pydantic", "numpy", "pyarrow", "torch", "rich.table"])
def test_an_interrupt_within_an_import_ends_the_process(module: str, tmp_path: Path) -> None:
    command = ["train-encoder", str(tmp_path / "missing"), "--out", "out", "--max-steps", "1"]
    process = python("-c", INTERRUPTED_IMPORT, module, *command, cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


def test_the_handler_is_given_back_and_no_other_is_replaced() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with ended_by_interrupt():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_threads_leave_the_handler_as_it_is() -> None:
    found = []

    def use() -> None:
        with ended_by_interrupt():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
