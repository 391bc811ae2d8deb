"""`smtkit report`: its numbers are those of the artifacts, and nothing in the page runs."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import edit_manifest, make
from conftest import Command, Pipeline, evaluate_config
from smtkit.config import ReportConfig, TrainRnnConfig
from smtkit.errors import ArtifactError, UsageError
from smtkit.methods.sequential import steps_of_rnn
from smtkit.report.content import Sample, Section, Table
from smtkit.report.networks import memory
from smtkit.report.page import csv_text, render
from smtkit.report.runs import Evaluation, open_runs
from smtkit.stages import evaluate, report
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS

CONFIG = ReportConfig(samples=1, max_tokens=5, windows=4)
_TAGS = """
html head meta title style body header h1 h2 h3 p nav a main section div figure figcaption svg defs
g path use text rect clippath image ul li i table caption thead tbody tr th td article pre b img
details summary dl dt dd lineargradient
"""


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def assert_inert(page: str) -> None:
    """The page has no scripts and loads nothing."""
    elements = Elements(page).found
    assert {tag for tag, _ in elements} <= set(_TAGS.split())
    for tag, attributes in elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href"):
                assert str(value).startswith(("#", "data:text/csv;", "data:image/png;"))
            if name == "src":
                assert str(value).startswith("data:image/png;")
            assert "url(" not in str(value) or "url(#" in str(value)
    assert "url(" not in page.partition("<style>")[2].partition("</style>")[0]
    assert elements[3][1] == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    }


@pytest.fixture(scope="module")
def evaluated(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    evaluate.run(evaluate_config(), pipeline.rnn, pipeline.tokens, out, encoder=pipeline.encoder)
    return out


@pytest.fixture(scope="module")
def written(pipeline: Pipeline, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page and the CSV files of all artifacts of a pipeline."""
    out = tmp_path_factory.mktemp("report")
    runs = [*vars(pipeline).values(), evaluated]
    report.run(CONFIG, runs, out / "report.html", csv=out)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def records(artifact: Path) -> Iterator[dict[str, Any]]:
    for line in Artifact.open(artifact).file(METRICS).read_text().splitlines():
        yield json.loads(line)


