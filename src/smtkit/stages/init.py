"""`smtkit init`: writes a pipeline, a Makefile with settings, to start from."""

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path

import smtkit
from smtkit.errors import UsageError

PIPELINES = {
    "quickstart": "Python's standard library, by bytes",
    "text": "your own text, by subwords",
    "digits": "images, pixel by pixel (scikit-learn's digits)",
    "retrieval": "a synthetic needle-in-a-haystack task",
}
SHARED = "stages.mk"
"""Rules of all pipelines, included by their Makefiles from the same folder or the one above."""


def run(pipeline: str, directory: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Writes the files of `pipeline` to `directory`; returns their paths.

    Raises UsageError for a pipeline that does not exist, and for files that do, unless `overwrite`
    is set.
    """
    if pipeline not in PIPELINES:
        raise UsageError(f"pipeline {pipeline}: allowed: {', '.join(PIPELINES)}")
    root = Path(directory)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: not a directory")
    with as_file(files(smtkit) / "pipelines") as packaged:
        # A checkout has the pipelines beside its sources; wheels are built with a copy of them.
        source = packaged if packaged.is_dir() else Path(smtkit.__file__).parents[2] / "pipelines"
        settings = sorted((source / pipeline).glob("*.toml"))
        paths = [source / pipeline / "Makefile", source / SHARED, *settings]
        existing = [path.name for path in paths if (root / path.name).exists()]
        if existing and not overwrite:
            raise UsageError(
                f"{root}: holds {existing[0]}", "name another directory, or `overwrite` replaces it"
            )
        root.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(path, root / path.name)) for path in paths]
