"""Several ranks: results equal to those of one rank, and errors and signals that end all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import (
    Pipeline,
    encoder_config,
    evaluate_config,
    on_ranks,
    rnn_config,
    shards,
)
from smtkit.config import Config, ExtractLabelsConfig
from smtkit.config.base import flatten
from smtkit.errors import UsageError
from smtkit.stages import evaluate, extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.distributed import ALONE, choose_device, join

SMALL_SHARDS = ExtractLabelsConfig(shard_bytes=20_000, max_windows=200)
DMT = rnn_config(
    method="dmt", data={"positions": 32}, rollout={"depth": 4}, objective={"noise": 0.5}
)
DMT_BACKPROP = rnn_config(
    method="dmt", data={"positions": 32}, rollout={"depth": 4, "backprop": 4, "loss_every": 2}
)
BPTT = rnn_config(
    method="bptt", data={"window": 16, "positions": 32}, memory={"slots": 2, "slot_width": 8}
)
ACCUMULATED = encoder_config(
    training={"accumulation": 2}, objective={"dynamics_start": "auto", "plateau": 1.0}
)
SMT_ACCUMULATED = rnn_config(training={"accumulation": 2})
BPTT_ACCUMULATED = rnn_config(
    method="bptt",
    data={"window": 16, "positions": 32},
    memory={"slots": 2, "slot_width": 8},
    training={"accumulation": 2},
)
FSDP = {"training": {"accumulation": 2, "sharding": "fsdp"}}
BPTT_FSDP = rnn_config(
    method="bptt",
    data={"window": 16, "positions": 32},
    memory={"slots": 2, "slot_width": 8},
    **FSDP,
)
TIMED = rnn_config(training={"max_steps": None, "max_seconds": 0.5})
STOPPED_AT = 5


def start(*arguments: object) -> "subprocess.Popen[str]":
    """The command line in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "smtkit.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def one_line(process: "subprocess.Popen[str]") -> str:
    """The one line that the process prints on stderr; nothing else is printed."""
    stdout, stderr = process.communicate(timeout=300)
    assert stdout == ""
    assert stderr.startswith("smtkit: ")
    assert stderr.count("\n") == 1
    return stderr


def settings(config: Config) -> list[str]:
    given = flatten(config.model_dump(exclude_unset=True))
    return [f"--set={key}={json.dumps(value)}" for key, value in given]


def weights(artifact: Path) -> dict[str, torch.Tensor]:
    (path,) = artifact.glob("run-*/model.safetensors")
    return load_file(path)


def assert_equal_weights(found: Path, expected: Path) -> None:
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-5, msg=name)


def logged(artifact: Path, split: str) -> list[dict[str, float]]:
    (path,) = artifact.glob("run-*/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["split"] == split]


@pytest.fixture(scope="module")
def one(pipeline, tmp_path_factory) -> Path:
    """Results of one process for the jobs of `two` that `pipeline` does not contain."""
    out = tmp_path_factory.mktemp("one")
    train_encoder.run(ACCUMULATED, pipeline.tokens, out / "accumulated")
    train_rnn.run(DMT, pipeline.labels, out / "dmt")
    train_rnn.run(DMT_BACKPROP, pipeline.labels, out / "dmt-backprop")
    train_rnn.run(BPTT, pipeline.tokens, out / "bptt")
    train_rnn.run(SMT_ACCUMULATED, pipeline.labels, out / "smt-accumulated")
    train_rnn.run(BPTT_ACCUMULATED, pipeline.tokens, out / "bptt-accumulated")
    extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, out / "labels")
    evaluate.run(
        evaluate_config(),
        pipeline.rnn,
        pipeline.tokens,
        out / "evaluation",
        encoder=pipeline.encoder,
    )
    return out


