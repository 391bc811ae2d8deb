"""The comparison of SMT with BPTT: declarations, choice of settings, report."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "pipelines" / "results"))

from study import figures, report  # noqa: E402
from study.matrix import load, merged  # noqa: E402
from study.runs import Run, final_runs, trial_runs, trials_for  # noqa: E402
from study.specification import specify  # noqa: E402
from study.store import Store, merit, total  # noqa: E402

from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig, TrainRnnConfig  # noqa: E402
from smtkit.methods import sequential  # noqa: E402

CORE = ROOT / "pipelines" / "results" / "core.toml"
CROSSING = CORE.with_name("crossing.toml")
FULL = CORE.with_name("full.toml")
MATRICES = [CORE, CROSSING, FULL]
METHODS = {"smt": "smt", "dmt": "dmt", "finetune": "bptt", "bptt": "bptt"}


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_the_stages_accept_every_declared_run(path):
    matrix = load(path)
    for run in (*trial_runs(matrix), *final_runs(matrix)):
        arm = matrix.arms[run.arm]
        for chosen in matrix.trials[matrix.arms[arm.settings_of or run.arm].trials]:
            for name, settings in specify(matrix, run, chosen).stages.items():
                if name == "encoder":
                    TrainEncoderConfig(**settings)
                elif name == "labels":
                    ExtractLabelsConfig(**settings)
                else:
                    method = METHODS[name.rpartition("/")[2]]
                    TrainRnnConfig(**merged(settings, {"method": method}))


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_both_methods_have_the_same_trials_budget_and_cell(path):
    matrix = load(path)
    assert len({len(tried) for name, tried in matrix.trials.items() if name != "none"}) == 1
    for name, task in matrix.tasks.items():
        for cell in ("mlp", "gru"):
            if {f"smt-{cell}", f"bptt-{cell}"} <= set(task.arms):
                smt, bptt = (
                    specify(matrix, Run(name, f"{side}-{cell}", 0), {}) for side in ("smt", "bptt")
                )
                assert smt.budget == bptt.budget
                teacher, alone = smt.stages["encoder"], bptt.stages["bptt"]
                assert teacher["cell"] == alone["cell"]
                assert teacher.get("readout") == alone.get("readout")
                assert {key: teacher["encoder"][key] for key in alone["memory"]} == alone["memory"]
                spent = sum(
                    stage["training"]["max_seconds"]
                    for name, stage in smt.stages.items()
                    if name != "labels"
                )
                assert spent <= smt.budget
                assert alone["training"]["max_seconds"] == bptt.budget


def test_trials_use_a_seed_of_their_own_and_are_never_tested():
    matrix = load(CORE)
    assert matrix.trial_seed not in matrix.seeds
    for run in trial_runs(matrix):
        assert run.seed == matrix.trial_seed
        assert not specify(matrix, run, {}).evaluated


def result(accuracy=0.5, nll=1.0, seconds=10.0, failed=None, digest="", steps=100):
    """A raw result with one stage, as a run writes it."""
    stage = {
        "stage": "bptt",
        "seconds": seconds,
        "steps": steps,
        "tokens": 1000,
        "parameters": 7,
        "sequential": 200.0,
        "operations": 4e6,
        "validation": {"free_running_accuracy": accuracy, "free_running_nll": nll},
        "curve": [[50, 4.0, 500, 2.0, 0.1], [100, seconds, 1000, nll, accuracy]],
    }
    return {
        "digest": digest,
        "stages": [stage],
        "failed": failed,
        "tests": {},
        "machine": {"torch": "x"},
    }


def test_trials_are_compared_by_the_goal_then_by_time_then_by_nll():
    fast, slow = result(0.99, seconds=10), result(1.0, seconds=20)
    near, far, diverged = result(0.9, nll=0.5), result(0.95, nll=0.6), result(1.0, failed="nan")
    shuffled = [far, slow, diverged, fast, near]
    ordered = [fast, slow, near, far, diverged]
    assert sorted(shuffled, key=lambda one: merit(one, 0.98)) == ordered
    assert merit(near, None) < merit(far, None) < merit(diverged, None)


def written(store: Store, run: Run, **values) -> dict:
    digest = store.specification(run).digest
    store.write(run, result(digest=digest, **values))
    return result(digest=digest, **values)


def test_a_run_waits_for_its_trials_and_uses_the_settings_of_the_best(tmp_path):
    store = Store(load(CORE), tmp_path)
    run = Run("retrieval-256", "bptt-gru", 0)
    trials = trials_for(store.matrix, run)
    assert [trial.task for trial in trials] == ["retrieval-64"] * 4
    assert not store.ready(run)
    for trial, accuracy, nll in zip(
        trials, (0.2, 0.4, 0.3, 0.1), (3.0, 2.0, 2.5, 4.0), strict=True
    ):
        written(store, trial, accuracy=accuracy, nll=nll)
    assert store.ready(run)
    best = store.matrix.trials["bptt"][1]["bptt.training.learning_rate"]
    assert store.specification(run).stages["bptt"]["training"]["learning_rate"] == best


def test_a_result_of_a_changed_declaration_does_not_count(tmp_path):
    matrix = load(CORE)
    store = Store(matrix, tmp_path)
    trial = next(trial_runs(matrix))
    written(store, trial)
    assert store.result(trial) is not None
    assert Store(load(CORE, scale=2.0), tmp_path).result(trial) is None


def test_costs_are_summed_over_the_stages():
    chain = {"stages": [{"stage": name, "seconds": s} for name, s in (("smt", 2), ("dmt", 3))]}
    assert total(chain, "seconds") == 5
    assert total(chain, "seconds", until="smt") == 2


def test_a_learning_curve_continues_after_each_stage():
    one, two = result(seconds=10.0)["stages"][0], result(seconds=5.0)["stages"][0]
    labels = {"stage": "labels", "seconds": 1, "tokens": 7, "sequential": 2, "operations": 3}
    chain = {"stages": [one, labels, two], "failed": None}
    points = list(figures.learning_curve(Run("t", "a", 0), chain, budget=100))
    assert [point.seconds for point in points] == [4, 10, 15, 16]
    assert [point.sequential for point in points] == [100, 200, 302, 402]
    assert points[-1].operations == 8e6 + 3
    diverged = {"stages": [one], "failed": "nan"}
    *_, last = figures.learning_curve(Run("t", "a", 0), diverged, budget=100)
    assert (last.stage, last.seconds, last.accuracy) == ("failed", 100, 0)


@pytest.mark.parametrize(
    ("method", "rollout", "calls"),
    [
        ("smt", {}, 1),
        ("bptt", {}, 50),
        ("dmt", {"depth": 8}, 8),
        ("dmt", {"kind": "sequential"}, 50),
        ("dmt", {"kind": "jacobi", "sweeps": 3}, 3),
    ],
)
def test_sequential_steps_are_the_dependent_calls(method, rollout, calls):
    settings = {"method": method, "training": {"max_steps": 1}}
    settings |= {"rollout": rollout} if rollout else {}
    lengths = np.array([40, 60])
    assert sequential.steps_of_rnn(TrainRnnConfig(**settings), lengths) == calls + 1


def test_a_chain_is_at_most_as_long_as_its_window():
    rollout = {"method": "dmt", "rollout": {"depth": 50}, "training": {"max_steps": 1}}
    assert sequential.steps_of_rnn(TrainRnnConfig(**rollout), np.array([40, 60])) == 45 + 1


def write_chain(store, task, arm, digest_seed, tests, failed=None, accuracy=0.5):
    run = Run(task, arm, digest_seed)
    found = result(digest=store.specification(run).digest, failed=failed, accuracy=accuracy)
    store.write(run, {**found, "tests": tests})


def test_failed_seeds_count_in_the_median_and_are_shown(tmp_path):
    """One of three seeds diverges, one misses the goal: the median of seconds is infinite."""
    matrix = load(CORE)
    store = Store(matrix, tmp_path)
    for trial in trial_runs(matrix):
        written(store, trial)
    scored = {"predictor": report.RNN, "targets": 5, "nll": 1.0}
    lengths = [{**scored, "length": length, "accuracy": length / 100} for length in (16, 64)]
    test = {"window": 64, "by_length": lengths, "overall": [], "results": []}
    tests = {"bptt": {"test": test, "longer": test}}
    write_chain(store, "retrieval-64", "bptt-mlp", 0, tests, accuracy=1.0)
    assert "**64%** in 10 s (1 of 3 seeds)" in report.summary(store)
    write_chain(store, "retrieval-64", "bptt-mlp", 1, {}, failed="loss is nan")
    write_chain(store, "retrieval-64", "bptt-mlp", 2, tests)
    assert "| 64% |" in report.summary(store)
    page = report.page(store)
    assert "| 10 s (BPTT), 64.0% | diverged | *not reached*, 64.0% |" in page


def test_a_run_that_diverged_in_its_first_stage_is_reported(tmp_path):
    store = Store(load(CORE), tmp_path)
    for trial in trial_runs(store.matrix):
        found = result(digest=store.specification(trial).digest, failed="loss is nan")
        store.write(trial, {**found, "stages": []})
    for run in final_runs(store.matrix):
        found = result(digest=store.specification(run).digest, failed="loss is nan")
        store.write(run, {**found, "stages": []})
    assert "diverged" in report.page(store)
    report.summary(store)


def test_an_incomplete_raw_result_is_run_again(tmp_path):
    store = Store(load(CORE), tmp_path)
    trial = next(trial_runs(store.matrix))
    written(store, trial)
    path = tmp_path / f"{trial.name}.json"
    path.write_text(path.read_text()[:-9])
    assert store.result(trial) is None


def test_the_readme_and_the_page_match_the_raw_results():
    store = Store(load(CORE), CORE.parent / "raw" / "core")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_summary(readme, store) == readme, "run: make -C pipelines/results report"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert report.page(store) == page, "run: make -C pipelines/results report"


def test_every_number_of_the_figures_is_in_their_csv():
    for path in (ROOT / "docs" / "results").glob("*.csv"):
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        assert header.split(",") == list(figures.Point._fields)
        assert path.with_suffix(".svg").exists()
        assert all(line.count(",") == header.count(",") for line in lines)


def test_raw_results_have_a_digest_and_stages():
    for path in (CORE.parent / "raw").rglob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch("[0-9a-f]{16}", found["digest"])
        assert found["stages"] or found["failed"]
