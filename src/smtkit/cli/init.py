"""`smtkit init`."""

import shlex
from pathlib import Path
from typing import Any

from smtkit.cli.command import DEBUG, Command, Given, for_stage
from smtkit.cli.options import argument, option
from smtkit.cli.plain import plain


def _init(stage: Any, config: None, given: Given) -> None:
    """Write a pipeline to start from: a Makefile and its settings.

    quickstart: Python's standard library by bytes. text: your own text by subwords. digits:
    images. retrieval: a synthetic memory task."""
    pipeline, directory = given.pop("pipeline"), given.pop("directory")
    written = stage.run(pipeline, directory, **for_stage(given))
    print(plain(f"{directory}: {', '.join(path.name for path in written)}"))
    data = " TEXT=FILE-OR-FOLDER" if pipeline == "text" else ""
    where = shlex.quote(str(directory))
    print(plain(f"run it with: make -C {where}{data}  (SMOKE=1: within a minute, to try it)"))


INIT = Command(
    "init",
    None,
    (
        argument("pipeline", "quickstart|text|digits|retrieval", "Pipeline to write."),
        argument("directory", "DIR", "Directory to write it to.", Path),
        option("--overwrite", "Replace files that exist."),
        DEBUG,
    ),
    ("smtkit init text my-pipeline", "smtkit init retrieval needles"),
    _init,
)
