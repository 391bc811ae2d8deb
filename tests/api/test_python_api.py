"""The Python API: `smtkit.load_rnn`, `load_teacher`, `load_labels`, and the stages as functions."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import smtkit
from conftest import (
    Command,
    Pipeline,
    build_pipeline,
    encoder_config,
    label_rows,
    rnn_config,
    shards,
    write_keys_values,
    write_text,
)
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import ArtifactError, UsageError
from smtkit.inference.trained import TrainedRNN
from smtkit.storage.artifact import Artifact


@pytest.fixture(scope="module")
def rnn(pipeline: Pipeline) -> TrainedRNN:
    return smtkit.load_rnn(pipeline.rnn, device="cpu")


def test_import_is_light() -> None:
    program = """
import sys, smtkit
heavy = {"torch", "numpy", "pyarrow", "pydantic"} & set(sys.modules)
assert not heavy, heavy
assert {"load_rnn", "load_labels", "train_rnn"} <= set(dir(smtkit))
assert not hasattr(smtkit, "load_everything")
smtkit.load_rnn
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_name_of_the_api_can_be_imported_and_is_documented() -> None:
    for name in smtkit.__all__:
        found = getattr(smtkit, name)
        if callable(found):
            assert found.__doc__, name


def test_step_is_a_rollout_in_pieces(rnn: TrainedRNN) -> None:
    tokens = torch.randint(257, (3, 7), generator=torch.Generator().manual_seed(0))
    memories = rnn.rollout(tokens)
    assert memories.shape == (3, 8, 2, 8)
    memory = rnn.start(3)
    torch.testing.assert_close(memory, rnn.empty_memory.expand(3, 2, 8))
    for i in range(7):
        torch.testing.assert_close(memory, memories[:, i])
        memory, logits = rnn.step(memory, tokens[:, i])
        torch.testing.assert_close(logits, rnn.logits(memory))
    torch.testing.assert_close(rnn.logits(memories)[:, 7], logits)
    torch.testing.assert_close(rnn.rollout(tokens[:, 4:], memories[:, 4]), memories[:, 4:])


def test_start_gives_memories_that_may_be_changed(rnn: TrainedRNN) -> None:
    before = rnn.empty_memory.clone()
    rnn.start(2).zero_()
    assert torch.equal(rnn.empty_memory, before)


def test_score_is_the_nll_of_each_token_given_those_before(rnn: TrainedRNN) -> None:
    text = "memory of the état " * 4  # longer than the pieces in which it is scored
    tokens = rnn.encode_text(text)
    assert tokens.tolist() == list(text.encode())
    nll = rnn.score(text)
    assert nll.shape == tokens.shape
    expected, memory, logits = [], rnn.start(), rnn.logits(rnn.start())
    for token in tokens:
        expected.append(-float(logits.log_softmax(-1)[0, token]))
        memory, logits = rnn.step(memory, token[None])
    assert nll.tolist() == pytest.approx(expected, abs=1e-5)
    batch = torch.stack([tokens, tokens.flip(0)])
    torch.testing.assert_close(rnn.score(batch)[0], nll)
    # Targets of its own: that which follows i tokens is at i.
    targets = torch.full((1, len(tokens) + 1), -1)
    targets[0, 3], targets[0, -1] = tokens[3], 5
    scored = rnn.score(tokens[None], targets)[0]
    assert scored.isfinite().nonzero().flatten().tolist() == [3, len(tokens)]
    assert float(scored[3]) == pytest.approx(expected[3], abs=1e-5)
    assert float(scored[-1]) == pytest.approx(-float(logits.log_softmax(-1)[0, 5]), abs=1e-5)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(pipeline: Pipeline) -> None:
    rnn = smtkit.load_rnn(pipeline.rnn, device="cpu")
    for parameter in rnn.network.readout.parameters():
        parameter.zero_()
    assert rnn.score("any text").tolist() == pytest.approx([math.log(257)] * 8)


