"""Every section of docs/how-to.md works as written.

The edits of a section are applied to a copy of the package, and its commands run with that copy.
A `python` block is inserted above a definition, a `diff` block replaces its context and `-` lines
by its context and `+` lines, and the commands of an `sh` block are run.
"""

import gzip
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|diff|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INTRODUCTION, *SECTIONS = re.split(
    r"^## ", (ROOT / "docs/how-to.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)
WITHOUT_CODE = ("A sweep", "Training for longer")
BY_TITLE = {section.split("\n")[0]: section for section in SECTIONS}


def blocks(section: str, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(section) if name == language]


def commands(section: str) -> list[str]:
    lines = "".join(blocks(section, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("smtkit ")]


def edits(section: str) -> Iterator[tuple[str, str, str, str]]:
    """Language, path, the name above which a `python` block goes, and text of each edit."""
    for language, block in BLOCK.findall(section):
        if language != "sh":
            header, text = block.split("\n", 1)
            path, _, name = header.removeprefix("# ").partition(", above ")
            yield language, path, name, text


def edited(content: str, language: str, name: str, text: str) -> str:
    if language == "python":
        (found,) = re.finditer(rf"^(?:(?:def|class) )?{name}\b", content, flags=re.MULTILINE)
        return f"{content[: found.start()]}{text}\n\n{content[found.start() :]}"
    lines = [line or " " for line in text.splitlines()]
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    assert content.count(before) == 1, f"stands {content.count(before)} times:\n{before}"
    return content.replace(before, after)


def apply(section: str, root: Path) -> None:
    """Copies `src` to `root` and edits the copy."""
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for language, path, name, text in edits(section):
        content = (root / path).read_text(encoding="utf-8")
        (root / path).write_text(edited(content, language, name, text), encoding="utf-8")


def run_commands(section: str, source: Path, directory: Path, assertions: str = "") -> None:
    """Runs the commands of a section in `directory`, with smtkit imported from `source`, and then
    `assertions` on the package: in a process that is forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo"])  # optimizers import it
    output = directory / "output.txt"
    arguments = str(source), directory, commands(section), assertions, output
    process = context.Process(target=_run_in_process, args=arguments, daemon=True)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0, output.read_text(encoding="utf-8")


def _run_in_process(
    source: str, directory: Path, commands: list[str], assertions: str, output: Path
) -> None:
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(directory)
    sys.path.insert(0, source)
    import torch

    import smtkit
    from smtkit.cli.app import main

    assert smtkit.__file__.startswith(source), smtkit.__file__
    torch.set_num_threads(1)
    for command in commands:
        sys.argv = shlex.split(command)
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    exec(assertions, {})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts that the page starts from, made by the commands of its introduction."""
    directory = tmp_path_factory.mktemp("how-to")
    run_commands(INTRODUCTION, ROOT / "src", directory)
    return directory


def follow(title: str, tmp_path: Path, artifacts: Path, assertions: str = "") -> None:
    """Follows a section of the page in `tmp_path`, then runs `assertions` on the edited package."""
    apply(BY_TITLE[title], tmp_path)
    for artifact in filter(Path.is_dir, artifacts.iterdir()):
        (tmp_path / artifact.name).symlink_to(artifact)
    run_commands(BY_TITLE[title], tmp_path / "src", tmp_path, assertions)


def manifest(artifact: Path) -> dict[str, Any]:
    content = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("title", [title for title in BY_TITLE if title not in WITHOUT_CODE])
def test_a_change_touches_at_most_two_files_and_the_schema(title: str) -> None:
    paths = {path for _, path, _, _ in edits(BY_TITLE[title])}
    assert paths
    schema = {path for path in paths if path.startswith("src/smtkit/config/")}
    assert len(schema) <= 1
    assert len(paths - schema) <= 2
    assert commands(BY_TITLE[title])


def test_the_cell_rolls_out_and_learns(tmp_path: Path, artifacts: Path) -> None:
    assertions = """
import torch
from smtkit.networks.cells import MinimalGatedCell
cell = MinimalGatedCell(2, 4, 8)
memory, inputs = torch.randn(3, 2, 4), torch.randn(3, 5, 8)
rolled = cell.rollout(memory, inputs)
for step_inputs in inputs.unbind(1):
    updated = cell.update(memory, step_inputs)
    memory = updated / (updated.square().mean(-1, keepdim=True) + 1e-6).sqrt()
torch.testing.assert_close(rolled[:, -1], memory)
rolled.sum().backward()
assert all(parameter.grad is not None for parameter in cell.parameters())
"""
    follow("A cell", tmp_path, artifacts, assertions)
    for rnn in ("gated-rnn", "gated-bptt"):
        assert manifest(tmp_path / rnn)["config"]["cell"]["kind"] == "minimal-gated"


def test_the_encoder_reads_no_later_tokens(tmp_path: Path, artifacts: Path) -> None:
    assertions = """
import torch
from smtkit.config import EncoderConfig
from smtkit.networks.encoders import build_encoder
encoder = build_encoder(EncoderConfig(kind="gru", slots=2, slot_width=4, width=8), 7, 6)
tokens = torch.arange(6)[None]
memory = encoder.encode(tokens)
assert memory.shape == (1, 7, 2, 4)
for length in range(7):
    torch.testing.assert_close(encoder.encode(tokens[:, :length])[0, -1], memory[0, length])
positions = torch.tensor([[5, 0, 5]])
torch.testing.assert_close(encoder.encode_at(tokens, positions)[0], memory[0, positions[0]])
assert encoder.pass_cost(6).tokens == 6
"""
    follow("An encoder", tmp_path, artifacts, assertions)
    assert manifest(tmp_path / "gru-encoder")["config"]["encoder"]["kind"] == "gru"


def test_the_loss_term_keeps_memories_close_to_each_other(tmp_path: Path, artifacts: Path) -> None:
    follow("A loss term", tmp_path, artifacts)
    (path,) = (tmp_path / "slow-encoder").glob("run-*/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    slowness = [record["slowness"] for record in records if "slowness" in record]
    assert slowness[-1] < slowness[0]


def test_the_format_reads_one_document_per_cell(tmp_path: Path, artifacts: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    for notebook in range(20):
        cells = [{"source": [f"x = {notebook}\n", "print(x)"]}, {"source": f"# {notebook}"}]
        content = json.dumps({"cells": cells}).encode("utf-8")
        (tmp_path / "notebooks" / f"{notebook}.ipynb").write_bytes(content)
    compressed = tmp_path / "notebooks" / "compressed.ipynb.gz"
    compressed.write_bytes(gzip.compress(b'{"cells": [{"source": "pass"}]}'))
    follow("An input format", tmp_path, artifacts)
    statistics = manifest(tmp_path / "notebook-tokens")["statistics"]
    assert statistics["documents"] == 41


def test_the_codec_rounds_to_half_a_step(tmp_path: Path, artifacts: Path) -> None:
    assertions = """
import torch
from smtkit.labels.codec import CODECS
codec, memory = CODECS["int4"], torch.randn(100, 3, 8)
memory[0, 0] = 0
decoded = codec.decode(codec.encode(memory))
step = memory.abs().amax(-1, keepdim=True) / 7
assert ((decoded - memory).abs() <= step / 2 + 1e-6).all()
memory[1, 2, 3] = torch.nan
assert not codec.encode(memory)["scale"][1].isfinite().all()
"""
    follow("A memory codec", tmp_path, artifacts, assertions)
    assert manifest(tmp_path / "int4-labels")["config"]["dtype"] == "int4"


def test_training_goes_on_for_longer(tmp_path: Path, artifacts: Path) -> None:
    follow("Training for longer", tmp_path, artifacts)
    assert manifest(tmp_path / "rnn")["statistics"]["steps"] == 10
    for name in ("further", "tuned"):
        assert "--init" in manifest(tmp_path / name)["command"]
