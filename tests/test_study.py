"""The comparison over budgets, with one teacher for several RNNs, and by parts."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "pipelines" / "results"))

from study import __main__ as command  # noqa: E402
from study import amortised, budgets, cost, figures, report, sources  # noqa: E402
from study.matrix import load  # noqa: E402
from study.measures import RNN, TEACHER  # noqa: E402
from study.runs import Run, Selection, final_runs, runs, trials_for  # noqa: E402
from study.specification import budget_of, specify  # noqa: E402
from study.store import Store, total  # noqa: E402
from study.work import Work  # noqa: E402

from smtkit.config import SynthesizeConfig, TrainEncoderConfig, TrainRnnConfig  # noqa: E402
from smtkit.errors import NonFiniteLossError  # noqa: E402
from smtkit.methods import sequential  # noqa: E402
from smtkit.stages import synthesize  # noqa: E402

CORE = ROOT / "pipelines" / "results" / "core.toml"
CROSSING = CORE.with_name("crossing.toml")
RAW = CORE.parent / "raw"

TINY = """
seeds = [0]
trial_seed = 1000
shares = { encoder = 0.5, smt = 0.2, dmt = 0.1, finetune = 0.1 }
trials = { none = [] }

[network]
memory = { slots = 2, slot_width = 8 }
cell = { kind = "gru", width = 16 }

[settings.encoder]
encoder = { width = 16, heads = 2 }
decoder = { width = 16, heads = 2 }
objective = { dynamics_start = 0, uniformity_group = 4 }
training = { batch_size = 4, validation_windows = 4 }

[settings.labels]
max_windows = 8
max_validation_windows = 4

[settings.smt]
init_from_labels = true
data = { positions = 4 }
training = { batch_size = 4, validation_windows = 4 }

[settings.dmt]
training = { batch_size = 4, validation_windows = 4 }

[settings.finetune]
training = { batch_size = 4, validation_windows = 4 }

[settings.bptt]
training = { batch_size = 4, validation_windows = 4 }

[variants.no-finetune]
shares = { dmt = 0.2, finetune = 0 }
settings = { dmt = { rollout = { depth = 4 } } }

[variants.lasting]
settings = { labels = { max_windows = 6 } }

[arms.gru]
title = "BPTT, gru"
kind = "bptt"
trials = "none"

[arms.mlp]
title = "BPTT, mlp"
kind = "bptt"
trials = "none"
network = { cell = { kind = "mlp" } }

[arms.large]
title = "BPTT, large memory"
kind = "bptt"
trials = "none"
network = { memory = { slots = 4 } }

[arms.smt]
title = "SMT, gru"
kind = "smt"
trials = "none"

[arms.segments]
title = "SMT, gru, without fine-tuning"
kind = "smt"
trials = "none"
variants = ["no-finetune"]
settings = { labels = { max_windows = 7 } }

[arms.one-teacher]
title = "One teacher"
kind = "amortised"
trials = "none"
variants = ["no-finetune"]
rivals = ["gru", "mlp"]

[tasks.task]
title = "task"
tokens = { source = "synthesize", task = "retrieval", lengths = [8], sequences = 50 }
windows = 8
budget = 2
budgets = [1, 3]
arms = ["smt", "segments", "gru", "mlp"]
amortised = { one-teacher = [1] }

[tasks.task.variants.no-finetune.settings]
dmt = { rollout = { depth = 3 } }
"""


@pytest.fixture
def tiny(tmp_path):
    """The file of a tiny matrix."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def scores(bits, accuracy=0.5):
    """The test of one RNN and its teacher, as a raw result keeps it."""
    records = [
        {"predictor": predictor, "targets": 10, "nll": bits * math.log(2), "accuracy": accuracy}
        for predictor in (RNN, TEACHER)
    ]
    ranges = [{**record, "range": "1..T", "last": 8} for record in records]
    return {"window": 8, "overall": records, "results": ranges, "by_length": []}


def written(store, run, seconds, tests, failed=None):
    """Writes a raw result; `seconds` and `tests` are by stage."""
    costs = {"tokens": 5, "operations": 7.0, "parameters": 3, "curve": [], "steps": 1}
    validation = {"free_running_accuracy": 0.5, "free_running_nll": 1.0}
    result = {
        "digest": store.specification(run).digest,
        "stages": [
            {"stage": name, "seconds": spent, "sequential": 10 * spent, **costs}
            | {"validation": validation}
            for name, spent in seconds.items()
        ],
        "failed": failed,
        "tests": {name: {"test": scores(bits)} for name, bits in tests.items()},
        "machine": {},
    }
    store.write(run, result)


