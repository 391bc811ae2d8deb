"""`smtkit export`: every cell as ONNX and torch.export, its parity, int8, and refused settings."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import sentencepiece
import torch

import smtkit
from conftest import (
    Command,
    Pipeline,
    Recorder,
    tokenized,
    uniforms,
    write_keys_values,
    write_text,
)
from smtkit.config import CellConfig, ExportConfig
from smtkit.errors import SmtkitError
from smtkit.inference import export as formats
from smtkit.inference.parity import bits, compare
from smtkit.inference.trained import TrainedRNN
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import sample_each
from smtkit.stages import export

CELLS = get_args(CellConfig.model_fields["kind"].annotation)
CASES: list[dict[str, Any]] = [
    *({"cell": {"kind": kind}} for kind in CELLS),
    *({"cell": {"kind": kind, "normalize": "none"}} for kind in ("gru", "lstm")),
    *(
        {"cell": {"kind": kind, "normalize": "none", "gate": True}}
        for kind in ("mlp", "transformer")
    ),
    {"readout": {"kind": "decoder"}, "decoder": {"width": 16, "layers": 1, "heads": 2}},
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    return tokenized(write_text(directory / "text.txt", 800), directory / "tokens")


def trained(tokens: Path, out: Path, **changes: Any) -> Path:
    """A tiny RNN that has learned from a few batches."""
    settings = {
        "method": "bptt",
        "memory": {"slots": 2, "slot_width": 8},
        "training": {"batch_size": 8, "max_steps": 3, "warmup_steps": 1, "learning_rate": 0.01},
        **changes,
        "cell": {"width": 16, **changes.get("cell", {})},
    }
    smtkit.train_rnn(tokens, out, **settings)
    return out


@pytest.fixture(scope="module")
def rnn(tokens: Path) -> Path:
    return trained(tokens, tokens.parent / "rnn", cell={"kind": "gru"}, data={"window": 16})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_cell_agrees_with_its_program(
    tokens: Path, tmp_path: Path, case: dict[str, Any]
) -> None:
    """Compared here with the network, step by step, on batches of several sizes."""
    path = tmp_path / "model.onnx"
    exported = export.run(ExportConfig(steps=300), trained(tokens, tmp_path / "rnn", **case), path)
    assert exported.parity
    assert max(exported.parity.memory, exported.parity.logits) < 1e-4
    session = onnxruntime.InferenceSession(path)
    network = smtkit.load_rnn(tmp_path / "rnn", device="cpu").network
    beside = json.loads(path.with_suffix(".json").read_text())
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 5):
        memory = np.repeat(np.array([beside["empty_memory"]], np.float32), batch, 0)
        own = network.start(batch)
        for _ in range(20):
            token = torch.randint(257, (batch,), generator=generator)
            memory, logits = session.run(
                ["next_memory", "logits"], {"memory": memory, "token": token.numpy()}
            )
            own = network.step(own, token)
            np.testing.assert_allclose(memory, own.numpy(), atol=1e-4)
            np.testing.assert_allclose(logits, network.readout(own).numpy(), atol=1e-4)
    empty = network.readout(network.start(1))[0]
    np.testing.assert_allclose(beside["empty_logits"], empty.numpy(), atol=1e-6)


def test_a_thousand_steps_agree_and_write_the_same_text(
    rnn: Path, tmp_path: Path, command: Command
) -> None:
    result = command("export", rnn, "--out", tmp_path / "deep" / "model.onnx")
    assert result.code == 0, result.stderr
    found = re.search(
        r"parity over 1,000 steps: memory differs by (\S+), logits by (\S+)$", result.stdout, re.M
    )
    assert found
    assert max(map(float, found.groups())) < 1e-4
    assert f"{tmp_path / 'deep' / 'model.onnx'}: onnx, " in result.stdout
    step = formats.onnx_step(tmp_path / "deep" / "model.onnx")
    loaded = smtkit.load_rnn(rnn, device="cpu")
    for temperature in (0.0, 0.8):
        source = uniforms(4)
        memory, logits = loaded.start().numpy(), loaded.logits(loaded.start()).numpy()
        drawn = []
        for _ in range(100):
            token = sample_each(torch.from_numpy(logits), temperature, uniforms=source).numpy()
            if token[0] == loaded.tokenizer.end_of_document:
                break
            drawn.append(int(token[0]))
            memory, logits = step(memory, token)
        text = loaded.generate(max_tokens=100, temperature=temperature, seed=4)
        assert loaded.decode_tokens(drawn) == text


def test_the_program_names_no_files_of_this_machine(rnn: Path, tmp_path: Path) -> None:
    export.run(ExportConfig(steps=3), rnn, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"smtkit/networks" not in content
    assert b"site-packages" not in content
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx"]


def test_other_formats(rnn: Path, tmp_path: Path) -> None:
    exported = export.run(ExportConfig(steps=50), rnn, tmp_path / "model.pt2")
    assert exported.parity
    assert exported.parity.logits < 1e-4
    memory = torch.zeros(3, 2, 8)
    module = torch.export.load(tmp_path / "model.pt2").module()
    own = smtkit.load_rnn(rnn, device="cpu").step(memory, [1, 2, 3])
    for found, expected in zip(module(memory, torch.tensor([1, 2, 3])), own, strict=True):
        torch.testing.assert_close(found, expected)
    # The file beside is the same, and is shared.
    exported = export.run(ExportConfig(steps=50), rnn, tmp_path / "model.safetensors")
    assert exported.parity is None
    network = RecurrentNetwork.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(network.step(memory, torch.tensor([1, 2, 3])), own[0])


def test_the_cost_of_int8_is_that_of_its_program(
    rnn: Path, tokens: Path, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "small.onnx"
    result = command(
        "export", rnn, "--out", path, "--quantize", "int8", "--tokens", tokens, "--steps", 20,
        "--windows", 5, "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)["quantized"]
    assert found["source"] == f"validation of {tokens}"
    export.run(ExportConfig(steps=20), rnn, tmp_path / "whole.onnx")
    assert path.stat().st_size < 0.6 * (tmp_path / "whole.onnx").stat().st_size
    loaded = smtkit.load_rnn(rnn, device="cpu")
    _, inputs, targets = export._targets(ExportConfig(windows=5, quantize="int8"), loaded, tokens)
    nll = loaded.score(inputs, targets)
    assert found["targets"] == int((targets >= 0).sum())
    assert found["bits"] == pytest.approx(float(nll.nanmean()) / np.log(2), abs=1e-5)
    assert found["bits_quantized"] == pytest.approx(
        bits(loaded, formats.onnx_step(path), inputs, targets), abs=1e-6
    )
    assert found["bits_quantized"] != found["bits"]
    assert found["bits_quantized"] == pytest.approx(found["bits"], abs=0.1)
    # Without tokens: on what the RNN draws.
    drawn = export.run(ExportConfig(steps=20, quantize="int8"), rnn, tmp_path / "drawn.onnx")
    assert drawn.quantized
    assert (drawn.quantized.source, drawn.quantized.targets) == ("tokens that the RNN draws", 42)


def test_a_program_that_computes_something_else_is_not_written(
    rnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = formats.onnx_step

    def wrong(path: Path) -> Any:
        step = build(path)
        return lambda memory, token: (step(memory, token)[0] + 1e-2, step(memory, token)[1])

    monkeypatch.setattr(formats, "onnx_step", wrong)
    with pytest.raises(SmtkitError, match=r"differs from the RNN by 0\.0.*, allowed: 0\.0001"):
        export.run(ExportConfig(steps=3), rnn, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_differences_that_grow_are_a_warning(rnn: Path, tmp_path: Path) -> None:
    loaded = smtkit.load_rnn(rnn, device="cpu")
    drawn = loaded.complete(np.empty((2, 0), np.int64), 30, seed=0).numpy()
    chain = iter(range(10**6))

    def drifting(memory: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Odd calls are those of the program that runs alone."""
        after, logits = loaded.step(torch.from_numpy(memory), token)
        shift = 1e-3 if next(chain) % 2 else 0.0
        return after.numpy() + np.float32(shift), logits.numpy()

    parity = compare(loaded, drifting, drawn)
    assert parity.one_step < 1e-6
    assert parity.memory > 1e-4
    recorder = Recorder()
    export._judge(tmp_path / "model.onnx", parity, recorder)
    assert "amplifies differences of rounding" in recorder.warnings[0]
    export._judge(tmp_path / "model.onnx", replace(parity, memory=0.0, logits=0.0), recorder)
    assert len(recorder.warnings) == 1


