"""One training step in d dimensions against the model's own forward and backward.

    python benchmarks/step.py [--d 1000] [--batch-size 32] [--length 64] [--threads 1]

The model has the shape of MiniLM-L6 (D = 22.7 M) with random weights; its own forward and backward,
a full fine-tuning step with AdamW, and DID and SAID steps are measured in one run, interleaved, as
medians.
"""

import argparse
import copy
import statistics
import time

import torch
import transformers

import fastfood


def build_model():
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return transformers.BertForSequenceClassification(config).train()


def build_steps(d, batch):
    """Name -> a function that does one step on the batch."""
    plain = build_model()

    def forward_backward():
        plain.zero_grad()
        plain(**batch).loss.backward()

    def training_step(model, rate):
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)

        def step():
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()

        return step

    steps = {"forward + backward": forward_backward, "full, AdamW": training_step(plain, 1e-5)}
    for method in ("did", "said"):
        config = fastfood.SubspaceConfig(d=d, method=method)
        model = fastfood.get_subspace_model(copy.deepcopy(plain), config)
        steps[f"{method.upper()}, d = {d}"] = training_step(model, 1e-3)
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    ids = torch.randint(0, 30_000, (arguments.batch_size, arguments.length))
    batch = {"input_ids": ids, "labels": torch.randint(0, 2, (arguments.batch_size,))}
    steps = build_steps(arguments.d, batch)
    times = {name: [] for name in steps}
    for _ in range(arguments.repetitions + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    own = medians["forward + backward"]
    print("| step | ms | of it outside forward + backward |")
    print("|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {1e3 * value:.0f} | {max(0.0, 1 - own / value):.0%} |")


if __name__ == "__main__":
    main()