def test_a_multiple_scales_the_limits_and_the_labels_and_nothing_else(tiny):
    matrix = load(tiny)
    once = specify(matrix, Run("task", "smt", 0), {})
    three = specify(matrix, Run("task", "smt", 0, None, 3.0), {})
    assert three.budget == 3 * once.budget == 6
    assert (once.stages["labels"]["max_windows"], three.stages["labels"]["max_windows"]) == (8, 24)
    for name in ("encoder", "smt", "dmt", "finetune"):
        short, long = once.stages[name], three.stages[name]
        for limit in ("max_seconds", "validate_seconds"):
            assert long["training"].pop(limit) == pytest.approx(3 * short["training"].pop(limit))
        assert long == short


def test_runs_of_a_multiple_have_names_and_results_of_their_own(tiny, tmp_path):
    store = Store(load(tiny), tmp_path / "raw")
    once, three = Run("task", "gru", 0), Run("task", "gru", 0, None, 3.0)
    assert (once.name, three.name) == ("task/gru/seed-0", "task/gru/budget-3/seed-0")
    written(store, once, {"bptt": 2.0}, {"bptt": 1.0})
    assert store.result(once)
    assert store.result(three) is None


def test_results_in_the_repository_are_still_of_what_is_declared():
    store = Store(load(CORE), RAW / "core")
    for path in (RAW / "core").rglob("*.json"):
        name = str(path.relative_to(RAW / "core").with_suffix(""))
        run = next(run for run in runs(store.matrix) if run.name == name)
        assert store.specification(run).digest == json.loads(path.read_text())["digest"]


def test_a_matrix_takes_results_from_the_one_that_it_extends():
    store = Store(load(CROSSING), RAW / "crossing")
    core = Store(load(CORE), RAW / "core")
    for run in (Run("text", "bptt-gru", 0), Run("copy-32", "smt-mlp", 2)):
        assert run in set(final_runs(store.matrix))
        assert core.result(run)
        assert store.result(run) == core.result(run)


def test_a_matrix_runs_only_the_tasks_that_its_file_names(tiny):
    extending = tiny.with_name("extending.toml")
    extending.write_text(
        'extends = "tiny.toml"\n[tasks.other]\ntitle = "other"\nbudget = 1\narms = ["gru"]\n'
        'tokens = { source = "digits" }\n'
    )
    matrix = load(extending)
    assert {run.task for run in final_runs(matrix)} == {"other"}
    assert matrix.bases == ["tiny"]


def test_a_selection_is_preceded_by_the_trials_that_it_needs():
    matrix = load(CROSSING)
    chosen = runs(matrix, Selection(["text/*-segments/*"], seeds=[1], multiples=[1, 10]))
    final = [run for run in chosen if run.trial is None]
    assert {run.name for run in final} == {
        f"text/smt-{cell}-segments/{budget}seed-1"
        for cell in ("mlp", "gru", "transformer")
        for budget in ("", "budget-10/")
    }
    trials = chosen[: -len(final)]
    assert set(trials) == {trial for run in final for trial in trials_for(matrix, run)}
    assert {trial.arm for trial in trials} == {
        "smt-mlp-handoff",
        "smt-gru-handoff",
        "smt-transformer-handoff",
    }
    assert runs(matrix, Selection(["no/such/run"])) == []


def test_list_shows_the_cost_of_what_is_missing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "HERE", tmp_path)
    store = Store(load(tiny), tmp_path / "raw" / "tiny")
    written(store, Run("task", "gru", 0), {"bptt": 2.0}, {"bptt": 1.0})
    command.main(["list", str(tiny), "--only", "task/gru/*", "task/one-teacher/*"])
    lines = capsys.readouterr().out.splitlines()
    # 3 times the budget of 2 seconds for gru, and the budgets of two rivals for their teacher.
    assert lines[-1] == "3 runs; missing: 10 CPU-seconds (0.0 hours)"
    assert lines[0].split() == ["there", "2", "s", "task/gru/seed-0"]
    with pytest.raises(SystemExit, match="no final run matches"):
        command.main(["list", str(tiny), "--only", "nothing"])


