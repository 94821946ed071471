"""A bound on an adapter's error on rows that nobody has seen, from the few bits that it takes.

An adapter of d numbers on a few levels is a message of some hundred bits. A model that so short a
message describes cannot fit its m training rows by chance: with 95 % confidence its error on new
rows is below a bound that counts these bits (section 5 of Aghajanyan et al., ACL 2021; the exact
binomial tail is the tightest form). This script trains SAID on the digits and then does what
`fastfood bound FOLDER --task digits` does.

Expect after the default 400 steps a training error near 0.5 on four levels and a bound near 0.85,
while always answering one digit is wrong on 0.9 of the rows; the test error is below the bound.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import fastfood
from fastfood.experiments.bound.certify import certify
from fastfood.experiments.bound.options import Options
from fastfood.experiments.data.tasks import load_task
from fastfood.experiments.settings.measurement import complete, read_settings
from fastfood.experiments.training.models import build_base


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--d", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--levels", type=int, default=4, help="levels of theta and of lambda_")
    parser.add_argument("--qat-steps", type=int, default=200, help="steps of training on levels")
    args = parser.parse_args(arguments)

    settings = complete(read_settings({"task": "digits"}))
    task = load_task(settings)
    base = build_base(settings, task.num_labels, seed=0)  # theta_0: chosen before any row is seen
    model = fastfood.get_subspace_model(base, fastfood.SubspaceConfig(d=args.d, method="said"))
    train(model, task.train, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "digits")
        options = Options(levels=(args.levels,), qat_steps=args.qat_steps)
        certified = certify(settings, Path(folder) / "digits", options)

    print(f"{certified['levels']} levels, a message of {certified['bits']} bits:")
    for part, bits in certified["ledger"].items():
        print(f"    {part:14} {bits}")
    best, majority = certified["best"], certified["majority_error"]["train"]
    error, m = certified["train_error"], certified["m"]
    print(f"training error {error:.3f} on m = {m} rows; majority {majority:.3f}")
    print(f"error on new rows at most {best['value']:.3f} ({best['name']}, 95 % confidence)")
    print(f"test error {certified['test_error']:.3f} on {certified['test_rows']} rows")
    return certified


def train(model, rows, steps):
    """Adam with a rate that falls to zero, 64 rows a step."""
    pixels = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    optimizer = torch.optim.Adam(fastfood.parameter_groups(model, lr=0.3, lambda_lr=0.02))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(rows), (64,), generator=generator)
        optimizer.zero_grad()
        model(pixel_values=pixels[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    main()