def test_generation_is_that_of_the_command_line(
    rnn: TrainedRNN, pipeline: Pipeline, command: Command
) -> None:
    options = {"temperature": 0.7, "top_k": 40, "top_p": 0.95}
    text = rnn.generate("mem", max_tokens=60, seed=5, **options)
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    flags = [str(flag).replace("_", "-") for flag in flags]
    shown = command(
        "generate", pipeline.rnn, "--prompt", "mem", "--max-tokens", 60, "--seed", 5, *flags
    )
    assert shown.stdout.encode() == f"mem{text}\n".encode("utf-8", "backslashreplace")
    assert "".join(rnn.stream("mem", 60, seed=5, **options)) == text
    assert rnn.generate("mem", 60, seed=6) != rnn.generate("mem", 60, seed=7)
    assert len(rnn.generate(max_tokens=30)) <= 30


def test_greedy_completions_follow_the_likeliest_token(rnn: TrainedRNN) -> None:
    prompts = rnn.encode_text("slot")[None].expand(2, -1)
    completed = rnn.complete(prompts, 20, temperature=0)
    assert completed.shape == (2, 20)
    assert torch.equal(completed[0], completed[1])
    both = torch.cat([prompts, completed], 1)
    logits = rnn.logits(rnn.rollout(both))
    assert torch.equal(logits[:, 4:-1].argmax(-1), completed)
    assert rnn.decode_tokens(both[0]).startswith("slot")


def test_text_is_decoded_to_itself(rnn: TrainedRNN) -> None:
    text = "naïve über 東京"
    assert rnn.decode_tokens(rnn.encode_text(text)) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rnn: rnn.step(rnn.start(1), [257]), "token 257, allowed: 0 to 256"),
        (lambda rnn: rnn.rollout([[3, -1]]), "token -1, allowed: 0 to 256"),
        (lambda rnn: rnn.rollout([3, 1]), "tokens of shape (2,), expected (sequences, tokens)"),
        (lambda rnn: rnn.score([[0.5]]), "tokens of type torch.float32, allowed: integers"),
        (lambda rnn: rnn.score([[5, 6]], [[1, 2]]), "targets of shape (1, 2), expected (1, 3)"),
        (lambda rnn: rnn.score([[5]], [[1, 257]]), "token 257, allowed: -1 to 256"),
        (lambda rnn: rnn.score([[5, 6], [5]]), "rows of one length"),
        (lambda rnn: rnn.rollout("text"), "expected integers"),
        (lambda rnn: rnn.step(rnn.start(2), [5]), "memory of shape (2, 2, 8), expected (1, 2, 8)"),
        (lambda rnn: rnn.step(rnn.start(1), [[5]]), "tokens of shape (1, 1), expected one per"),
        (lambda rnn: rnn.rollout([[5]], rnn.empty_memory), "memory of shape (2, 8), expected"),
        (lambda rnn: rnn.complete([[5]], -1), "`steps` -1: allowed: 0 or more"),
        (lambda rnn: rnn.generate(max_tokens=-1), "`max_tokens` -1: allowed: 0 or more"),
        (lambda rnn: rnn.generate(temprature=1), "`temprature`: unknown option, allowed: temp"),
        (lambda rnn: rnn.generate(temperature=-1.0), "`temperature`"),
        (lambda rnn: rnn.generate(temperature=math.nan), "`temperature`"),
        (lambda rnn: rnn.complete([[5]], 3, top_k=0), "`top_k`"),
        (lambda rnn: rnn.stream(top_p=1.5), "`top_p`"),
        (lambda rnn: rnn.generate(seed="one"), "`seed` one: allowed: an integer, or None"),
    ],
)
def test_wrong_tokens_memories_and_options_are_refused(
    rnn: TrainedRNN, call: object, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        call(rnn)  # type: ignore[operator]
    assert message in f"{raised.value} {raised.value.hint}"


def test_options_that_are_none_are_those_by_default(rnn: TrainedRNN) -> None:
    unset = rnn.generate("mem", 20, seed=1, temperature=None, top_k=None, top_p=None)
    assert unset == rnn.generate("mem", 20, seed=np.int64(1), top_k=np.int64(257))


def test_wrong_artifacts_and_devices_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ArtifactError, match="kind is labels, expected rnn"):
        smtkit.load_rnn(pipeline.labels)
    with pytest.raises(UsageError, match="no such artifact"):
        smtkit.load_rnn("nowhere")
    with pytest.raises(UsageError, match="allowed: auto, cpu, cuda, or cuda:NUMBER"):
        smtkit.load_rnn(pipeline.rnn, device="tpu9")
    with pytest.raises(UsageError, match="`device` cuda:99: torch finds"):
        smtkit.load_rnn(pipeline.rnn, device="cuda:99")
    with pytest.raises(UsageError, match="allowed: train, validation"):
        smtkit.load_labels(pipeline.labels, "test")  # type: ignore[arg-type]