@pytest.fixture(scope="module")
def two(pipeline, tmp_path_factory) -> Path:
    """Results of two ranks."""
    out = tmp_path_factory.mktemp("two")
    tokens = pipeline.tokens
    on_ranks(
        2,
        ("train_encoder", encoder_config(), tokens, out / "encoder"),
        ("train_encoder", ACCUMULATED, tokens, out / "accumulated"),
        ("train_rnn", rnn_config(), pipeline.labels, out / "smt"),
        ("train_rnn", DMT, pipeline.labels, out / "dmt"),
        ("train_rnn", DMT_BACKPROP, pipeline.labels, out / "dmt-backprop"),
        ("train_rnn", BPTT, tokens, out / "bptt"),
        ("train_rnn", SMT_ACCUMULATED, pipeline.labels, out / "smt-accumulated"),
        ("train_rnn", BPTT_ACCUMULATED, tokens, out / "bptt-accumulated"),
        ("train_encoder", encoder_config(**FSDP), tokens, out / "encoder-fsdp"),
        ("train_rnn", rnn_config(**FSDP), pipeline.labels, out / "smt-fsdp"),
        ("train_rnn", BPTT_FSDP, tokens, out / "bptt-fsdp"),
        ("train_rnn", TIMED, pipeline.labels, out / "timed"),
        ("extract_labels", SMALL_SHARDS, pipeline.encoder, tokens, out / "labels"),
        (
            "evaluate",
            evaluate_config(),
            pipeline.rnn,
            tokens,
            out / "evaluation",
            {"encoder": str(pipeline.encoder)},
        ),
    )
    return out


# Results.


@pytest.mark.parametrize(
    "name",
    [
        "encoder",
        "accumulated",
        "encoder-fsdp",
        "smt",
        "smt-accumulated",
        "smt-fsdp",
        "dmt",
        "dmt-backprop",
        "bptt",
        "bptt-accumulated",
        "bptt-fsdp",
    ],
)
def test_two_ranks_train_the_same_network_as_one(pipeline, one, two, name):
    same = name.removesuffix("-fsdp")
    alone = {"encoder": pipeline.encoder, "smt": pipeline.rnn}.get(same, one / same)

    assert_equal_weights(two / name, alone)
    for split in ("train", "validation"):
        found, expected = logged(two / name, split), logged(alone, split)
        assert len(found) == len(expected) > 0
        for record, other in zip(found, expected, strict=True):
            assert record.keys() == other.keys()
            for term in record.keys() - {"split", "seconds", "tokens_per_second"}:
                if not term.startswith("memory_"):  # computed on rank 0's windows alone
                    assert record[term] == pytest.approx(other[term], rel=1e-4, abs=1e-5), term


def test_the_clock_of_rank_0_ends_all_ranks(two):
    statistics = Artifact.open(two / "timed").manifest.statistics
    assert statistics["steps"] > 0
    assert statistics["seconds"] >= 0.5


def test_two_ranks_extract_the_same_labels_byte_for_byte(one, two):
    for split in ("train", "validation"):
        found, expected = shards(two / "labels", split), shards(one / "labels", split)
        assert [path.name for path in found] == [path.name for path in expected]
        assert [path.read_bytes() for path in found] == [path.read_bytes() for path in expected]
    manifests = [Artifact.open(out / "labels").manifest for out in (one, two)]
    assert manifests[0].digest == manifests[1].digest
    assert manifests[0].statistics == manifests[1].statistics


def test_two_ranks_evaluate_the_same_as_one(one, two):
    found, expected = (
        Artifact.open(out / "evaluation", "evaluation").manifest.statistics for out in (two, one)
    )
    assert found["results"] == expected["results"]
    for drift in ("drift", "drift_between_sequences"):
        assert found[drift] == pytest.approx(expected[drift], rel=1e-9)
    assert found["memory"] == expected["memory"]
    assert found["windows"] == expected["windows"] > 4


def test_a_run_of_three_ranks_resumes_on_one(pipeline, tmp_path):
    """A signal to one rank stops all at the same step, with the state saved."""
    configs = {
        sharding: rnn_config(
            training={"batch_size": 6, "checkpoint_every": 1000, "sharding": sharding}
        )
        for sharding in ("none", "fsdp")
    }
    printed = on_ranks(
        3,
        *(
            ("train_rnn", config, pipeline.labels, tmp_path / sharding, {"stop_at": STOPPED_AT})
            for sharding, config in configs.items()
        ),
    )
    assert sorted(printed.splitlines()) == sorted(
        2 * [f"{rank}: stopped by SIGTERM; saved at step {STOPPED_AT}" for rank in range(3)]
    )
    train_rnn.run(configs["none"], pipeline.labels, tmp_path / "alone")
    for sharding in configs:  # resumed without sharding
        train_rnn.run(configs["none"], pipeline.labels, tmp_path / sharding, resume=True)
        assert_equal_weights(tmp_path / sharding, tmp_path / "alone")


# Errors.


def test_the_first_error_ends_all_ranks_in_one_line(pipeline, tmp_path):
    """One rank reads a damaged row while the other waits for it."""
    labels = tmp_path / "labels"
    shutil.copytree(pipeline.labels, labels)
    path = shards(labels, "train")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    config = rnn_config(training={"max_steps": 1000})

    process = start(
        "train-rnn", labels, "--out", tmp_path / "rnn", "--nproc", 2, "-q", *settings(config)
    )
    line = one_line(process)
    assert process.returncode == 3
    assert path.name in line
    assert "wrong checksum" in line


