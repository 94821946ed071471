"""PEFT: SAID as a PEFT method, with two adapters over one causal language model, saved, loaded and
merged by PEFT's own calls.

Importing fastfood.peft registers SaidConfig and DidConfig. Each adapter moves all weights within
its subspace, and one adapter is active at a time. This tiny GPT-2 of random weights has two tasks:
to count up and to count down.

Expect the loss of each adapter on its own task to fall from about 3.5 to below 1.5, to stay high on
the other's, to be the same after saving and loading, and a merged model that is a plain GPT-2.
`--model` takes a causal checkpoint, whose first tokens then stand for the numbers.
"""

import argparse
import tempfile

import peft
import torch
import transformers

from fastfood import parameter_groups
from fastfood.peft import SaidConfig

NUMBERS = 32
STRIDES = {"up": 1, "down": -1}


def base_model(checkpoint):
    transformers.set_seed(0)
    if checkpoint:
        return transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 16}
    tokens = {"vocab_size": NUMBERS, "bos_token_id": None, "eos_token_id": None}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **tokens))


def loss_of(model, task):
    """The loss on sequences that count up or down modulo NUMBERS from every number."""
    start = torch.arange(NUMBERS).unsqueeze(1)
    tokens = (start + STRIDES[task] * torch.arange(16)) % NUMBERS
    return model(input_ids=tokens, labels=tokens).loss


def train(model, task, steps):
    model.set_adapter(task)
    model.train()
    optimizer = torch.optim.Adam(parameter_groups(model, lr=0.3, lambda_lr=0.02))
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, task).backward()
        optimizer.step()
    model.eval()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", help="a folder or hub name instead of a random GPT-2")
    parser.add_argument("--d", type=int, default=300)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(arguments)

    def config(seed):
        return SaidConfig(d=args.d, seed=seed, task_type="CAUSAL_LM")

    model = peft.get_peft_model(base_model(args.model), config(seed=0), adapter_name="up")
    model.add_adapter("down", config(seed=1))
    losses = {}
    for task in STRIDES:
        train(model, task, args.steps)
        losses |= {(task, other): loss_of(model, other).item() for other in STRIDES}
        print(f"adapter {task}:", *(f"{other} {losses[task, other]:.3f}" for other in STRIDES))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # a folder for each adapter
        again = peft.PeftModel.from_pretrained(
            base_model(args.model), f"{folder}/up", adapter_name="up"
        )
        again.load_adapter(f"{folder}/down", "down")
        again.set_adapter("down")
        loaded = loss_of(again, "down").item()
        plain = again.merge_and_unload().eval()
        merged = loss_of(plain, "down").item()
    print(f"down after loading {loaded:.3f}, merged into a {type(plain).__name__} {merged:.3f}")
    return {"losses": losses, "loaded": loaded, "merged": merged}


if __name__ == "__main__":
    main()
