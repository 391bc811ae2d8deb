"""The comparison of SMT with BPTT: what is declared, how settings are chosen, what is reported."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "pipelines" / "results"))

from study import cost, figures, report  # noqa: E402
from study.matrix import (  # noqa: E402
    Run,
    final_runs,
    load,
    merged,
    specify,
    trial_runs,
    trials_for,
)
from study.store import Store, merit, total  # noqa: E402

from smtkit.config import (  # noqa: E402
    ExtractLabelsConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
)

CORE = ROOT / "pipelines" / "results" / "core.toml"
FULL = CORE.with_name("full.toml")
METHODS = {"smt": "smt", "dmt": "dmt", "finetune": "bptt", "bptt": "bptt"}


@pytest.mark.parametrize("path", [CORE, FULL], ids=lambda path: path.stem)
def test_every_declared_run_is_one_that_the_stages_accept(path):
    matrix = load(path)
    for run in (*trial_runs(matrix), *final_runs(matrix)):
        for chosen in matrix.trials[matrix.arms[run.arm].trials] or [{}]:
            for name, settings in specify(matrix, run, chosen).stages.items():
                if name == "encoder":
                    TrainEncoderConfig(**settings)
                elif name == "labels":
                    ExtractLabelsConfig(**settings)
                else:
                    TrainRnnConfig(**merged(settings, {"method": METHODS[name]}))


@pytest.mark.parametrize("path", [CORE, FULL], ids=lambda path: path.stem)
def test_both_sides_have_as_many_trials_the_same_budget_and_the_same_cell(path):
    matrix = load(path)
    assert len(matrix.trials["smt"]) == len(matrix.trials["bptt"])
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
    """A raw result of one stage, as a run writes it."""
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
        "machine": {"torch": "x"},
        "process_seconds": 12.0,
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


def test_a_run_waits_for_its_trials_and_takes_the_settings_of_the_best(tmp_path):
    store = Store(load(CORE), tmp_path)
    run = Run("retrieval-256", "bptt-gru", 0)
    trials = trials_for(store.matrix, run)
    assert [trial.task for trial in trials] == ["retrieval-64"] * 3
    assert not store.ready(run)
    for trial, accuracy, nll in zip(trials, (0.2, 0.4, 0.3), (3.0, 2.0, 2.5), strict=True):
        written(store, trial, accuracy=accuracy, nll=nll)
    assert store.ready(run)
    best = store.matrix.trials["bptt"][1]["bptt.training.learning_rate"]
    assert store.specification(run).stages["bptt"]["training"]["learning_rate"] == best


def test_a_result_of_another_declaration_does_not_count(tmp_path):
    matrix = load(CORE)
    store = Store(matrix, tmp_path)
    trial = next(trial_runs(matrix))
    written(store, trial)
    assert store.result(trial) is not None
    assert Store(load(CORE, scale=2.0), tmp_path).result(trial) is None


def test_costs_are_added_up_over_the_stages():
    chain = {"stages": [{"stage": name, "seconds": s} for name, s in (("smt", 2), ("dmt", 3))]}
    assert total(chain, "seconds") == 5
    assert total(chain, "seconds", until="smt") == 2


def test_a_course_goes_on_where_the_stage_before_ended():
    one, two = result(seconds=10.0)["stages"][0], result(seconds=5.0)["stages"][0]
    labels = {"stage": "labels", "seconds": 1, "tokens": 7, "sequential": 2, "operations": 3}
    points = list(figures.course(Run("t", "a", 0), {"stages": [one, labels, two]}))
    assert [point.seconds for point in points] == [4, 10, 15, 16]
    assert [point.sequential for point in points] == [100, 200, 302, 402]
    assert points[-1].operations == 8e6 + 3


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
def test_sequential_steps_are_the_calls_that_wait_for_each_other(method, rollout, calls):
    settings = {"method": method, "training": {"max_steps": 1}}
    settings |= {"rollout": rollout} if rollout else {}
    assert cost.chain_of_rnn(TrainRnnConfig(**settings), 50) == calls + 1


def test_the_readme_and_the_page_are_what_the_raw_results_say():
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


def test_raw_results_are_read_without_what_made_them():
    for path in (CORE.parent / "raw").rglob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch("[0-9a-f]{16}", found["digest"])
        assert found["stages"]