def test_variants_come_after_the_task_and_before_the_arm(tiny):
    matrix = load(tiny)
    stages = specify(matrix, Run("task", "segments", 0), {}).stages
    assert list(stages) == ["encoder", "labels", "smt", "dmt"]
    assert stages["dmt"]["rollout"]["depth"] == 3
    assert stages["dmt"]["training"]["max_seconds"] == pytest.approx(0.2 * 2)
    assert stages["labels"]["max_windows"] == 7


@pytest.mark.parametrize("cell", ["mlp", "gru", "transformer"])
def test_hand_off_and_bptt_train_the_same_cell(cell):
    matrix = load(CROSSING)
    for name, task in matrix.tasks.items():
        if {f"smt-{cell}-segments", f"bptt-{cell}-gated"} <= set(task.arms):
            smt = specify(matrix, Run(name, f"smt-{cell}-segments", 0), {})
            alone = specify(matrix, Run(name, f"bptt-{cell}-gated", 0), {}).stages["bptt"]
            assert smt.stages["encoder"]["cell"] == alone["cell"]
            assert smt.stages["encoder"]["encoder"].items() >= alone["memory"].items()
            assert smt.budget == alone["training"]["max_seconds"]


def test_an_amortised_run_has_one_teacher_and_the_budget_of_its_rivals(tiny):
    matrix = load(tiny)
    run = Run("task", "one-teacher", 0)
    found = specify(matrix, run, {})
    students = [f"{rival}/{stage}" for rival in ("gru", "mlp") for stage in ("smt", "dmt")]
    assert list(found.stages) == ["encoder", "labels", *students]
    assert found.rivals == ["gru", "mlp"]
    assert found.budget == budget_of(matrix, run) == 4
    limits = {
        name: settings["training"]["max_seconds"]
        for name, settings in found.stages.items()
        if name != "labels"
    }
    assert limits == {"encoder": 2.0, **dict.fromkeys(students, 0.4)}
    # The teacher trains the first cell, which the labels hold; the second one starts anew.
    assert found.stages["encoder"]["cell"]["kind"] == "gru"
    assert found.stages["gru/smt"]["init_from_labels"]
    assert "cell" not in found.stages["gru/smt"]
    assert not found.stages["mlp/smt"]["init_from_labels"]
    assert found.stages["mlp/smt"]["cell"] == {"kind": "mlp", "width": 16}


def test_rivals_share_a_memory_and_are_run(tiny):
    other = TINY.replace('rivals = ["gru", "mlp"]', 'rivals = ["gru", "large"]')
    tiny.write_text(other)
    with pytest.raises(
        ValueError, match=r"tasks\.task\.arms: missing large, rivals of one-teacher"
    ):
        load(tiny)
    tiny.write_text(other.replace('"gru", "mlp"]\namortised', '"gru", "mlp", "large"]\namortised'))
    with pytest.raises(ValueError, match=r"arms\.one-teacher\.rivals: large has another memory"):
        specify(load(tiny), Run("task", "one-teacher", 0), {})


def test_accounts_of_one_teacher_are_the_sums_of_its_stages(tiny, tmp_path):
    store = Store(load(tiny), tmp_path / "raw")
    run = Run("task", "one-teacher", 0)
    seconds = {"encoder": 2.0, "labels": 0.25, "gru/smt": 0.5, "gru/dmt": 0.25, "mlp/smt": 1.0}
    written(store, run, seconds, {"gru/smt": 3.0, "gru/dmt": 2.0, "mlp/smt": 4.0})
    assert amortised.accounts(store, run) == []  # no rival has been run
    written(store, Run("task", "gru", 0), {"bptt": 1.5}, {"bptt": 1.75})
    written(store, Run("task", "mlp", 0), {"bptt": 2.0}, {"bptt": 4.5})

    gru, mlp = amortised.accounts(store, run)
    assert (gru.rival, gru.smt_seconds, gru.bptt_seconds) == ("gru", 0.75, 1.5)
    assert (gru.smt, gru.bptt) == (pytest.approx(2.0), pytest.approx(1.75))
    assert (mlp.smt_seconds, mlp.smt) == (1.0, pytest.approx(4.0))
    result = store.result(run)
    assert amortised.shared_seconds(result) == 2.25
    assert total(result, "seconds") == 4.0

    (shown,) = amortised.amortised_tables(store, "task")
    assert "SMT is ahead with 1 of 2 cells." in shown
    assert "| gru | 1 | 2.000 | 2 | 1.750 |" in shown
    assert "| teacher and labels | 2 |  |  |  |" in shown
    assert "| together | 4 |  | 4 |  |" in shown
    assert shown in report.page(store)


