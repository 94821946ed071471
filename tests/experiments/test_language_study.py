"""Studies of models that write, from the command line: to the end, killed and resumed, from the
recipes, and refused before anything is written."""

import json
import os
import signal
import subprocess
import sys

import pytest
from commands import contents, invoke
from study_driver import scores_of, wait_for, work_in_threads
from writers import llama, save, sums, t5, write_rows

from fastfood.experiments import recipes
from fastfood.experiments.trials import run
from fastfood.experiments.trials.facts import inspect
from fastfood.experiments.trials.folder import open_record, read_description
from fastfood.experiments.trials.plan import trials

DRIVE = "from fastfood.experiments.cli import main; main()"
SMALL = ["--max-steps", 2, "--batch-size", 8, "--device", "cpu", "--workers", 1, "--seeds", 1]
SMALL += ["--dims", "20", "--lrs", "0.1", "--full-lrs", "0.01"]
COLUMNS = ["--prompt-column", "prompt", "--completion-column", "completion"]
REWARD = """
def letters(completions, **_):
    return [float(sum(c in "abcd" for c in text)) for text in completions]

def broken(completions, **_):
    return ["good"] * len(completions)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("language")
    save(root / "llama", llama(), chat=True)
    save(root / "t5", t5())
    write_rows(root / "data", train=sums(40), test=sums(20, 40))
    (root / "rewards.py").write_text(REWARD)
    return root


@pytest.fixture
def here(monkeypatch):
    """Runs trials in this process, which has loaded everything."""
    work_in_threads(monkeypatch)
    monkeypatch.setattr(run, "POLL", 0.05)


def arguments(made, objective, model="llama"):
    named = ["--objective", objective, "--task", "sums", "--splits", "train,test", *COLUMNS]
    return [*named, "--model", made / model, "--data", made / "data", *SMALL]


def results_of(out):
    return json.loads((out / "results.json").read_text())


def test_d90_by_sft_from_the_base_model_upward(made, here, tmp_path):
    out = tmp_path / "out"
    command = ["d90", *arguments(made, "sft"), "--metric", "loss", "--method", "did", "--out", out]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    results = results_of(out)
    assert [row["method"] for row in results["trials"]] == ["base", "full", "did"]
    base, full, did = (row["test"] for row in results["trials"])
    (measure,) = results["measures"]
    assert full > base and measure["summary"]["full"] == 1
    shares = {point["method"]: point["mean"] for point in measure["points"]}
    assert shares["did"] == pytest.approx((did - base) / (full - base))
    assert (out / "figure1.png").exists() and "base model" in (out / "report.md").read_text()
    again = invoke(*command)
    assert again.exit_code == 0 and "3 of 3 trials are already done" in again.output


def test_a_killed_study_by_rewards_goes_on_with_the_same_result(made, here, tmp_path):
    pytest.importorskip("trl")
    out = tmp_path / "out"
    command = ["d90", *arguments(made, "grpo"), "--reward", f"{made / 'rewards.py'}:letters"]
    command += ["--method", "did,tinylora", "--sizes", 2, "--peft-lrs", "0.01", "--out", out]
    program = [sys.executable, "-c", DRIVE, *map(str, command)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "1/4" in (tmp_path / "log").read_text(), 100)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    resumed = invoke(*command)
    assert resumed.exit_code == 0, resumed.output
    assert "1 of 4 trials are already done" in resumed.output
    (measure,) = read_description(out).measures
    assert measure.settings.metric == "reward"
    scores = scores_of(open_record(out, measure.settings))
    asked = trials(measure.settings, measure.facts, scores)
    assert [trial.method for trial in asked] == ["base", "full", "did", "tinylora"]
    from fastfood.experiments.training.train import train_trial

    for trial in asked:  # what a study that nobody killed would have scored
        score = train_trial(measure.settings, trial)
        recorded = scores[trial.key]
        assert (score.validation, score.test) == (recorded.validation, recorded.test)


@pytest.mark.parametrize(
    "changes, refused",
    [
        (["--completion-column", "answer"], "wanted a column 'answer', got the columns prompt"),
        (["--answer", "#### (.*)"], "answer: wanted a pattern that is found in completions of"),
        (["--reward", "REWARDS:broken"], "reward: wanted a function that gives 4 finite numbers"),
        (["--reward", "REWARDS:missing"], "reward: wanted a Python function"),
        (["--model", "BERT"], "model: wanted a folder or hub name of a causal or encoder-decoder"),
        (["--model", "T5"], "model: wanted a model of one stack of layers for the objective grpo"),
        (["--dims", "99999"], "dims: DID with d = 99999"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    made, model_folder, tmp_path, monkeypatch, changes, refused
):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    places = {
        "REWARDS": f"{made / 'rewards.py'}",
        "BERT": f"{model_folder}",
        "T5": f"{made / 't5'}",
    }
    given = [str(argument) for argument in changes]
    for name, place in places.items():
        given = [argument.replace(name, place) for argument in given]
    result = invoke("d90", *arguments(made, "grpo"), *given)
    assert result.exit_code == 2 and contents(tmp_path) == {}
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastfood d90: error: ") and refused in line


def test_a_recipe_may_not_name_code_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.toml").write_text('base = "gsm8k"\n[settings]\nreward = "os:system"\n')
    with pytest.raises(ValueError, match="reward: wanted it on the command line alone"):
        recipes.read("evil.toml", "full", {})
    given = {"reward": "os:system", "model": None}
    planned = recipes.read("gsm8k", "full", {k: v for k, v in given.items() if v})
    assert {one.settings.reward for one in planned.measurements} == {"os:system"}  # not run yet


GSM8K = """
base = "gsm8k"
[settings]
dims = [20]
sizes = [1]
lengths = [13]
methods = ["did", "said", "lora", "vera", "unilora", "tinylora"]
lrs = [0.1]
peft_lrs = [0.01]
seeds = 1
bf16 = false
max_new_tokens = 4
[vary]
objective = [
  { objective = "sft", max_steps = 2, batch_size = 8, full_lrs = [0.01] },
  { objective = "grpo", max_steps = 2, batch_size = 8, generations = 4, full_lrs = [0.01] },
]
model = [{ model = "MODEL", weights = "streamed", accumulation = 2 }]
"""


def test_the_recipe_of_gsm8k_on_a_tiny_model(made, here, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    rows = [{"question": row["prompt"], "answer": f"so {row['completion']}"} for row in sums(60)]
    write_rows(tmp_path / "data" / "gsm8k", train=rows[:40], test=rows[40:])
    (tmp_path / "tiny.toml").write_text(GSM8K.replace("MODEL", str(made / "llama")))
    options = ["--data", tmp_path / "data", "--device", "cpu", "--out", tmp_path / "out"]
    done = invoke("study", "tiny.toml", *options)
    assert done.exit_code == 0, done.output
    results = results_of(tmp_path / "out")
    assert results["progress"]["complete"] == 2 * 8 and not results["progress"]["missing"]
    labels = [measure["label"] for measure in results["measures"]]
    assert labels == ["llama, gsm8k, SFT", "llama, gsm8k, GRPO"]
    settings = results["measures"][1]["settings"]
    assert settings["chat"] and settings["gradient_checkpointing"] and settings["beta"] == 0
    assert results["measures"][0]["facts"]["sizes"]["test"] == 20


def test_the_small_study_of_language_has_all_methods_from_one_number_on(tmp_path):
    planned = recipes.read("language", "small", {"out": str(tmp_path)})
    assert [one.label.rpartition(", ")[2] for one in planned.measurements] == ["SFT", "GRPO", "SFT"]
    (pretraining,) = planned.pretrainings
    assert pretraining.causal and pretraining.task == "arithmetic"
    save(tmp_path / "pretrained" / "sums" / "step-3000", llama(vocab_size=98))
    from fastfood.experiments.data.arithmetic import arithmetic_tokenizer

    arithmetic_tokenizer().save_pretrained(tmp_path / "pretrained" / "sums" / "step-3000")
    settings = planned.measurements[0].settings.replaced(dims=(1, 10, 300), device="cpu")
    asked = trials(settings, inspect(settings), {})
    smallest = {}
    for trial in asked:
        smallest[trial.method] = min(trial.d, smallest.get(trial.method, trial.d))
    assert smallest.pop("base") == 0 and set(smallest) == {"full", *settings.methods}
    assert smallest["did"] == smallest["unilora"] == smallest["tinylora"] == 1
    assert smallest["said"] == 10  # its scales count
