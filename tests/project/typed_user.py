"""The code of a user who checks types. `make types` runs mypy --strict on it; nothing runs it."""

import torch

import fastfood
from fastfood import FastfoodFeatures, SubspaceConfig, SubspaceModel, get_subspace_model


def rotated(w: torch.Tensor) -> torch.Tensor:
    signs: torch.Tensor = fastfood.random_signs(w.shape[-1], seed=1, device="cpu")
    y = fastfood.hadamard_transform_KN(w, w.shape[-1] ** -0.5, before=signs)
    fastfood.hadamard_transform_(y, scale=0.5, after=7)
    fastfood.hadamard_transform_KN(y, block=16, out=y)
    return fastfood.hadamard_transform(y, dim=0, block=4, out=torch.empty_like(y))


def projected(theta: torch.Tensor) -> torch.Tensor:
    P = fastfood.Fastfood(d=theta.shape[-1], D=10_000, seed=3)
    rows: torch.Tensor = P.rows(theta, 0, 4096, out=torch.empty(4096))
    features = FastfoodFeatures(d=64, D=128)
    phases: torch.Tensor = features.forward(rows.view(-1, 64))
    return P.rows_adjoint(rows, 0) + P.adjoint(P(theta)) + phases.sum()


def trained(base: torch.nn.Module) -> torch.nn.Module:
    config = SubspaceConfig(d=200, method="said", groups=lambda name: name.split(".")[0])
    model: SubspaceModel = get_subspace_model(base, config, weights="streamed")
    optimizer = torch.optim.AdamW(fastfood.parameter_groups(model, lr=0.4, lambda_lr=0.02))
    loss: torch.Tensor = model(torch.ones(2, 3)).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    optimizer.step()
    size: int = model.theta.numel()
    with model.disable_adapter():
        model.refresh()
    path = model.save_pretrained("task", dtype=torch.float16, levels=16)
    if path is not None and size:
        model.load_adapter(path, "again")
    model.state_dict()
    return SubspaceModel.from_pretrained(base, "task").merge_and_unload()
