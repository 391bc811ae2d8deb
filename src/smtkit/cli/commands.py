"""The commands: their arguments and examples, and how each runs its stage."""

import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from smtkit import config as schemas
from smtkit.cli import launcher
from smtkit.cli.options import ARTIFACTS, argument, flags_of, option, values_of, with_flags
from smtkit.cli.plain import plain
from smtkit.cli.startup import ended_by_interrupt
from smtkit.errors import UsageError

if TYPE_CHECKING:
    from smtkit.cli.terminal import Terminal

Given = dict[str, Any]
"""Parsed parameters of a command, by name."""
ResultT = TypeVar("ResultT")
REQUIRED = inspect.Parameter.empty

# Artifacts are text, no Path, which would make one slash of the two of a URI.
OUT = option(
    "--out, -o DIR|URI",
    "Directory or URI (s3://bucket/name) of the new artifact.",
    str,
    REQUIRED,
    ARTIFACTS,
)
TOKENS = option(
    "--tokens DIR|URI", "Tokens artifact of the same tokenizer.", str, REQUIRED, ARTIFACTS
)
SETTINGS = (
    option("--config, -c FILE", "TOML file of settings.", Path | None),
    option(
        "--set KEY=VALUE",
        "Any setting of docs/configuration.md; repeatable, stronger than --config.",
        list[str] | None,
    ),
    option("--print-config", "Print every setting and where it was set, as TOML, and exit."),
)
OVERWRITE = option("--overwrite", "Replace what --out holds.")
JSON = option("--json", "Print the result as JSON on stdout.")
DEBUG = option("--debug", "Show the traceback of an error.")
NPROC = option(
    "--nproc N", "Processes to run on this machine; omit under torchrun.", int | None, min=1
)
PATIENCE = option(
    "--patience SECONDS",
    "With several processes: end the run when one has not answered for so long.",
    float,
    300.0,
    min=1.0,
)
RANKS = (NPROC, PATIENCE)
RUN = (
    *SETTINGS,
    OVERWRITE,
    option(
        "--resume",
        "Continue an interrupted run, start if there is none, keep a complete one. With "
        "--overwrite: run again if settings or inputs changed.",
    ),
    JSON,
    option("--quiet, -q", "Show neither progress nor a summary."),
    DEBUG,
)


def _on_ranks(given: Given, work: Callable[["Terminal"], ResultT]) -> ResultT | None:
    """Runs `work` in this process, or starts `nproc` of them. None on all ranks but the first."""
    nproc, patience = given.pop("nproc", None), given.pop("patience", math.inf)
    if launcher.must_launch(nproc):
        raise typer.Exit(launcher.launch(nproc))
    from smtkit.cli.terminal import Terminal

    first = launcher.is_first()
    with launcher.among_ranks(patience), Terminal(quiet=given["quiet"] or not first) as terminal:
        result = work(terminal)
    return result if first else None


def _for_stage(given: Given) -> Given:
    return {name: value for name, value in given.items() if name not in ("json", "quiet", "debug")}


def _run(stage: Any, config: schemas.Config, given: Given) -> None:
    manifest = _on_ranks(given, lambda t: stage.run(config, progress=t, **_for_stage(given)))
    if manifest is not None:
        from smtkit.cli.results import show_manifest

        show_manifest(manifest, given["out"], as_json=given["json"], quiet=given["quiet"])


def _extract_labels(stage: Any, config: schemas.Config, given: Given) -> None:
    """All labels, the shards of one part, or the artifact once all parts are written."""
    text = given.pop("part")
    if given["overwrite"] and (text or given["finalize"]):
        raise UsageError("`overwrite`: would remove what parts have written", "leave it out")
    if text is None:
        _run(stage, config, given)
        return
    part, parts = parse_part(text)
    if given.pop("finalize"):
        raise UsageError("`finalize`: is for when all parts are written", "leave it out")
    del given["overwrite"]

    def work(terminal: "Terminal") -> int:
        arguments = _for_stage(given)
        return stage.run_part(config, part=part, parts=parts, progress=terminal, **arguments)

    shards = _on_ranks(given, work)
    if shards is not None and given["json"]:
        print(json.dumps({"part": part, "parts": parts, "shards": shards}))
    elif shards is not None and not given["quiet"]:
        print(f"{given['out']}: part {part} of {parts}: {shards} shards")


