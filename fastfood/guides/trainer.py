"""SAID with transformers' Trainer: a small ViT learns the digits in 1,000 numbers, which are saved
as a file and loaded over the same base model again.

get_subspace_model puts everything that trains, the head included, into a random subspace; the
Trainer then sees a model with two parameters, theta and the scales lambda_. They need different
learning rates, which `parameter_groups` sets. The base model has to be the same when the file is
loaded, and its random head is part of it, so the seed is set before it is made.

Expect an accuracy of 0.83 to 0.93 on test rows after 300 steps, 0.1 before, a file of 4.4 KB
(theta and lambda_ in four bytes each, and a header), and after loading the same logits to the bit.
`--model` takes a checkpoint with an image classification head.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from sklearn.datasets import load_digits

import fastfood


def base_model(checkpoint):
    """The starting point theta_0, the same at every call."""
    transformers.set_seed(0)
    if checkpoint:
        return transformers.AutoModelForImageClassification.from_pretrained(
            checkpoint, num_labels=10, ignore_mismatched_sizes=True
        )
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**sizes, **shape, intermediate_size=256)
    return transformers.ViTForImageClassification(config)


def rows(config):
    """The digits as training rows and test rows for a ViT of this configuration."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    size = (config.image_size, config.image_size)
    pixels = torch.nn.functional.interpolate(pixels, size).expand(-1, config.num_channels, -1, -1)
    digits = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]
    return digits[:1297], digits[1297:]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", help="a folder or hub name instead of a random ViT")
    parser.add_argument("--d", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(arguments)

    base = base_model(args.model)
    train, test = rows(base.config)
    model = fastfood.get_subspace_model(base, fastfood.SubspaceConfig(d=args.d, method="said"))
    model.print_trainable_parameters()
    rates = {"params": fastfood.parameter_groups(model, lr=0.3, lambda_lr=0.02)}
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=64, disable_tqdm=True
        )
        trainer = transformers.Trainer(
            model, settings, train_dataset=train, optimizer_cls_and_kwargs=(torch.optim.Adam, rates)
        )
        trainer.train()
        predicted = trainer.predict(test)
        file = model.save_pretrained(Path(folder) / "task")
        print(f"{file.name} has {file.stat().st_size:,} bytes")
        again = fastfood.SubspaceModel.from_pretrained(base_model(args.model), file)
        trainer.model = trainer.model_wrapped = again
        same = (trainer.predict(test).predictions == predicted.predictions).all()
    accuracy = (predicted.predictions.argmax(-1) == predicted.label_ids).mean()
    print(f"accuracy {accuracy:.3f}; the same logits after loading: {same}")
    return {"accuracy": accuracy, "same": bool(same)}


if __name__ == "__main__":
    main()
