"""Tests of recipes: those of the package say everything, the product of what varies, small scales,
replaced settings, and errors that name the key."""

import pytest

from fastfood.experiments import recipes
from fastfood.experiments.settings.language import LanguageSettings
from fastfood.experiments.settings.measurement import Settings
from fastfood.experiments.settings.options import kinds
from fastfood.experiments.settings.task import TaskSettings

RECIPE = """
title = "two tasks"
kind = "figure1"
[settings]
seeds = 1
dims = [10, 100]
[vary]
model = ["pretrained/vit/*", "other"]
lambda_lr = [{ lambda_lr = 0.1, max_steps = 5 }, 0.2]
[[pretrain]]
name = "vit"
task = "digits"
checkpoints = [0, 50]
[small]
settings = { seeds = 3 }
vary = { model = ["other"] }
"""

UNSTATED = {"text_columns", "label_column", "splits", "model", "revision", "data", "task"}
UNSTATED |= {"sizes", "head", "lrs", "peft_lrs", "eval_rows", "gap_rows", "out", "name"}
UNSTATED |= {"device", "workers", "gpu_share", "ray", "storage", "heartbeat", "save_adapters"}
# of models that write
UNSTATED |= {*LanguageSettings.model_fields, "lengths"} - set(TaskSettings.model_fields)
SEARCHES = {"grid": {"bracket", "precision"}, "bisect": {"dims"}}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    return "mine.toml"


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", ["table1", "figure1", "figure2", "figure3", "figure4", "figure5"])
def test_the_recipes_of_the_paper_state_every_setting(name, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, parsed = recipes._parse(name)
    stated = set(parsed["settings"]) | set(parsed["small"].get("settings", {}))
    varied = parsed["vary"] if scale == "full" else parsed["small"].get("vary", parsed["vary"])
    for values in varied.values():
        stated |= {key for value in values if isinstance(value, dict) for key in value}
    planned = recipes.read(name, scale, {})
    assert planned.kind == name and planned.scale == scale and planned.title and planned.note
    unstated = UNSTATED | SEARCHES[planned.measurements[0].settings.search]
    assert set(kinds(Settings)) - set(stated) <= unstated
    labels = [one.label for one in planned.measurements]
    assert len(set(labels)) == len(labels)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_the_papers_recipes_have_its_sweeps():
    table = recipes.read("table1", "full", {})
    settings = [one.settings for one in table.measurements]
    assert len(settings) == 4 * 2 and len({(s.model, s.task) for s in settings}) == 8
    assert all(len(s.lr_factors) == 4 and s.dims[0] == 10 and s.dims[-1] == 10000 for s in settings)
    figure = recipes.read("figure2", "full", {}).measurements
    settings = [one.settings for one in figure]
    assert all(s.bracket == (100, 4_000_000) and s.search == "bisect" for s in settings)
    assert {one.x for one in figure} >= {0, 20_000, 2_000_000}
    assert len({s.task for s in settings}) == 6


def test_measurements_are_the_product_of_what_varies(recipe):
    planned = recipes.read(recipe, "full", {})
    assert (planned.name, planned.kind, planned.out.name) == ("mine", "figure1", "mine")
    assert [
        (one.x, one.settings.model, one.settings.lambda_lr, one.settings.max_steps)
        for one in planned.measurements
    ] == [
        (0, "mine/pretrained/vit/step-0", 0.1, 5),
        (0, "mine/pretrained/vit/step-0", 0.2, 300),
        (50, "mine/pretrained/vit/step-50", 0.1, 5),
        (50, "mine/pretrained/vit/step-50", 0.2, 300),
        (None, "other", 0.1, 5),
        (None, "other", 0.2, 300),
    ]
    (pretraining,) = planned.pretrainings
    assert (pretraining.out, pretraining.checkpoints) == ("mine/pretrained/vit", (0, 50))
    assert {one.settings.seeds for one in planned.measurements} == {1}
    assert {one.settings.out for one in planned.measurements} == {"mine"}


def test_the_small_scale_replaces_settings_one_by_one_and_the_rest_as_a_whole(recipe):
    planned = recipes.read(recipe, "small", {})
    assert planned.name == "mine-small" and planned.out.name == "mine-small"
    (measurement,) = planned.measurements
    settings = measurement.settings
    assert (settings.model, settings.seeds, settings.dims) == ("other", 3, (10, 100))
    assert settings.lambda_lr == Settings().lambda_lr


def test_a_recipe_builds_on_another_key_by_key(recipe, tmp_path):
    (tmp_path / "below").mkdir()
    text = 'base = "../mine.toml"\n[settings]\nseeds = 7\n[small]\nsettings = { lambda_lr = 0.3 }'
    (tmp_path / "below" / "built.toml").write_text(text)
    planned = recipes.read("below/built.toml", "full", {})
    assert (planned.name, planned.title, planned.kind) == ("built", "two tasks", "figure1")
    assert len(planned.measurements) == len(recipes.read(recipe, "full", {}).measurements) == 6
    settings = [one.settings for one in planned.measurements]
    assert {(s.seeds, s.dims) for s in settings} == {(7, (10, 100))}
    (measurement,) = recipes.read("below/built.toml", "small", {}).measurements
    settings = measurement.settings
    assert (settings.model, settings.seeds, settings.lambda_lr) == ("other", 3, 0.3)
    text = 'base = "figure2"\n[vary]\nmodel = ["one"]\ntask = ["glue/mrpc"]'
    (tmp_path / "short.toml").write_text(text)
    (measurement,) = recipes.read("short.toml", "full", {}).measurements
    settings = measurement.settings
    assert settings.search == "bisect" and settings.bracket == (100, 4_000_000)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('"mine.toml"', r"base: wanted a recipe that is not .*got 'mine.toml' in .*mine\.toml"),
        ('"twice.toml"', r"base: wanted a recipe that is not .*got 'mine.toml' in .*twice\.toml"),
        ('"figure9"', "base: wanted a TOML file or one of figure1, .*, got 'figure9'"),
        ('"bad.toml"', "base: wanted TOML in bad.toml, got"),
        (r'"a\u0000b"', "base: wanted a recipe's name or file in mine.toml, got 'a"),
        ("3", "base: wanted a recipe's name or file in mine.toml, got 3"),
    ],
)
def test_a_bad_base_is_refused(tmp_path, monkeypatch, base, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(f"base = {base}")
    (tmp_path / "twice.toml").write_text('base = "mine.toml"')
    (tmp_path / "bad.toml").write_text("[")
    with pytest.raises(ValueError, match="^" + message):
        recipes.read("mine.toml", "full", {})


def test_given_settings_replace_those_of_the_recipe(recipe):
    planned = recipes.read(recipe, "small", {"dims": "7", "out": "there", "seeds": 2})
    (measurement,) = planned.measurements
    settings = measurement.settings
    assert (settings.dims, settings.seeds, settings.out) == ((7,), 2, "there")
    assert planned.pretrainings[0].out == "there/pretrained/vit"
    with pytest.raises(ValueError, match="^model: wanted nothing, because the recipe varies it"):
        recipes.read(recipe, "full", {"model": "mine"})


def test_checkpoints_have_their_step_along_pretraining():
    for name, step in {"a/step-200": 200, "a-step_20k": 20_000, "step200": 200, "a": None}.items():
        assert recipes._step_along_pretraining({"model": name}) == step
    assert recipes._step_along_pretraining({"model": "b", "revision": "step3000"}) == 3000
    assert recipes._step_along_pretraining({"task": "step3"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = [", "recipe: wanted TOML in mine.toml, got"),
        ("kind = 'figure9'", "recipe: wanted kind = one of d90, .*, got 'figure9'"),
        ("kind = 'd90'\ncolour = 1", r"recipe: wanted keys among .*, got \['colour'\]"),
        ("kind = 'd90'\n[small]\nx = 1", r"recipe: wanted keys among .*, got \['x'\]"),
        ("kind = 'd90'\n[settings]\nseed = 1", "seed: wanted a setting, one of"),
        ("kind = 'd90'\n[settings]\nseeds = 'x'", "seeds: wanted a whole number, got 'x'"),
        ("kind = 'd90'\n[vary]\nseeds = 3", "vary: wanted a list for seeds, got 3"),
        ("kind = 'd90'\n[vary]\nmodel = ['pretrained/a/*']", "vary: wanted a model of a table"),
        ("kind = 'd90'\n[[pretrain]]\ntask = 'digits'", "pretrain: wanted a name in each table"),
        (
            "kind = 'd90'\n[[pretrain]]\nname = 'a'\nstep = 1",
            "step: wanted a setting, one of task, .*, out, checkpoints, ",
        ),
        (
            "kind = 'd90'\n[[pretrain]]\nname = 'a'\nlayers = 0",
            "layers: wanted at least 1, at most 1,000, got 0",
        ),
        ("kind = 'd90'\nsettings = 3", "recipe: wanted a table settings"),
        ("kind = 'd90'\nvary = [1]", "recipe: wanted a table vary"),
        ("kind = 'd90'\npretrain = {a = 1}", "recipe: wanted tables pretrain"),
        ("kind = 'd90'\nsmall = 1", "recipe: wanted a table small"),
        ("kind = 'd90'\nsmall = {settings = 1}", "recipe: wanted a table settings"),
        (
            "kind = 'd90'\nsmall = {base = 'table1'}",
            r"recipe: wanted keys among .*, got \['base'\]",
        ),
        ("kind = 'd90'\n[small]\nvary = 1", "recipe: wanted a table vary"),
        ("kind = 'd90'\n[small]\nkind = 1", "recipe: wanted kind = one of d90"),
        ("kind = 'd90'\n[small.small]", r"recipe: wanted keys among .*, got \['small'\]"),
        ("kind = " + 3000 * "[", "recipe: wanted TOML in mine.toml, got"),
        ("kind = " + 5000 * "9", "recipe: wanted TOML in mine.toml, got"),
        ("kind = 'd90'\ntitle = 1", "recipe: wanted a text title in mine.toml, got 1"),
        ("kind = 'd90'\nnote = \"\\u0007\"", "recipe: wanted a text note in mine.toml, got"),
        ("kind = 'd90'\n[vary]\nmodel = [1]", "model: wanted a text, got 1"),
        ("kind = 'd90'\n[[pretrain]]\nname = '../a'", "pretrain: wanted a name in each table, of"),
        ("kind = 'd90'\n[[pretrain]]\nname = '/a'", "pretrain: wanted a name in each table, of"),
        (
            "kind = 'd90'\n[[pretrain]]\nname = 'a'\n[[pretrain]]\nname = 'a'",
            "pretrain: wanted another name in each table, got",
        ),
        (
            f"kind = 'd90'\n[vary]\nseeds = {[1] * 40}\nmax_steps = {[1] * 40}",
            "vary: wanted at most 1,000 measurements, got 1600",
        ),
    ],
)
def test_bad_recipes_are_refused_by_key(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match="^" + message):
        recipes.read("mine.toml", "full", {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_recipe_that_is_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ValueError, match="^recipe: wanted a TOML file or one of .*loop"):
        recipes.read(str(tmp_path / "loop.toml"), "full", {})


def test_an_unknown_recipe_or_scale_is_refused(recipe):
    with pytest.raises(ValueError, match="^recipe: wanted a TOML file or one of figure1, "):
        recipes.read("figure9", "full", {})
    with pytest.raises(ValueError, match="^scale: wanted full or small, got 'tiny'"):
        recipes.read("table1", "tiny", {})


def test_data_are_for_those_that_read_text(tmp_path):
    (tmp_path / "mine.toml").write_text(
        """
kind = "figure2"
[vary]
model = [
  { model = "pretrained/vit/*", task = "digits" },
  { model = "pretrained/bert/*", task = "glue/sst2" },
]
[[pretrain]]
name = "vit"
task = "digits"
[[pretrain]]
name = "bert"
task = "glue/sst2"
vocabulary = 100
"""
    )
    given = {"data": str(tmp_path), "out": str(tmp_path / "out")}
    planned = recipes.read(str(tmp_path / "mine.toml"), "full", given)
    assert {(one.settings.task, one.settings.data) for one in planned.measurements} == {
        ("digits", None),
        ("glue/sst2", str(tmp_path)),
    }
    digits, text = planned.pretrainings
    assert digits.data is None and text.data == str(tmp_path)
