"""Runs stages on several ranks, which are forked from one process that has imported torch.

    python ranks.py COUNT JOBS

Ranks have the environment variables that torchrun sets. A forked process ends without Python's
cleanup, in which torch's threads may abort it.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from typing import Any

import torch
import torch._dynamo  # optimizers import it

from smtkit import config
from smtkit.errors import InterruptedRunError
from smtkit.training import distributed, loop


def rank(number: int, jobs: list[tuple[str, str, dict[str, Any], list[Any]]]) -> None:
    """A job is (stage, name of its schema, settings, arguments): paths, then keywords of `run`.

    With the keyword `stop_at`, rank 1 receives SIGTERM at that step.
    """
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)
    read = loop.Trainer._read

    def read_after_a_signal(trainer):
        if trainer.state.step == stop_at and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(trainer)

    loop.Trainer._read = read_after_a_signal
    for stage, schema, settings, arguments in jobs:
        run = importlib.import_module(f"smtkit.stages.{stage}").run
        keywords = arguments[-1] if isinstance(arguments[-1], dict) else {}
        paths = [argument for argument in arguments if isinstance(argument, str)]
        stop_at = keywords.pop("stop_at", None)
        try:
            run(getattr(config, schema).model_validate(settings), *paths, **keywords)
        except InterruptedRunError as error:
            # In one piece: the ranks share what they write to.
            os.write(1, f"{number}: {error}\n".encode())
    distributed.leave()


def main(count: int, jobs: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**address, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank, args=(i, json.loads(jobs))) for i in range(count)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