def _long_run(pipeline: Pipeline, out: Path, *options: object) -> "subprocess.Popen[str]":
    """A run of two ranks that has made updates and would train for long."""
    config = rnn_config(training={"max_steps": 10**6, "validate_every": 10**6, "log_every": 1})
    ranks = ("--nproc", 2, *options)
    process = start("train-rnn", pipeline.labels, "--out", out, "-q", *ranks, *settings(config))
    while not list(out.glob("run-*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    return process


def test_a_signal_saves_the_state_and_stops_all_ranks(pipeline, tmp_path):
    process = _long_run(pipeline, tmp_path / "rnn")
    process.send_signal(signal.SIGTERM)

    assert "stopped by SIGTERM; saved at step" in one_line(process)
    assert process.returncode == 143
    (state,) = (tmp_path / "rnn").glob("run-*/checkpoint.json")
    assert json.loads(state.read_text(encoding="utf-8"))["step"] > 0


def _pids(process: "subprocess.Popen[str]") -> list[int]:
    """Of the ranks that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text(encoding="utf-8").split()[:2]]


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_stopped_is_named_and_ends_the_others(pipeline, tmp_path, stopped):
    process = _long_run(pipeline, tmp_path / "rnn", "--patience", 3)
    pids = _pids(process)
    os.kill(pids[stopped], signal.SIGSTOP)

    assert one_line(process).startswith(f"smtkit: rank {stopped} of 2 has not answered for 3 s")
    assert process.returncode == 74
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_rank_that_is_stopped_for_a_while_goes_on(pipeline, tmp_path):
    process = _long_run(pipeline, tmp_path / "rnn", "--patience", 30)
    pids = _pids(process)
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(2)
    os.kill(pids[1], signal.SIGCONT)
    process.send_signal(signal.SIGTERM)

    assert "stopped by SIGTERM; saved at step" in one_line(process)
    assert process.returncode == 143


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(pipeline, tmp_path):
    process = _long_run(pipeline, tmp_path / "rnn")
    os.kill(_pids(process)[1], signal.SIGKILL)

    assert one_line(process) == "smtkit: rank 1 of 2 ended by SIGKILL\n"
    assert process.returncode == 137


@pytest.mark.slow
def test_a_batch_that_ranks_do_not_divide_is_refused_in_one_line(pipeline, tmp_path):
    out = tmp_path / "rnn"
    process = start(
        "train-rnn", pipeline.labels, "--out", out, "--nproc", 3, *settings(rnn_config())
    )
    assert "training.batch_size (8): must be a multiple of ranks (3)" in one_line(process)
    assert process.returncode == 2
    assert not out.exists()


def test_ranks_and_accumulation_must_divide_the_batch():
    config = encoder_config(training={"accumulation": 2}).training
    assert [config.micro_batch(ranks) for ranks in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(UsageError, match=r"\(8\): must be a multiple of ranks \(3\) \* `train"):
        config.micro_batch(3)


def test_a_uniformity_group_must_fit_on_one_rank():
    with pytest.raises(UsageError, match=r"uniformity_group` \(2\): must divide .* \(1\)"):
        train_encoder._check_uniformity_group(encoder_config(), ranks=8)


# A single process.


def test_a_single_process_does_not_communicate():
    tensors = [torch.arange(3), torch.ones(2, 2)]
    assert ALONE.sum_tensors(tensors) is tensors
    assert ALONE.sum_counts({"a": 1}) == {"a": 1}
    assert ALONE.broadcast({"a": [1, None]}) == {"a": [1, None]}
    assert ALONE.gather("a") == ["a"]
    ALONE.barrier()
    assert join("cpu") == ALONE
    assert not torch.distributed.is_initialized()


def test_incomplete_variables_of_torchrun_are_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match=r"RANK is set.*WORLD_SIZE"):
        join("cpu")


def test_nproc_must_equal_the_ranks_of_torchrun(command, pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("smtkit.cli.launcher.code_of_the_first", lambda *_: None)
    result = command(
        "train-rnn", pipeline.labels, "--out", tmp_path / "out", "--nproc", 2, "--max-steps", 1
    )
    assert result.code == 2
    assert "--nproc 2: torchrun started 4 ranks" in result.line()


def test_a_missing_device_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda")
