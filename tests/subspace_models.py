"""Small models of every kind, how tests wrap and move them, and the gradients they should have.

They are built on the CPU, so that they are the same everywhere, and then lie on DEVICE, which the
fixture `everywhere` sets.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from fastfood import units
from fastfood.subspace import SubspaceConfig, get_subspace_model

transformers = pytest.importorskip("transformers")
units.SMALL = 20  # so that models this small have weights of both kinds
DEVICE = torch.device("cpu")

SMALL = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IDS = torch.randint(3, 41, (3, 7), generator=torch.Generator().manual_seed(1))
IDS[:, -1] = 2  # the sequence end, where BART's head reads
LABELS = torch.tensor([0, 1, 1])


def ids(*shape):
    """IDS, or a corner of them, where the models are."""
    return IDS[tuple(slice(n) for n in shape)].to(DEVICE)


def inputs(rows, *width):
    """Some numbers for a model of float64, where the models are."""
    count = torch.Size((rows, *width)).numel()
    return torch.linspace(-1, 1, count, dtype=torch.float64).view(rows, *width).to(DEVICE)


class Mlp(nn.Module):
    def __init__(self, sizes=(5, 7, 6, 3)):
        super().__init__()
        self.embed = nn.Linear(sizes[0], sizes[1])
        self.blocks = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes[1:]))
        self.out = nn.Linear(sizes[-1], 2)

    def forward(self, x):
        x = torch.tanh(self.embed(x))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.out(x)


def mlp():
    torch.manual_seed(0)
    return Mlp().double().to(DEVICE)


def bert(**changes):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL | changes, num_labels=2)
    return transformers.BertForSequenceClassification(config).double().to(DEVICE)


def albert():
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        **SMALL, embedding_size=8, num_labels=2, classifier_dropout_prob=0.0
    )
    return transformers.AlbertForSequenceClassification(config).double().to(DEVICE)


def bart():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=41,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=24,
        dropout=0.0,
        num_labels=2,
    )
    return transformers.BartForSequenceClassification(config).double().to(DEVICE)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=41,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).double().to(DEVICE)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=41,
        n_positions=24,
        n_embd=16,
        n_layer=2,
        n_head=2,
        eos_token_id=2,
        pad_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).to(DEVICE)


def loss_of(model):
    """One scalar of any of the models above, in the dtype of its weights."""
    base = getattr(model, "wrapped", model)
    if not isinstance(model, transformers.PreTrainedModel) and not hasattr(base, "config"):
        return model(inputs(4, 5).to(base.embed.weight.dtype)).double().square().sum()
    labels = ids() if hasattr(model, "lm_head") else LABELS.to(DEVICE)
    return model(input_ids=ids(), labels=labels).loss


def wrap(model, d=30, weights="resident", **settings):
    return get_subspace_model(model, SubspaceConfig(d=d, seed=5, **settings), weights=weights)


def move(model, seed=0):
    """Takes theta and lambda_ away from where all mistakes vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.theta += 0.3 * torch.randn(model.theta.shape, generator=generator).to(DEVICE)
        if model.lambda_ is not None:
            model.lambda_ += torch.rand(model.lambda_.shape, generator=generator).to(DEVICE)
    return model


def expected(model, plain, loss=loss_of):
    """Loss and gradients of theta and lambda_, through the dense P and the plain model."""
    config, theta = model.subspace_config, model.theta.detach()
    named = [(name, p) for name, p in plain.named_parameters() if p.requires_grad]
    D = sum(p.numel() for _, p in named)
    P = model.projection.to_dense(torch.float64, theta.device)
    assert P.shape == (D, len(theta)) and model.projection.seed == config.seed
    group = {segment.name: segment.group for segment in model.segments}
    factors, rows_group, released = [], [], []
    for name, p in named:
        norm = (D / p.numel()) ** 0.5 if config.normalization == "tensor" else 1.0
        scale = 1.0 if model.lambda_ is None else model.lambda_[group[name]].item()
        factors.append(torch.full((p.numel(), 2), norm, dtype=torch.float64))
        factors[-1][:, 1] *= scale
        rows_group.append(torch.full((p.numel(),), group[name]))
        rows = 2.0 ** math.ceil(math.log2(p.numel())) if config.gradient == "released" else 1.0
        released.append(torch.full((p.numel(),), 1 / rows, dtype=torch.float64))
    norms, scales = torch.cat(factors).to(theta.device).T
    rows_group = torch.cat(rows_group).to(theta.device)
    step, start = scales * (P @ theta), 0
    with torch.no_grad():
        for _, p in named:
            p += step[start : start + p.numel()].view(p.shape)
            start += p.numel()
    value = loss(plain)
    grads = torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
    flat = [
        torch.zeros(p.numel(), device=p.device) if g is None else g.reshape(-1)
        for g, (_, p) in zip(grads, named, strict=True)
    ]
    g = torch.cat(flat).double()
    lambda_grad = torch.zeros(len(model.group_names), dtype=torch.float64, device=theta.device)
    lambda_grad.index_add_(0, rows_group, norms * (P @ theta) * g)
    theta_grad = P.T @ (scales * torch.cat(released).to(theta.device) * g)
    return value, theta_grad, None if model.lambda_ is None else lambda_grad


def check_gradients(model, plain, loss=loss_of):
    value, theta_grad, lambda_grad = expected(model, plain, loss)
    got = loss(model)
    got.backward()
    torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.theta.grad, theta_grad, rtol=1e-7, atol=1e-9)
    assert theta_grad.norm() > 1e-6
    if lambda_grad is not None:
        torch.testing.assert_close(model.lambda_.grad, lambda_grad, rtol=1e-7, atol=1e-9)
        assert lambda_grad.norm() > 1e-6