def test_an_rnn_that_diverged_is_charged_and_loses(tiny, tmp_path):
    store = Store(load(tiny), tmp_path / "raw")
    run = Run("task", "one-teacher", 0)
    seconds = {"encoder": 2.0, "labels": 0.25, "gru/smt": 0.5, "gru/failed": 0.75, "mlp/smt": 1.0}
    written(store, run, seconds, {"gru/smt": 3.0, "mlp/smt": 4.0})
    written(store, Run("task", "gru", 0), {"bptt": 1.5}, {"bptt": 1.75})
    written(store, Run("task", "mlp", 0), {}, {}, failed="loss is nan")

    gru, mlp = amortised.accounts(store, run)
    assert (gru.smt_seconds, gru.smt) == (1.25, math.inf)
    assert (mlp.bptt_seconds, mlp.bptt) == (2.0, math.inf)  # the whole budget


def test_the_csv_of_budgets_holds_every_end(tiny, tmp_path):
    store = Store(load(tiny), tmp_path / "raw")
    three = Run("task", "gru", 0, None, 3.0)
    written(store, Run("task", "gru", 0), {"bptt": 2.0}, {"bptt": 2.0})
    written(store, three, {"bptt": 5.0}, {"bptt": 1.0})
    smt = Run("task", "segments", 0)
    written(store, smt, {"encoder": 1.0, "labels": 0.5, "smt": 0.25}, {"smt": 3.0})
    written(store, Run("task", "mlp", 0), {}, {}, failed="loss is nan")

    budgets.write(store, "task", tmp_path)
    with (tmp_path / "task-budgets.csv").open(encoding="utf-8") as file:
        found = {(row["arm"], row["budget"]): row for row in csv.DictReader(file)}
    assert set(found) == {("gru", "2.0"), ("gru", "6.0"), ("segments", "2.0"), ("mlp", "2.0")}
    assert float(found["gru", "6.0"]["nll"]) == pytest.approx(math.log(2), abs=1e-5)
    assert found["gru", "6.0"]["seconds"] == "5.0"
    assert float(found["segments", "2.0"]["sequential"]) == 10 * 1.75
    assert (found["mlp", "2.0"]["nll"], found["mlp", "2.0"]["seconds"]) == ("nan", "2.0")
    figure = (tmp_path / "task-budgets.svg").read_text(encoding="utf-8")
    assert all(title in figure for title in (*budgets.AXES.values(), "BPTT, gru"))

    shown = budgets.budgets_table(store, "task")
    assert "|  | 2 s | 6 s |" in shown
    assert "| BPTT, gru | 2.000 (1) | 1.000 (1) |" in shown
    assert "| BPTT, mlp | diverged (1) |  |" in shown
    assert "![task, over budgets](results/task-budgets.svg)" in report.page(store)


def test_the_pages_of_other_matrices_match_their_raw_results():
    for path in CORE.parent.glob("*.toml"):
        if path != CORE and (RAW / path.stem).exists():
            store = Store(load(path), RAW / path.stem)
            page = (ROOT / "docs" / f"results-{path.stem}.md").read_text(encoding="utf-8")
            hint = f"run: make -C pipelines/results report MATRIX={path.name}"
            assert report.page(store, f"results-{path.stem}") == page, hint