def test_an_rnn_can_be_loaded_from_a_uri(pipeline: Pipeline, rnn: TrainedRNN) -> None:
    loaded = smtkit.load_rnn(pipeline.rnn.as_uri(), device="cpu")
    assert torch.equal(loaded.empty_memory, rnn.empty_memory)


def test_an_rnn_of_a_task_answers_rows_and_reads_no_text(tmp_path: Path) -> None:
    tokens = write_keys_values(tmp_path / "tokens")
    built = build_pipeline(
        tmp_path,
        tokens,
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(),
        rnn_config(data={"positions": 4}),
    )
    rnn = smtkit.load_rnn(built.rnn, device="cpu")
    row = smtkit.load_labels(built.labels, "validation")[0]
    inputs, targets = row["tokens"][None], row["targets"][None]
    nll = rnn.score(inputs, targets)
    assert torch.equal(nll.isnan(), targets == smtkit.IGNORE)
    answers = rnn.answer(inputs, targets != smtkit.IGNORE, temperature=0)
    likeliest = rnn.logits(rnn.rollout(inputs)).argmax(-1)
    assert torch.equal(answers, likeliest[targets != smtkit.IGNORE])
    assert rnn.decode_tokens(inputs[0]).split()
    with pytest.raises(UsageError, match="reads symbols tokens, not text"):
        rnn.generate("text")


def test_the_teacher_encodes_what_extraction_stored(pipeline: Pipeline) -> None:
    teacher = smtkit.load_teacher(pipeline.encoder, device="cpu")
    for row in label_rows(shards(pipeline.labels, "validation"))[:3]:
        length = row["length"]
        tokens = torch.from_numpy(np.asarray(row["tokens"][:length], dtype=np.int64))[None]
        memory = teacher.encode(tokens)
        stored = torch.from_numpy(row["memory"][: length + 1].astype(np.float32))
        torch.testing.assert_close(memory[0], stored, atol=2e-3, rtol=2e-3)
        assert teacher.logits(memory).shape == (1, length + 1, 257)
        decoded = teacher.decode(memory[:, 0], tokens[:, :4])
        assert decoded.shape == (1, 5, 257)
    torch.testing.assert_close(teacher.empty_memory, memory[0, 0])
    assert teacher.decode_tokens(teacher.encode_text("of")) == "of"


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_stream_through_a_data_loader(pipeline: Pipeline, workers: int) -> None:
    labels = smtkit.load_labels(pipeline.labels)
    stored = label_rows(shards(pipeline.labels, "train"))
    assert len(labels) == len(stored)
    loader = DataLoader(labels, batch_size=7, num_workers=workers)
    rows = [row for batch in loader for row in zip(*batch.values(), strict=True)]
    assert len(rows) == len(stored)
    for (tokens, targets, length, memory), row in zip(rows, stored, strict=True):
        assert tokens.tolist() == row["tokens"].tolist()
        assert targets.tolist() == row["targets"].tolist()
        assert int(length) == row["length"]
        np.testing.assert_array_equal(memory.numpy(), row["memory"].astype(np.float32))
    assert torch.equal(labels.before, torch.arange(16))
    assert labels[-1]["tokens"].tolist() == stored[-1]["tokens"].tolist()
    with pytest.raises(IndexError):
        labels[len(labels)]


def test_labels_reopen_in_a_process_that_is_not_forked(pipeline: Pipeline) -> None:
    labels = pickle.loads(pickle.dumps(smtkit.load_labels(pipeline.labels, "validation")))
    stored = label_rows(shards(pipeline.labels, "validation"))
    assert labels[0]["tokens"].tolist() == stored[0]["tokens"].tolist()


