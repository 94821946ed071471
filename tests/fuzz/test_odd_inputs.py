"""A few hundred of the wrong and damaged inputs that `make fuzz` tries, always the same, and names
that look like something else."""

import io

import study_folders
from fuzz_commands import check_description, check_line, check_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_inputs import PRETRAININGS, SETTINGS, damages, json_changes, option_lists, recipe_files
from rich.console import Console

from fastfood.experiments import recipes, study
from fastfood.experiments.report import writer
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.pretraining import Pretraining
from fastfood.experiments.trials import facts

pytest_plugins = ["fuzz_commands"]  # its fixtures
few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@few
@given(recipe_files(oddity=3))
def test_recipes(place, content):
    check_recipe(place, content, "full", "new")


@few
@given(option_lists(Settings, SETTINGS, oddity=3))
def test_lines_of_d90(place, arguments):
    check_line(place, "d90", arguments, {"--out": "new"})


@few
@given(option_lists(Pretraining, PRETRAININGS, oddity=3))
def test_lines_of_pretrain(place, arguments):
    check_line(place, "pretrain", arguments, {"--out": "new"})


@few
@given(st.none() | damages(), json_changes())
def test_descriptions(place, damage, change):
    check_description(place, damage, change)


def test_names_may_look_like_markup_and_formulas(tmp_path, monkeypatch):
    odd, out = "[/b] $x_{$ <i>", tmp_path / "[red]"
    given = {"task": "glue/sst2", "model": odd, "dims": (10, 100), "lrs": (0.1,), "seeds": 1}
    measures = [(odd, None, given, study_folders.facts(), {})]
    held = study_folders.write_study(out, "d90", measures, title=odd)
    writer.write_report(out, held)
    console = Console(file=io.StringIO(), width=200)
    writer.print_report(console, writer.gather(out, held))
    assert odd in console.file.getvalue() and "&lt;i&gt;" in (out / "report.html").read_text()
    monkeypatch.setattr(facts, "inspect", lambda settings: {})
    settings = complete(Settings(**given, out=str(out)))
    assert study._inspect(Console(file=io.StringIO()), recipes.single(settings))
