"""The commands: their arguments and examples, and how each runs its stage."""

import json
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtkit import config as schemas
from smtkit.cli.command import (
    DEBUG,
    JSON,
    OUT,
    OVERWRITE,
    RANKS,
    RUN,
    SETTINGS,
    TOKENS,
    Command,
    Given,
    for_stage,
    on_ranks,
    run,
)
from smtkit.cli.doctor import DOCTOR
from smtkit.cli.export import EXPORT
from smtkit.cli.init import INIT
from smtkit.cli.logged import LOGGED, run_logged
from smtkit.cli.options import ARTIFACTS, argument, option
from smtkit.cli.plain import plain
from smtkit.cli.plan import PLAN
from smtkit.cli.report import REPORT
from smtkit.cli.status import STATUS
from smtkit.errors import UsageError

if TYPE_CHECKING:
    from smtkit.cli.terminal import Terminal


def _extract_labels(stage: Any, config: schemas.Config, given: Given) -> None:
    """All labels, the shards of one part, or the artifact once all parts are written."""
    text = given.pop("part")
    if given["overwrite"] and (text or given["finalize"]):
        raise UsageError("`overwrite`: would remove what parts have written", "leave it out")
    if text is None:
        run(stage, config, given)
        return
    part, parts = parse_part(text)
    if given.pop("finalize"):
        raise UsageError("`finalize`: is for when all parts are written", "leave it out")
    del given["overwrite"]

    def work(terminal: "Terminal") -> int:
        arguments = for_stage(given)
        return stage.run_part(config, part=part, parts=parts, progress=terminal, **arguments)

    shards = on_ranks(given, work)
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
    from smtkit.cli.terminal import Terminal

    if config.prompt == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        config = config.model_copy(update={"prompt": text})
    pieces = stage.run(config, progress=Terminal(), **for_stage(given))
    if given["json"]:
        print(json.dumps({"prompt": config.prompt, "output": "".join(pieces)}))
        return
    shown = plain if sys.stdout.isatty() else str
    for piece in chain([config.prompt], pieces, ["\n"]):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()


def _inspect(stage: Any, config: None, given: Given) -> None:
    """Show what an artifact is and what it was made from.

    For a tokens artifact, also its counts and some rows."""
    from smtkit.cli.results import show_inspection

    path, png = given.pop("artifact"), given.pop("png")
    inspection = stage.run(path, **for_stage(given))
    if png is not None:
        stage.save_pictures(inspection, png)
    show_inspection(inspection, path, as_json=given["json"], draw=png is None)


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
        (
            argument("tokens", "TOKENS", "Tokens artifact."),
            OUT,
            option("--init ENCODER", "Encoder artifact to start from.", section=ARTIFACTS),
            *RUN,
            *RANKS,
            *LOGGED,
        ),
        (
            "smtkit train-encoder tokens --out encoder --max-steps 1000",
            "smtkit train-encoder tokens --out encoder --config encoder.toml --nproc 2",
        ),
        run_logged,
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
            *LOGGED,
        ),
        (
            "smtkit train-rnn labels --out rnn --cell gru --max-steps 3000",
            "smtkit train-rnn labels --out tuned --method dmt --init rnn --max-steps 500",
        ),
        run_logged,
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
            option("--out, -o FILE", "PNG file for the images.", section=ARTIFACTS),
            *SETTINGS,
            OVERWRITE,
            JSON,
            DEBUG,
        ),
        (
            'smtkit generate rnn --prompt "Once upon a time" --temperature 0.8',
            "smtkit generate rnn --tokens tokens --from-split test --out completed.png",
        ),
        _generate,
    ),
    EXPORT,
    REPORT,
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
    INIT,
    STATUS,
    PLAN,
    DOCTOR,
)
