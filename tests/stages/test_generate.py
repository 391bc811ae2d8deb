"""The generate stage: images and their completions, answers to tasks, and refused settings."""

import io
import json
import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import (
    Command,
    Pipeline,
    arrow_columns,
    build_pipeline,
    encoder_config,
    rnn_config,
    uniforms,
    write_keys_values,
)
from smtkit import IGNORE
from smtkit.config import (
    ExtractLabelsConfig,
    GenerateConfig,
    SynthesizeConfig,
    TokenizeConfig,
    resolve,
)
from smtkit.corpus.pictures import shades
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.tokenizers import SymbolTokenizer
from smtkit.networks.loading import load_rnn
from smtkit.stages import generate, synthesize, tokenize
from smtkit.stages.generate import given_lines
from smtkit.storage.artifact import Artifact

HEIGHT, WIDTH, WHITE = 4, 3, 3


GREY = 96


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (80, HEIGHT, WIDTH), dtype=np.uint8)
    np.savez(directory / "images.npz", images=pixels)
    flags = {
        "inputs": [str(directory / "images.npz")],
        "tokenizer": "pixel",
        "pixel.levels": WHITE + 1,
        "test_fraction": 0.2,
    }
    tokenize.run(resolve(TokenizeConfig, flags=flags), directory / "tokens")
    return chain(directory)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Of rows of two lengths."""
    directory = tmp_path_factory.mktemp("task")
    write_keys_values(directory / "tokens")
    return chain(directory)


def chain(directory: Path) -> Pipeline:
    return build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(),
        rnn_config(data={"positions": 4}),
    )


def stored(tokens: Path, split: str) -> dict[str, list[Any]]:
    """The columns of a split, read by Arrow alone."""
    return arrow_columns(Artifact.open(tokens).files(f"{split}-"))


def written(pipeline: Pipeline, **settings: Any) -> str:
    places = {name: settings.pop(name) for name in ("tokens", "out") if name in settings}
    return "".join(generate.run(GenerateConfig(**settings), pipeline.rnn, **places))


def grey(path: Path) -> np.ndarray:
    """A picture, of which each pixel is a square of as many screen pixels as fit 512 in all."""
    picture = Image.open(path)
    assert picture.format == "PNG"
    assert picture.mode == "L"
    enlarged = np.asarray(picture)
    for scale in range(512, 0, -1):
        small = enlarged[::scale, ::scale]
        if np.array_equal(np.kron(small, np.ones((scale, scale), np.uint8)), enlarged):
            break
    assert max(enlarged.shape) <= 512 < max(enlarged.shape) + max(small.shape)
    return small


def test_free_images_lie_in_a_grid(images: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "samples.png"
    said = written(images, out=out, samples=5, seed=1, temperature=0.7)
    assert said == f"{out}: 5 images of 4 x 3"
    grid = grey(out)
    assert grid.shape == (2 * HEIGHT + 2, 3 * WIDTH + 2 * 2)
    network = load_rnn(Artifact.open(images.rnn))
    source = uniforms(1)
    nothing = torch.zeros(5, 0, dtype=torch.int64)
    drawn = network.complete(nothing, 12, temperature=0.7, uniforms=source)
    for number, pixels in enumerate(drawn.numpy().reshape(5, HEIGHT, WIDTH)):
        row, column = divmod(number, 3)
        place = grid[row * (HEIGHT + 2) :, column * (WIDTH + 2) :][:HEIGHT, :WIDTH]
        assert (place == pixels * (255 // WHITE)).all()
    assert (grid[HEIGHT : HEIGHT + 2] == GREY).all()
    assert [path.name for path in out.parent.iterdir()] == ["samples.png"]


def triples(path: Path, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Original, given and completion, cut out of a picture; all between them is grey."""
    grid = grey(path).astype(int)
    height, width = HEIGHT + 2, 3 * WIDTH + 4
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    assert grid.shape == (rows * (height + 2) - 2, columns * (width + 2) - 2)
    found = []
    for number in range(count):
        row, column = divmod(number, columns)
        top, left = row * (height + 2) + 1, column * (width + 2) + 1
        parts = []
        for start in (left, left + WIDTH + 1, left + 2 * (WIDTH + 1)):
            parts.append(grid[top : top + HEIGHT, start : start + WIDTH].copy())
            grid[top : top + HEIGHT, start : start + WIDTH] = GREY
        found.append((parts[0], parts[1], parts[2]))
    assert (grid == GREY).all()
    return found