def test_labels_of_segments_have_two_memories_at_a_border(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Each stored transition of the co-trained cell's labels is found through `before`."""
    gated = {"memory": "gated"}
    smtkit.train_encoder(
        pipeline.tokens,
        tmp_path / "encoder",
        **encoder_config(encoder=gated, cell={"normalize": "none"}).model_dump(exclude_unset=True),
    )
    smtkit.extract_labels(tmp_path / "encoder", pipeline.tokens, tmp_path / "labels")
    settings = rnn_config().model_dump(exclude_unset=True)
    smtkit.train_rnn(
        tmp_path / "labels",
        tmp_path / "rnn",
        init_from_labels=True,
        **{"training": settings["training"], "data": settings["data"]},
    )
    smtkit.extract_labels(
        tmp_path / "encoder",
        pipeline.tokens,
        tmp_path / "segments",
        rnn=tmp_path / "rnn",
        context=4,
    )
    labels = smtkit.load_labels(tmp_path / "segments")
    row = labels[0]
    assert row["memory"].shape == (16 + 4, 2, 8)
    assert labels.before.tolist() == [i + i // 4 for i in range(16)]
    rnn, teacher = (
        smtkit.load_rnn(tmp_path / "rnn"),
        smtkit.load_teacher(tmp_path / "encoder"),
    )
    # The memories of a segment begin with the RNN's own memory at its start.
    start = rnn.rollout(row["tokens"][None, :4])[0, 4]
    torch.testing.assert_close(row["memory"][labels.before[4]], start, atol=2e-3, rtol=2e-3)
    first = teacher.encode(row["tokens"][None, :4])[0]
    torch.testing.assert_close(row["memory"][:5], first, atol=2e-3, rtol=2e-3)


def test_export_is_a_function(pipeline: Pipeline, tmp_path: Path) -> None:
    exported = smtkit.export(pipeline.rnn, tmp_path / "model.pt2", steps=4)
    assert list(exported.files) == [str(tmp_path / "model.pt2"), str(tmp_path / "model.json")]


def test_stages_as_functions(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 600)
    tokens = smtkit.tokenize(tmp_path / "text.txt", tmp_path / "tokens", tokenizer="char")
    assert tokens.config["tokenizer"] == "char"
    (tmp_path / "settings.toml").write_text(
        "batch_size = 2\n[training]\nmax_steps = 9\nbatch_size = 4\n".partition("\n")[2]
    )
    trained = smtkit.train_rnn(
        tmp_path / "tokens",
        tmp_path / "rnn",
        method="bptt",
        cell="gru",
        max_steps=2,
        memory={"slots": 1, "slot_width": 8},
        config=tmp_path / "settings.toml",
    )
    assert trained.config["cell"]["kind"] == "gru"
    assert trained.config["training"]["max_steps"] == 2  # a keyword is stronger than the file
    assert trained.config["training"]["batch_size"] == 4
    kept = smtkit.train_rnn(
        tmp_path / "tokens",
        tmp_path / "rnn",
        method="bptt",
        cell="gru",
        max_steps=2,
        memory={"slots": 1, "slot_width": 8},
        config=tmp_path / "settings.toml",
        resume=True,
    )
    assert kept.digest == trained.digest
    found = smtkit.evaluate(
        tmp_path / "rnn", tmp_path / "tokens", tmp_path / "evaluation", windows=2, lengths=1
    )
    assert found.statistics["results"]
    assert Artifact.open(tmp_path / "evaluation").manifest.digest == found.digest


def test_synthetic_rows_by_either_name_of_a_flag(tmp_path: Path) -> None:
    counts = {"sequences": 8, "validation_sequences": 4, "test_sequences": 4}
    one = smtkit.synthesize("retrieval", tmp_path / "one", length=16, **counts)
    other = smtkit.synthesize("retrieval", tmp_path / "other", lengths=[16], **counts)
    assert one.digest == other.digest
    assert one.statistics["layout"] == "rows"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_stepz": 3}, "unknown key max_stepz"),
        ({"cell": "gruu", "max_steps": 3}, "cell.kind = 'gruu'"),
        ({"training": {"max_steps": 0}}, "training.max_steps = 0"),
        ({}, "training.max_steps or training.max_seconds must be set"),
    ],
)
def test_wrong_settings_are_one_line(
    pipeline: Pipeline, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        smtkit.train_rnn(pipeline.labels, tmp_path / "rnn", **settings)
    assert "\n" not in str(raised.value)


def test_warnings_of_a_stage_are_warnings_of_python(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 5)
    with pytest.warns(UserWarning, match="split is empty"):
        smtkit.tokenize([tmp_path / "text.txt"], tmp_path / "tokens", validation_fraction=0.0001)