def test_every_figure_has_a_csv():
    kinds = [list(figures.Point._fields), list(budgets.End._fields)]
    for figure in (ROOT / "docs").glob("results*/*.svg"):
        with figure.with_suffix(".csv").open(encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header in kinds
        assert all(len(row) == len(header) for row in rows)


def test_paths_may_come_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "images").touch()
    monkeypatch.delenv("IMAGES", raising=False)
    declared = f"${{IMAGES:-{tmp_path}}}/images"
    assert sources.from_environment(declared) == str(tmp_path / "images")
    with pytest.raises(ValueError, match=r"\$IMAGES is not set"):
        sources.from_environment("$IMAGES")
    monkeypatch.setenv("IMAGES", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no such file or directory; it is declared as"):
        sources.from_environment(declared)


def test_sequential_steps_of_a_hand_off_include_the_rollout_to_the_anchor():
    handoff = {
        "encoder": {"memory": "gated", "layers": 3},
        "decoder": {"kind": "handoff"},
        "cell": {"normalize": "none", "gate": True, "layers": 2},
        "training": {"max_steps": 1},
    }
    lengths = np.array([40, 60])
    own = {"anchors": 2, "own_memory": 0.5}
    # Two anchors: the last one lies in the second half, at 3/4 of 50 tokens on average.
    chain = sequential.steps_of_encoder(TrainEncoderConfig(**handoff, objective=own), lengths)
    assert chain == 0.75 * 50 * 2 + 3 + 2 + 1
    teacher = TrainEncoderConfig(**handoff, objective={"own_memory": 0.0})
    assert sequential.steps_of_encoder(teacher, lengths) == 3 + 3 + 2 + 1
    plain = TrainEncoderConfig(encoder={"layers": 3}, training={"max_steps": 1})
    assert sequential.steps_of_encoder(plain, lengths) == 3 + 2


def test_operations_of_a_hand_off():
    weights = {
        "encoder.x.weight": torch.ones(2, 3),
        "transition.x.weight": torch.ones(5, 1),
        "readout.x.weight": torch.ones(1, 7),
    }
    objective = {"anchors": 1, "own_memory": 0.6, "future_length": "rest", "dynamics_positions": 8}
    objective["uniformity_group"] = 3
    config = TrainEncoderConfig(
        encoder={"memory": "gated", "slots": 4, "width": 16, "layers": 2, "heads": 2},
        decoder={"kind": "handoff"},
        cell={"normalize": "none", "gate": True},
        objective=objective,
        training={"max_steps": 1, "batch_size": 3},
    )
    # 20 tokens, then 4 slots and the 10 tokens after the cut; attention of 2 layers of width 16.
    encoded = 20 * 6 + 2 * 16 * 20**2 + 14 * 6 + 2 * 16 * 14**2
    # 8 transitions in each pass; 10 steps of the rollout, forward only, for 0.6 of the windows.
    transitions = 5 * (8 + 8 + 0.6 * 10 / 3)
    read = 7 * (20 + 10 + 8 + 8)
    expected = 3 * 2 * 3 * (encoded + transitions + read)
    assert cost.of_encoder(config, weights, np.array([20])) == pytest.approx(expected)


def test_the_weights_of_a_transformer_cell_see_every_slot_and_the_token():
    weights = {"transition.x.weight": torch.ones(5, 1), "readout.x.weight": torch.ones(1, 7)}
    for kind, symbols in (("mlp", 1), ("transformer", 1 + 4)):
        settings = {"method": "bptt", "cell": {"kind": kind}, "training": {"max_steps": 1}}
        config = TrainRnnConfig(**settings, memory={"slots": 4})
        per_token = 3 * (5 * symbols + 7)
        operations = cost.of_rnn(config, weights, np.array([20]))
        assert operations == 2 * config.training.batch_size * 20 * per_token


@pytest.fixture
def work(tiny, tmp_path):
    """The work of the amortised run of the tiny matrix."""
    matrix = load(tiny)
    settings = {**matrix.tasks["task"].tokens, "validation_sequences": 8, "test_sequences": 8}
    settings.pop("source")
    synthesize.run(SynthesizeConfig(**settings), tmp_path / "tokens")
    found = specify(matrix, Run("task", "one-teacher", 0), {})
    for name, stage in found.stages.items():
        if name != "labels":
            stage["training"]["max_steps"] = 2
    return Work(found, tmp_path / "tokens", None, tmp_path / "run")


def test_one_teacher_serves_every_rnn(work, tmp_path):
    found = work.run()
    students = ["gru/smt", "gru/dmt", "mlp/smt", "mlp/dmt"]
    assert [stage["stage"] for stage in found["stages"]] == ["encoder", "labels", *students]
    assert list(found["tests"]) == students
    kinds = {
        name: json.loads((tmp_path / "run" / name / "manifest.json").read_text())["config"]["cell"]
        for name in students
    }
    assert [kind["kind"] for kind in kinds.values()] == ["gru", "gru", "mlp", "mlp"]


def test_an_rnn_that_diverges_does_not_end_the_others(work, monkeypatch):
    train = Work._train_rnn

    def diverging(self, stage, *given):
        if stage == "gru/dmt":
            raise NonFiniteLossError("loss is nan")
        return train(self, stage, *given)

    monkeypatch.setattr(Work, "_train_rnn", diverging)
    found = work.run()
    stages = [stage["stage"] for stage in found["stages"]]
    assert stages == ["encoder", "labels", "gru/smt", "gru/failed", "mlp/smt", "mlp/dmt"]
    assert found["failed"] is None
    assert total(found, "seconds") > 0