def parse_part(text: str) -> tuple[int, int]:
    """I and N of `I/N`. Raises UsageError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"`part` {text}: allowed: 1/N to N/N, as `part` 3/8")
    return int(number), int(count)


def _generate(stage: Any, config: schemas.GenerateConfig, given: Given) -> None:
    pieces = stage.run(config, **_for_stage(given))
    shown = plain if sys.stdout.isatty() else str
    for piece in chain([config.prompt], pieces, ["\n"]):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()


def _inspect(stage: Any, config: None, given: Given) -> None:
    """Show what an artifact is and what it was made from.

    For a tokens artifact, also its counts and some rows."""
    from smtkit.cli.results import show_inspection

    path, png = given.pop("artifact"), given.pop("png")
    inspection = stage.run(path, **_for_stage(given))
    if png is not None:
        stage.save_pictures(inspection, png)
    show_inspection(inspection, path, as_json=given["json"], draw=png is None)


@dataclass(frozen=True)
class Command:
    """`smtkit NAME`: runs the stage of that name. Its help is the docstring of the schema."""

    name: str
    schema: type[schemas.Config] | None
    parameters: tuple[inspect.Parameter, ...]
    """Arguments, and options that are no settings."""
    examples: tuple[str, str]
    run: Callable[[Any, Any, Given], None] = _run

    @property
    def help(self) -> str:
        return inspect.cleandoc((self.schema or self.run).__doc__ or "")

    def __call__(self, **given: Any) -> None:
        config = None
        if self.schema:
            flags = values_of(self.schema, given)
            file, overrides = given.pop("config"), given.pop("set") or ()
            config, origins = schemas.layer(self.schema, file, overrides, flags)
            if given.pop("print_config"):
                _print_config(config, origins, flags_of(self.schema, self.parameters))
                return
        name = {"eval": "evaluate"}.get(self.name, self.name.replace("-", "_"))
        with ended_by_interrupt():
            stage = import_module(f"smtkit.stages.{name}")
            for module in ("results", "terminal"):  # what the command imports when it runs
                import_module(f"smtkit.cli.{module}")
        self.run(stage, config, given)


def _print_config(config: schemas.Config, origins: dict[str, str], flags: dict[str, str]) -> None:
    """TOML of every setting, with its origin; commented out what is unset or has no effect."""
    reasons = schemas.without_effect(config)
    for key, value in schemas.flatten(config.model_dump(mode="json")):
        line = f"{key} = {'unset' if value is None else json.dumps(value)}"
        line = f"# {line}" if value is None or key in reasons else line
        origin = with_flags(origins.get(key, "default"), flags)
        print(f"{line:<48}  # {origin}" + (f"; {reasons[key]}" if key in reasons else ""))


COMMANDS = (
    Command(
        "tokenize",
        schemas.TokenizeConfig,
        (OUT, *RUN),
        (
            "smtkit tokenize my-text/ --out tokens --tokenizer sentencepiece",
            "smtkit tokenize train-images.gz --out digits --tokenizer pixel --size 14x14",
        ),
    ),
    Command(
        "synthesize",
        schemas.SynthesizeConfig,
        (OUT, *RUN),
        (
            "smtkit synthesize retrieval --length 64 --sequences 20000 --out tokens",
            "smtkit synthesize keys-values --lengths 16,32 --sequences 5000 --out pairs",
        ),
    ),
    Command(
        "train-encoder",
        schemas.TrainEncoderConfig,
        (argument("tokens", "TOKENS", "Tokens artifact."), OUT, *RUN, *RANKS),
        (
            "smtkit train-encoder tokens --out encoder --max-steps 1000",
            "smtkit train-encoder tokens --out encoder --config encoder.toml --nproc 2",
        ),
    ),
    Command(
        "extract-labels",
        schemas.ExtractLabelsConfig,
        (
            argument("encoder", "ENCODER", "Encoder artifact."),
            TOKENS,
            option("--rnn RNN", "Start from its memory every --context tokens.", section=ARTIFACTS),
            OUT,
            *RUN,
            *RANKS,
            option("--part I/N", "Write only the shards of part I of N, as a job of its own."),
            option("--finalize", "Complete the artifact when all parts are written."),
        ),
        (
            "smtkit extract-labels encoder --tokens tokens --out labels --max-windows 6000",
            "smtkit extract-labels encoder --tokens tokens --out labels --part 3/8",
        ),
        _extract_labels,
    ),
    Command(
        "train-rnn",
        schemas.TrainRnnConfig,
        (
            argument("labels_or_tokens", "LABELS|TOKENS", "Labels artifact; for bptt, tokens."),
            OUT,
            option("--init RNN", "RNN artifact to start from.", section=ARTIFACTS),
            *RUN,
            *RANKS,
        ),
        (
            "smtkit train-rnn labels --out rnn --cell gru --max-steps 3000",
            "smtkit train-rnn labels --out tuned --method dmt --init rnn --max-steps 500",
        ),
    ),
    Command(
        "eval",
        schemas.EvaluateConfig,
        (
            argument("rnn", "RNN", "RNN artifact."),
            TOKENS,
            option("--encoder DIR|URI", "The RNN's teacher, to compare with.", section=ARTIFACTS),
            OUT,
            *RUN,
            *RANKS,
        ),
        (
            "smtkit eval rnn --tokens tokens --encoder encoder --out evaluation",
            "smtkit eval rnn --tokens tokens --out far --lengths 16 --gradients --cost",
        ),
    ),
    Command(
        "generate",
        schemas.GenerateConfig,
        (
            argument("rnn", "RNN", "RNN artifact."),
            option("--tokens DIR|URI", "Images or rows to continue.", section=ARTIFACTS),
            option("--out, -o FILE", "PNG file for the images.", Path | None, section=ARTIFACTS),
            *SETTINGS,
            OVERWRITE,
            DEBUG,
        ),
        (
            'smtkit generate rnn --prompt "Once upon a time" --temperature 0.8',
            "smtkit generate rnn --tokens tokens --from-split test --out completed.png",
        ),
        _generate,
    ),
    Command(
        "inspect",
        None,
        (
            argument("artifact", "ARTIFACT", "Artifact of any kind."),
            option("--verify", "Check every file against its checksum."),
            option("--split NAME", "Split to show rows of.", str, "train"),
            option("--rows N", "Number of rows.", int, 3, min=0),
            option("--seed N", "Seed of the choice of rows.", int, 0),
            option("--png FILE", "Draw rows of images to this file.", Path | None),
            JSON,
            DEBUG,
        ),
        ("smtkit inspect tokens --rows 5", "smtkit inspect rnn --verify"),
        _inspect,
    ),
)
