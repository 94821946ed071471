"""A d90 study in Python: a recipe, the smallest d that reaches 90 % of full fine-tuning, and the
record of all trials.

A recipe states the settings of a study in TOML; this one measures SAID and DID on scikit-learn's
digits with a small ViT. `study.conduct` does what `fastfood study FILE` does: it trains the full
model, then each method at every d, rate and seed, fits a monotone curve, and writes results.json,
figures and a report. All trials are kept in trials.db, an Optuna study. Without --out the folder is
temporary. With --out a second call finds all trials done, and an interrupted study goes on.

Expect d90 between 100 and 1,000 for both methods in two minutes of one core. Few steps give
smaller scores, and "> 1000" where no d reaches the line.
"""

import argparse
import json
import tempfile
from pathlib import Path

import optuna

from fastfood.experiments import recipes, study
from fastfood.experiments.trials.folder import DATABASE, STUDY

RECIPE = """
title = "The digits, twice"
kind = "d90"

[settings]
task = "digits"
dims = {dims}
lr_factors = [4.0, 10.0]  # of 1/sqrt(d)
full_lrs = [1e-3]
max_steps = {steps}
seeds = {seeds}

[vary]
methods = [["said"], ["did"]]
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--dims", default="30,100,300,1000", help="values of d, between commas")
    parser.add_argument("--steps", type=int, default=150, help="training steps of each trial")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder to keep the study in")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return measure(args.out or Path(folder) / "digits", args)


def measure(out, args):
    """Conducts the study in `out` and returns d90 as a text by method."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = out / "recipe.toml"
    recipe.write_text(RECIPE.format(dims=f"[{args.dims}]", steps=args.steps, seeds=args.seeds))
    planned = recipes.read(str(recipe), scale="full", options={"out": str(out)})
    print(f"{len(planned.measurements)} measurements of {planned.title!r}")
    study.conduct(planned)

    results = json.loads((out / "results.json").read_text())
    for measured in results["measures"]:
        for point in measured["points"]:
            rate, mean = point["learning_rate"], point["mean"]
            print(f"{point['method']:5} d = {point['d']:6}, best rate {rate}: test {mean:.3f}")
    record = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{out}/{DATABASE}")
    print(f"the record has {len(record.trials)} trials; full fine-tuning is shared by both methods")
    d90 = {}
    for measured in results["measures"]:
        d90 |= {method: of["text"] for method, of in measured["summary"]["d90"].items()}
    print("d90:", d90)
    return d90


if __name__ == "__main__":
    main()