def test_the_page_has_every_section_and_nothing_that_runs(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert_inert(page)
    ids = [attributes["id"] for tag, attributes in Elements(page).found if tag == "section"]
    assert ids == [
        *("ladder", "training", "length", "distance", "sufficiency"),
        *("drift", "memory", "samples", "cost", "lineage"),
    ]


def test_every_figure_has_its_numbers_beside_it(written: Path) -> None:
    found = Elements((written / "report.html").read_text()).found
    names = [attributes["download"] for _, attributes in found if attributes.get("download")]
    assert len(names) == len([tag for tag, _ in found if tag == "figure"])
    assert sorted(map(str, names)) == sorted(path.name for path in written.glob("*.csv"))


def test_curves_are_the_metrics_log(written: Path, pipeline: Pipeline) -> None:
    config = TrainRnnConfig(**Artifact.open(pipeline.rnn).manifest.config)
    chain = steps_of_rnn(config, np.array([16]))
    assert chain == config.cell.layers + 1
    scales = {"steps": ("step", 1.0), "tokens": ("tokens", 1.0), "sequential": ("step", chain)}
    for axis, (key, scale) in scales.items():
        shown = rows_of(written / f"nll_by_{axis}.csv")
        x = next(name for name in shown[0] if name not in ("line", "nats per target"))
        for split, term, line in (
            ("train", "readout", "rnn, training"),
            ("validation", "free_running_nll", "rnn, free-running"),
        ):
            expected = [
                (r[key] * scale, r[term]) for r in records(pipeline.rnn) if r["split"] == split
            ]
            found = [
                (float(row[x]), float(row["nats per target"]))
                for row in shown
                if row["line"] == line
            ]
            assert found == expected


def test_the_ladder_is_the_evaluation(written: Path, evaluated: Path) -> None:
    results = Artifact.open(evaluated).manifest.statistics["results"]
    expected = {r["predictor"]: r["bits_per_byte"] for r in results if r["range"] == "T/2..T"}
    rows = rows_of(written / "ladder.csv")
    assert {row["row"]: float(row["bits per byte"]) for row in rows} == expected
    assert {row["run"] for row in rows} == {"rnn"}


def test_drift_and_sufficiency_are_the_evaluation(written: Path, evaluated: Path) -> None:
    statistics = Artifact.open(evaluated).manifest.statistics
    drift = [float(row["drift"]) for row in rows_of(written / "drift.csv")]
    assert drift == statistics["drift"]
    gaps = [float(row["nats per target"]) for row in rows_of(written / "sufficiency_gap.csv")]
    assert gaps == [record["gap"] for record in statistics["sufficiency"]]


def test_accuracy_by_distance_of_a_task(task_pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    pipeline = task_pipeline
    evaluate.run(evaluate_config(), pipeline.rnn, pipeline.tokens, out, encoder=pipeline.encoder)
    found = report.run(CONFIG, [out, pipeline.rnn], tmp_path / "report.html", csv=tmp_path)
    rows = rows_of(tmp_path / "accuracy_by_distance.csv")
    free = [row for row in rows if row["line"] == "rnn: rnn, free-running"]
    expected = [
        (record["last"], record["accuracy"])
        for record in Artifact.open(out).manifest.statistics["by_distance"]
        if record["predictor"] == "rnn, free-running"
    ]
    shown = [(float(row["tokens between, up to"]), float(row["accuracy"])) for row in free]
    assert shown == expected
    assert "--from-split test" in found.missing["samples"][0]


def test_components_are_those_of_the_covariance(pipeline: Pipeline) -> None:
    runs = open_runs([pipeline.rnn, pipeline.tokens])
    section = memory(runs, CONFIG)
    shares = [row[2] for row in section.figures[0].data.rows if row[0] == "rnn"]
    position = next(f for f in section.figures if f.name.endswith("_position"))
    components = np.array([row[2:] for row in position.data.rows], dtype=float)
    covariance = np.cov(components.T)
    # All sampled memories are drawn here, so that the variances are eigenvalues.
    assert covariance[0, 1] == pytest.approx(0, abs=1e-6 * covariance[0, 0])
    assert covariance[1, 1] / covariance[0, 0] == pytest.approx(shares[1] / shares[0], rel=1e-4)
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    rank = np.exp(-sum(p * np.log(p) for p in shares))
    assert section.tables[0].rows[0][1] == pytest.approx(rank, rel=1e-3)


def test_the_memory_is_of_the_rollout(pipeline: Pipeline) -> None:
    from smtkit import load_rnn
    from smtkit.report.networks import _memories

    runs = open_runs([pipeline.rnn, pipeline.tokens])
    found = _memories(runs[0], runs[0].artifact, runs[1].artifact, CONFIG)
    network = load_rnn(pipeline.rnn)
    first = found.position == 1
    for memory_, token in zip(found.memory[first], found.token[first], strict=True):
        stepped, _ = network.step(network.start(1), torch.tensor([int(token)]))
        assert np.allclose(stepped.flatten().numpy(), memory_, atol=1e-5)


def test_hostile_names_are_text(pipeline: Pipeline, evaluated: Path, tmp_path: Path) -> None:
    attack = "</style><script>alert(1)<\x2fscript>'\"><img src=x onerror=alert(1)>"
    folder = tmp_path / "<img src=x onerror=alert(1)>$\\frac{1$"
    folder.mkdir()
    for name, source in (("rnn", pipeline.rnn), ("evaluation", evaluated)):
        shutil.copytree(source, folder / name)
        parents = json.loads((folder / name / "manifest.json").read_text())["parents"]
        parents[0]["path"] = attack
        edit_manifest(folder / name, command=attack, git_revision=attack, parents=parents)
    edit_manifest(folder / "rnn", packages={attack: attack}, smtkit_version=attack)
    config = CONFIG.model_copy(update={"title": attack, "prompts": [attack, "\0\x1b[31m\udc80"]})
    runs = [folder / "rnn", folder / "evaluation", pipeline.tokens, pipeline.rnn]
    report.run(config, runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert_inert(page)
    assert attack in Elements(page).texts
    assert "\x1b" not in page


def test_hostile_samples_and_tables_are_text() -> None:
    attack = "</pre><script>alert(1)</script>"
    table = Table([attack, "x"], [[attack, None]], attack)
    section = Section("name", attack, attack, tables=[table], samples=[[Sample(attack, attack)]])
    page = render(attack, attack, [section])
    assert_inert(page)
    assert Elements(page).texts.count(attack) == 11


def test_results_that_are_none(evaluated: Path, tmp_path: Path) -> None:
    """Statistics of another form are one line; those that are not finite are not drawn."""
    shutil.copytree(evaluated, tmp_path / "evaluation")
    statistics = json.loads((evaluated / "manifest.json").read_text())["statistics"]
    edit_manifest(tmp_path / "evaluation", statistics={**statistics, "drift": "steep"})
    with pytest.raises(ArtifactError, match=r"evaluation: statistics: drift: "):
        report.run(CONFIG, [tmp_path / "evaluation"], tmp_path / "report.html")
    edit_manifest(
        tmp_path / "evaluation",
        statistics={**statistics, "drift": [float("nan"), float("inf"), 1e300]},
    )
    report.run(CONFIG, [tmp_path / "evaluation"], tmp_path / "report.html", csv=tmp_path)
    assert [row["drift"] for row in rows_of(tmp_path / "drift.csv")] == ["", "", "1e+300"]


def test_lines_of_the_log_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "split": "train", "readout": 2.0, "seconds": 1, "tokens": 5}',
        '{"step": 2, "split": "train", "readout": "<script>"}',
        '{"step": 3, "split": "train", "readout": NaN, "seconds": 3, "tokens": 15}',
        "[[[[",
        '{"step": 4, "split": "train"}',
    ]
    make(tmp_path / "encoder", kind="encoder", metrics="\n".join(lines) + "\n")
    report.run(CONFIG, [tmp_path / "encoder"], tmp_path / "report.html", csv=tmp_path)
    rows = rows_of(tmp_path / "nll_by_steps.csv")
    assert [(row["updates"], row["nats per target"]) for row in rows] == [
        ("1.0", "2.0"),
        ("3.0", ""),
    ]


def test_a_section_without_data_says_what_gives_it(pipeline: Pipeline, tmp_path: Path) -> None:
    found = report.run(CONFIG, [pipeline.tokens], tmp_path / "report.html")
    assert set(found.missing) == {
        *("ladder", "training", "length", "distance", "sufficiency"),
        *("drift", "memory", "samples", "cost"),
    }
    page = (tmp_path / "report.html").read_text()
    for lines in found.missing.values():
        for line in lines:
            assert f"Not shown: {line}" in page


def test_ancestors_are_found_by_digest_on_this_machine_alone(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    shutil.copytree(pipeline.rnn, tmp_path / "rnn")
    (alone,) = open_runs([tmp_path / "rnn"])
    runs = open_runs([tmp_path / "rnn"])
    found = runs.find(alone, "tokens")
    assert found is not None
    assert found.directory == pipeline.tokens
    parents = json.loads((tmp_path / "rnn/manifest.json").read_text())["parents"]

    def with_path(path: str) -> Any:
        changed = json.loads(json.dumps(parents))
        for parent in changed[0]["parents"]:
            parent["path"] = path
        edit_manifest(tmp_path / "rnn", parents=changed)
        runs = open_runs([tmp_path / "rnn"])
        return runs.find(runs[0], "tokens")

    assert with_path("s3://bucket/tokens") is None
    assert with_path(str(pipeline.encoder)) is None
    shutil.copytree(pipeline.tokens, tmp_path / "near")
    assert with_path("/elsewhere/near").directory == tmp_path / "near"


def test_names_are_as_short_as_they_are_distinct(pipeline: Pipeline, tmp_path: Path) -> None:
    for name in ("a/rnn", "b/rnn", "c/other"):
        shutil.copytree(pipeline.rnn, tmp_path / name)
    paths = [tmp_path / name for name in ("a/rnn", "b/rnn", "c/other", "a/rnn")]
    assert [run.label for run in open_runs(paths)] == ["a/rnn", "b/rnn", "other"]


def test_the_output_is_not_overwritten(
    pipeline: Pipeline, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    arguments = ("report", pipeline.tokens, "--out", out)
    assert command(*arguments).line() == f"--out {out}: exists (--overwrite replaces it)"
    assert out.read_text() == "mine"
    assert command("report", pipeline.tokens, "--out", tmp_path).code == 2
    result = command(*arguments, "--overwrite", "--quiet", "--json")
    assert json.loads(result.stdout)["page"] == str(out)


def test_without_matplotlib_one_line_says_how_to_install_it(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as raised:
        report.run(CONFIG, [evaluated], tmp_path / "report.html")
    assert raised.value.hint == "pip install 'smtkit[figures]'"


def test_csv_is_read_back() -> None:
    rows = [["a, b", 1.5, None], ['"quoted"\nline', 2, 3]]
    found = list(csv.reader(csv_text(Table(["x", "y", "z"], rows)).splitlines(keepends=True)))
    assert found == [["x", "y", "z"], ["a, b", "1.5", ""], ['"quoted"\nline', "2", "3"]]


def test_evaluations_have_the_fields_that_are_shown(evaluation: dict[str, Any]) -> None:
    assert Evaluation.model_validate(evaluation).window == 16
