"""The batch, training steps and models of test_distributed.py. One process trains on the whole
batch, and two processes on a half each."""

import subspace_models
import torch
import torch.distributed as dist
import transformers
from architectures import build
from subspace_models import IDS, bert, t5, wrap

BATCH = torch.cat([IDS, IDS[:1].flip(1)])
LABELS = torch.tensor([0, 1, 1, 0])
STEPS, RATE = 5, 20.0


def rows(step=0):
    """This process's half of the batch, which is another order of the rows in every step."""
    batch = torch.arange(4).roll(step)
    return batch.chunk(2)[dist.get_rank()] if dist.is_initialized() else batch


def loss(model, these):
    labels = BATCH if hasattr(model, "lm_head") else LABELS
    ids, labels = (x[these].to(subspace_models.DEVICE) for x in (BATCH, labels))
    return model(input_ids=ids, labels=labels).loss


def gradients(model):
    return [p.grad.clone() for p in (model.theta, model.lambda_) if p is not None]


def one_step(model, wrapper=None):
    loss(wrapper or model, rows()).backward()
    return gradients(model)


def train(model, wrapper=None):
    """theta before and after each step of SGD, and its gradients."""
    wrapper = wrapper or model
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=RATE)
    path, slopes = [model.theta.detach().clone()], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(wrapper, rows(step)).backward()
        slopes.append(model.theta.grad.clone())
        optimizer.step()
        path.append(model.theta.detach().clone())
    return {"theta": path, "slopes": slopes, "lambda_": model.lambda_.detach().clone()}


def accelerated(model):
    """theta after STEPS steps as Accelerate trains it, in any number of processes."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    wrapper, optimizer = accelerator.prepare(model, optimizer)
    for step in range(STEPS):
        accelerator.backward(loss(wrapper, rows(step)))
        optimizer.step()
        optimizer.zero_grad()
    return model.theta.detach().clone()


def by_trainer(model, folder):
    """theta after some steps of Trainer on batches of four rows, in any number of processes."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=4 // world,
        train_sampling_strategy="sequential",
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        # True would multiply BERT's loss, which is a mean, by the number of processes
        average_tokens_across_devices=False,
        use_cpu=True,
        ddp_backend="gloo" if world > 1 else None,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": BATCH.roll(i // 4, 0)[i % 4], "labels": i % 2} for i in range(12)]
    transformers.Trainer(model, arguments, train_dataset=data).train()
    return model.theta.detach().clone()


# Models


def checkpointed(model, **options):
    model.gradient_checkpointing_enable(options)
    return model.train()


def frozen():
    model = build("xlnet").double()
    model.transformer.word_embedding.weight.requires_grad_(False)
    return wrap(model)


def whole(model, **options):
    """Takes the place of shard(model, **options) where one process trains."""
    return model


def uneven():
    """A model with tensors of 41 rows, a tensor of one row, of which the second process has none,
    and a frozen tensor."""
    model = bert(type_vocab_size=1)
    model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
    return model


BY_TENSOR = {"normalization": "tensor", "groups": "tensor", "d": 60}
VARIANTS = {
    "tied": lambda cut: wrap(cut(t5())),
    "did": lambda cut: wrap(cut(bert()), method="did", normalization="tensor"),
    "by tensor": lambda cut: wrap(cut(bert()), **BY_TENSOR),
    "released": lambda cut: wrap(cut(bert()), gradient="released"),
    "checkpointed": lambda cut: checkpointed(wrap(cut(bert())), use_reentrant=False),
    "reentrant": lambda cut: checkpointed(wrap(cut(bert())), use_reentrant=True),
    "copies of shards": lambda cut: wrap(cut(bert(), copies=True)),
}