@pytest.mark.parametrize(("given", "lines"), [(0.0, 0), (0.5, 2), (0.3, 1), (0.99, 3)])
def test_completions_begin_with_what_is_given(
    images: Pipeline, tmp_path: Path, given: float, lines: int
) -> None:
    out = tmp_path / "completions.png"
    settings = {"from_split": "test", "given": given, "samples": 7, "seed": 2}
    said = written(images, tokens=images.tokens, out=out, **settings)
    assert said == f"{out}: 7 images of 4 x 3: original, given, completion"
    rows = {tuple(row) for row in stored(images.tokens, "test")["tokens"]}
    found = triples(out, 7)
    originals = [tuple((original // (255 // WHITE)).ravel()) for original, _, _ in found]
    assert set(originals) <= rows
    assert len(set(originals)) == 7
    for original, shown, completion in found:
        assert (shown[:lines] == original[:lines]).all()
        assert (shown[lines:] == GREY).all()
        assert (completion[:lines] == original[:lines]).all()
        assert set(completion.ravel()) <= {0, 85, 170, 255}
    assert any((completion != original).any() for original, _, completion in found)


def test_likeliest_completions_are_those_of_one_sequence_each(
    images: Pipeline, tmp_path: Path
) -> None:
    out = tmp_path / "completions.png"
    settings = {"from_split": "test", "samples": 4, "seed": 0, "temperature": 0}
    written(images, tokens=images.tokens, out=out, **settings)
    network = load_rnn(Artifact.open(images.rnn))
    for original, _, completion in triples(out, 4):
        prompt = (original[:2] // (255 // WHITE)).ravel().tolist()
        rest = (completion[2:] // (255 // WHITE)).ravel().tolist()
        assert rest == list(islice(network.generate(prompt, temperature=0), 6))


def test_more_samples_than_rows_are_all_rows(images: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "completions.png"
    written(images, tokens=images.tokens, out=out, from_split="test", samples=1000)
    rows = stored(images.tokens, "test")["tokens"]
    found = [(original // 85).ravel().tolist() for original, _, _ in triples(out, len(rows))]
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize("from_split", [None, "test"])
def test_the_seed_decides_the_file(
    images: Pipeline, tmp_path: Path, from_split: str | None
) -> None:
    tokens = images.tokens if from_split else None
    contents = []
    for number, seed in enumerate((5, 5, 6)):
        out = tmp_path / f"{number}.png"
        written(images, tokens=tokens, out=out, from_split=from_split, samples=9, seed=seed)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_without_a_seed_each_result_is_another(images: Pipeline) -> None:
    assert written(images) != written(images)


def test_images_are_drawn_in_a_terminal(command: Command, images: Pipeline) -> None:
    result = command("generate", images.rnn, "--samples", 3, "--seed", 1, "--top-k", 2)
    assert result.code == 0
    network = load_rnn(Artifact.open(images.rnn))
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    source = uniforms(1)
    drawn = network.complete(nothing, 12, top_k=2, uniforms=source).numpy()
    expected = [
        f"--- image {number + 1}\n{shades(pixels.reshape(HEIGHT, WIDTH), WHITE)}\n"
        for number, pixels in enumerate(drawn)
    ]
    assert result.stdout == "".join(expected)


def test_completions_are_drawn_beside_their_originals(command: Command, images: Pipeline) -> None:
    flags = ["--tokens", images.tokens, "--from-split", "test", "--samples", 2, "--given", 0.5]
    result = command("generate", images.rnn, *flags)
    assert result.code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * (1 + HEIGHT)
    for start in (0, 1 + HEIGHT):
        assert lines[start].endswith(": original | given | completion")
        for number, line in enumerate(lines[start + 1 : start + 1 + HEIGHT]):
            original, given, completion = line.split(" | ")
            assert given == (original if number < 2 else "· " * WIDTH)
            assert number >= 2 or completion == original


@pytest.mark.parametrize("height", [1, 2, 7, 28])
def test_given_lines_leave_something_to_complete(height: int) -> None:
    shares = [share / 100 for share in range(100)]
    lines = [given_lines(share, height) for share in shares]
    assert lines == sorted(lines)
    assert lines[0] == 0
    assert lines[-1] == height - 1
    for share, given in zip(shares, lines, strict=True):
        assert given == height - 1 or abs(given - share * height) <= 0.5


def answered(output: str) -> tuple[list[list[tuple[str, str | None, bool]]], str]:
    """Of each row (symbol, answer, whether it counts as right) at each place; and the last line."""
    *lines, last = output.splitlines()
    rows = []
    for line in lines:
        cells = re.findall(r"(\S+?)(?:->(\S+) (?:\((\S+)\)|not (\S+)))?(?: |$)", line)
        rows.append([(s, found or None, bool(right)) for s, found, right, _ in cells])
    return rows, last


@torch.no_grad()
def test_answers_are_the_likeliest_of_a_rollout(command: Command, task: Pipeline) -> None:
    flags = ["--tokens", task.tokens, "--from-split", "test", "--samples", 20]
    result = command("generate", task.rnn, *flags)
    assert result.code == 0
    network = load_rnn(Artifact.open(task.rnn))
    columns = stored(task.tokens, "test")
    tokenizer = load_tokenizer(Artifact.open(task.rnn))
    assert isinstance(tokenizer, SymbolTokenizer)
    symbols = tokenizer.symbols
    expected, asked, right = [], 0, 0
    for tokens, targets in zip(columns["tokens"], columns["targets"], strict=True):
        memory, cells = network.empty_memory[None], []
        for token, target in zip(tokens, targets[1:], strict=True):
            memory = network.step(memory, torch.tensor([token]))
            cell = symbols[token]
            if target != IGNORE:
                found = int(network.readout(memory)[0].argmax())
                asked, right = asked + 1, right + (found == target)
                verdict = "({})" if found == target else "not {}"
                cell += f"->{symbols[found]} " + verdict.format(symbols[target])
            cells.append(cell)
        expected.append(" ".join(cells))
    *lines, last = result.stdout.splitlines()
    assert sorted(lines) == sorted(expected)
    assert last == f"answers right: {right} of {asked}"


def test_wrong_answers_are_marked(task: Pipeline) -> None:
    settings = {"tokens": task.tokens, "from_split": "test", "samples": 20, "seed": 4}
    rows, last = answered(written(task, **settings, temperature=2.0))
    verdicts = [right for row in rows for _, found, right in row if found]
    assert last == f"answers right: {sum(verdicts)} of {len(verdicts)}"
    assert 0 < sum(verdicts) < len(verdicts)


def test_the_seed_chooses_rows_and_draws(task: Pipeline) -> None:
    settings = {"tokens": task.tokens, "from_split": "test", "samples": 5}
    first, again, other = (written(task, **settings, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    cold, warm = (written(task, **settings, seed=1, temperature=t) for t in (0, 5.0))
    assert first == cold != warm
    assert len(first.splitlines()) == 6


@pytest.mark.parametrize(
    ("kind", "flags", "found"),
    [
        ("text", ["--from-split", "test"], "--from-split: "),
        ("text", ["--samples", 4], "--samples: "),
        ("text", ["--given", 0.5], "--given: "),
        ("text", ["--tokens", "TOKENS"], "--tokens: "),
        ("text", ["--out", "OUT"], "--out: "),
        ("images", ["--prompt", "a"], "--prompt: "),
        ("images", ["--max-tokens", 9], "--max-tokens: "),
        ("images", ["--from-split", "test"], "--tokens must be set"),
        ("images", ["--tokens", "TOKENS"], "--tokens: --from-split must be set"),
        ("images", ["--given", 0.5], "--given: --from-split must be set"),
        ("images", ["--given", 1], "given"),
        ("images", ["--samples", 0], "samples"),
        ("images", ["--samples", "some"], "samples"),
        ("images", ["--tokens", "TOKENS", "--from-split", "tset"], "'validation' or 'test'"),
        ("images", ["--tokens", "MISSING", "--from-split", "test"], "no such"),
        ("images", ["--out", "DIRECTORY"], "is a directory"),
        ("task", [], "needs rows to answer (--tokens TOKENS --from-split test)"),
        ("task", ["--from-split", "test"], "--tokens must be set"),
        ("task", ["--prompt", "a"], "--prompt: "),
        ("task", ["--max-tokens", 9], "--max-tokens: "),
        ("task", ["--given", 0.5], "--given: "),
        ("task", ["--out", "OUT"], "--out: "),
    ],
)
def test_a_setting_that_has_no_meaning_is_one_line(
    command: Command,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    flags: list[object],
    found: str,
) -> None:
    pipeline = request.getfixturevalue({"text": "pipeline"}.get(kind, kind))
    places: dict[object, object] = {
        "TOKENS": pipeline.tokens,
        "OUT": tmp_path / "out.png",
        "DIRECTORY": tmp_path,
        "MISSING": tmp_path / "missing",
    }
    result = command("generate", pipeline.rnn, *(places.get(flag, flag) for flag in flags))
    assert result.code == 2
    assert found in result.line()
    assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_tokenizer_are_refused(
    command: Command, images: Pipeline, task: Pipeline
) -> None:
    for one, other in ((images, task), (task, images)):
        flags = ["--tokens", other.tokens, "--from-split", "test"]
        result = command("generate", one.rnn, *flags)
        assert result.code == 3
        assert result.line().startswith(f"{other.tokens}: its tokenizer")
    flags = ["--tokens", images.rnn, "--from-split", "test"]
    assert command("generate", images.rnn, *flags).code == 3


def test_an_empty_split_is_refused(command: Command, task: Pipeline, tmp_path: Path) -> None:
    config = SynthesizeConfig(
        task="keys-values", lengths=[8], sequences=5, test_sequences=1, vocabulary=13
    )
    synthesize.run(config.model_copy(update={"test_sequences": 0}), tmp_path / "tokens")
    flags = ["--tokens", tmp_path / "tokens", "--from-split", "test"]
    result = command("generate", task.rnn, *flags)
    assert result.code == 3
    assert "the test split is empty" in result.line()


def test_a_file_that_exists_is_kept_unless_overwritten(
    command: Command, images: Pipeline, tmp_path: Path
) -> None:
    out = tmp_path / "samples.png"
    out.write_text("mine")
    refused = command("generate", images.rnn, "--out", out)
    assert refused.code == 2
    assert refused.line() == f"--out {out}: exists (--overwrite replaces it)"
    assert out.read_text() == "mine"
    result = command("generate", images.rnn, "--out", out, "--overwrite", "--samples", 1)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"{out}: 1 image of 4 x 3\n"
    assert grey(out).shape == (HEIGHT, WIDTH)
    assert list(tmp_path.iterdir()) == [out]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    command: Command, images: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples.png"
    out.write_text("mine")

    def full(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = command("generate", images.rnn, "--out", out, "--overwrite")
    assert result.code == 74
    assert "No space left on device" in result.line()
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["samples.jpg", "samples.JPEG", "samples.txt"])
def test_a_picture_of_another_format_is_refused(
    command: Command, images: Pipeline, tmp_path: Path, name: str
) -> None:
    result = command("generate", images.rnn, "--out", tmp_path / name)
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    assert "pictures are written as PNG, allowed: samples.png" in result.line()


@pytest.mark.parametrize("kind", ["pipeline", "images", "task"])
@pytest.mark.parametrize("temperature", [1e-37, 1e-38, 1e-50, 5e-324])
def test_a_temperature_too_small_to_divide_by_is_zero(
    command: Command, request: pytest.FixtureRequest, kind: str, temperature: float
) -> None:
    built = request.getfixturevalue(kind)
    rows = ["--tokens", built.tokens, "--from-split", "test"] if kind == "task" else []
    found, expected = (
        command("generate", built.rnn, *rows, "--seed", 1, "--temperature", t)
        for t in (temperature, 0)
    )
    assert (found.code, found.stderr) == (0, "")
    assert found.stdout == expected.stdout


@pytest.mark.parametrize("temperature", ["-1e-50", "nan", "inf", "cold"])
def test_what_is_no_temperature_is_one_line(
    command: Command, pipeline: Pipeline, temperature: str
) -> None:
    result = command("generate", pipeline.rnn, "--temperature", temperature)
    assert result.code == 2
    assert "temperature" in result.line()


def test_a_prompt_comes_from_standard_input(
    command: Command, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--seed", 1, "--max-tokens", 20)
    expected = command("generate", pipeline.rnn, "--prompt", "état\n", *flags)
    piped = io.TextIOWrapper(io.BytesIO("état\n".encode()), "ascii")
    monkeypatch.setattr("sys.stdin", piped)
    assert command("generate", pipeline.rnn, "--prompt", "-", *flags) == expected


def test_what_is_generated_is_printed_as_json(command: Command, pipeline: Pipeline) -> None:
    flags = ("--prompt", "the ", "--seed", 1, "--max-tokens", 20)
    found = json.loads(command("generate", pipeline.rnn, *flags, "--json").stdout)
    assert found["prompt"] == "the "
    assert "the " + found["output"] + "\n" == command("generate", pipeline.rnn, *flags).stdout


def test_characters_that_the_tokenizer_lacks_are_named(
    command: Command, character_pipeline: Pipeline
) -> None:
    flags = ("--seed", 1, "--max-tokens", 5)
    result = command("generate", character_pipeline.rnn, "--prompt", "the Zürich %Z", *flags)
    assert result.code == 0
    assert result.stderr == (
        f"warning: 'Z', '%' in the prompt: read as an unknown character, since the tokenizer of "
        f"{character_pipeline.rnn} lacks it\n"
    )
    assert command("generate", character_pipeline.rnn, "--prompt", "the", *flags).stderr == ""


def test_text_is_as_before(command: Command, pipeline: Pipeline) -> None:
    result = command("generate", pipeline.rnn, "--prompt", "the ", "--seed", 1, "--max-tokens", 20)
    assert result.code == 0
    config = GenerateConfig(prompt="the ", seed=1, max_tokens=20, temperature=1.0)
    assert result.stdout == "the " + "".join(generate.run(config, pipeline.rnn)) + "\n"