def test_a_task_is_exported_with_its_symbols(tmp_path: Path) -> None:
    tokens = write_keys_values(tmp_path / "tokens")
    trained(tokens, tmp_path / "rnn")
    path = tmp_path / "model.onnx"
    exported = export.run(
        ExportConfig(steps=20, quantize="int8", windows=4), tmp_path / "rnn", path, tokens=tokens
    )
    assert exported.quantized
    beside = json.loads(path.with_suffix(".json").read_text())
    assert len(beside["tokenizer"]["symbols"]) == beside["vocabulary_size"]
    assert "token_bytes" not in beside


def test_a_sentencepiece_model_lies_beside_the_program(tmp_path: Path) -> None:
    text = Path(__file__)
    smtkit.tokenize(text, tmp_path / "tokens", tokenizer="sentencepiece", vocab_size=400)
    trained(tmp_path / "tokens", tmp_path / "rnn")
    exported = export.run(ExportConfig(steps=5), tmp_path / "rnn", tmp_path / "model.onnx")
    assert [Path(name).suffix for name in exported.files] == [".onnx", ".sentencepiece", ".json"]
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.sentencepiece"))
    beside = json.loads((tmp_path / "model.json").read_text())
    sample = "memory of the naïve window"
    tokens = model.encode(sample)
    assert tokens == smtkit.load_rnn(tmp_path / "rnn").encode_text(sample).tolist()
    found = b"".join(bytes.fromhex(beside["token_bytes"][token]) for token in tokens)
    assert found.decode() == sample


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "model.bin"], "allowed: a name that ends in .onnx, .pt2, .safetensors"),
        (["--out", "model.pt2", "--quantize", "int8"], "--format is torch-export, allowed: onnx"),
        (["--out", "model.onnx", "--tokens", "t"], "needed only to measure what --quantize costs"),
        (["--out", "model.json", "--format", "onnx"], "the tokenizer is written to that name"),
        (["--out", "there.onnx"], "there.onnx: exists (--overwrite replaces it)"),
        (["--out", "mine.onnx"], "mine.json: exists (--overwrite replaces it)"),
        (["--out", "folder.onnx"], "is a directory"),
        (["--out", "model.onnx", "--windows", "3"], "only used with quantize int8"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    rnn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.onnx", "mine.json"):
        Path(name).write_text("of the user")
    Path("folder.onnx").mkdir()
    result = command("export", rnn, "--steps", 3, *arguments)
    assert result.code == 2
    assert message in result.line()
    assert Path("there.onnx").read_text() == Path("mine.json").read_text() == "of the user"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    rnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, missing: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    result = command("export", rnn, "--out", tmp_path / "model.onnx")
    assert result.line() == (
        f"--format onnx: {missing} is not installed (pip install 'smtkit[export]')"
    )


def test_the_bits_of_the_rnn_itself_are_its_score(pipeline: Pipeline) -> None:
    loaded = smtkit.load_rnn(pipeline.rnn, device="cpu")
    assert isinstance(loaded, TrainedRNN)
    inputs = np.random.default_rng(0).integers(257, size=(3, 9))
    targets = np.concatenate([inputs, np.full((3, 1), -1)], 1)
    targets[1, 4:] = -1

    def step(memory: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after, logits = loaded.step(torch.from_numpy(memory), token)
        return after.numpy(), logits.numpy()

    expected = float(loaded.score(inputs, targets).nanmean()) / np.log(2)
    assert bits(loaded, step, inputs, targets) == pytest.approx(expected, abs=1e-5)
