"""Tests of whole tiny studies of data as people have them, through the command line; their workers
are threads of this process."""

import json

import pytest
from study_driver import work_in_threads
from text_rows import rows, scored_pairs
from typer.testing import CliRunner

from fastfood.experiments.cli import app

TINY = ("--dims", 20, "--lrs", 0.1, "--full-lrs", 1e-3, "--max-steps", 2, "--batch-size", 8)
TINY += ("--max-length", 16, "--seeds", 1, "--device", "cpu", "--workers", 1)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    work_in_threads(monkeypatch)


def _run(command, *options):
    return CliRunner().invoke(app, [command, *map(str, options)])


def _measure(out):
    return json.loads((out / "results.json").read_text())["measures"][0]


def test_stars_between_tabs_in_one_file(model_folder, tmp_path):
    lines = [f"{i % 5 + 1}\t{row['sentence']}" for i, row in enumerate(rows(100))]
    (tmp_path / "train.tsv").write_text("\n".join(["stars\treview", *lines]))
    own = ("--text-columns", "review", "--label-column", "stars", "--splits", "train")
    own += ("--model", model_folder, "--data", tmp_path, "--out", tmp_path / "out")
    result = _run("d90", "--task", "reviews", *own, *TINY, "--method", "did")
    assert result.exit_code == 0, result.output
    measure = _measure(tmp_path / "out")
    assert measure["facts"]["num_labels"] == 5 and measure["facts"]["majority"] == 0.2
    assert measure["facts"]["splits"]["test"] == "20 rows of train, 20 rows"
    assert "20 rows of train" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("by_name", [True, False])
def test_scores_in_an_array_of_json_objects(model_folder, tmp_path, by_name):
    for name, (count, start) in {"train": (60, 0), "dev": (20, 60)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(scored_pairs(count, start)))
    options = ("--task", "glue/stsb")
    if not by_name:
        options = ("--task", "pairs", "--text-columns", "sentence1,sentence2", "--splits")
        options += ("train,dev", "--label-column", "label", "--metric", "spearman")
    options += ("--model", model_folder, "--data", tmp_path, "--out", tmp_path / "out")
    result = _run("d90", *options, *TINY, "--method", "said,lora", "--sizes", 1)
    assert result.exit_code == 0, result.output
    measure = _measure(tmp_path / "out")
    metric = "pearson_spearman" if by_name else "spearman"
    assert measure["settings"]["metric"] == metric
    assert measure["facts"]["num_labels"] == 1 and measure["facts"]["majority"] == 0
    for point in measure["points"]:
        assert -1 <= point["mean"] <= 1 and point["test_accuracy"] == [None]
    again = _run("report", tmp_path / "out")
    assert again.exit_code == 0, again.output


def test_a_bound_of_scores_is_refused(model_folder, tmp_path):
    options = ("--task", "glue/stsb", "--model", model_folder, "--data", tmp_path)
    result = _run("bound", tmp_path / "adapter", *options)
    assert result.exit_code == 2
    wanted = "task: wanted a task of classes, because a bound counts wrong answers, got glue/stsb"
    assert wanted in " ".join(result.output.split())
