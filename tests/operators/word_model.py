"""A small model and its training, whose bits depend on our operators alone."""

import torch
from torch import nn

from fastfood.subspace import SubspaceConfig, get_subspace_model


class Words(nn.Module):
    """Most of its weights are a table, so that our kernels have work for several threads and
    torch's own sums, whose bits may depend on them, stay small."""

    def __init__(self, words):
        super().__init__()
        self.table = nn.Embedding(words, 64)
        self.out = nn.Linear(64, 2)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))


def trained(device="cpu", weights="resident", seed=0, words=500, steps=3):
    """theta and lambda_ after some steps of SAID."""
    generator = torch.Generator().manual_seed(seed)
    base = Words(words)
    for p in base.parameters():
        p.data.normal_(generator=generator)
    config = SubspaceConfig(d=300, seed=seed)
    model = get_subspace_model(base.to(device), config, weights=weights)
    optimizer = torch.optim.Adam(model._leaves(), 0.1)
    for _ in range(steps):
        ids = torch.randint(words, (4, 8), generator=generator).to(device)
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        optimizer.step()
    return model.theta.detach(), model.lambda_.detach()
