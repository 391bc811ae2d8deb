"""The metrics file."""

from smtkit.training.metrics import MetricsFile


def test_truncate_drops_later_steps_and_incomplete_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "split": "train"}}' for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 1', encoding="utf-8")
    MetricsFile(path).resume(2, None)

    assert path.read_text(encoding="utf-8").splitlines() == lines[:2]
