"""Random features against the exact kernels, and the scikit-learn transformer by that library's own
checks."""

import math

import pytest
import torch
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.utils.estimator_checks import check_estimator
from torch.autograd import gradcheck

from fastfood import FastfoodFeatures
from fastfood.sampler import FastfoodSampler

D, SEEDS = 2048, 30
CASES = [("rbf", 1.5, RBF(2.0))]
CASES += [("matern", nu, Matern(2.0, nu=nu)) for nu in (0.5, 1.5, 2.5)]


@pytest.mark.parametrize("kernel, nu, exact", CASES, ids=[f"{k}-{nu}" for k, nu, _ in CASES])
@pytest.mark.parametrize("d", [1, 3, 10, 64, 100])
def test_inner_products_are_the_kernel(kernel, nu, exact, d):
    x = torch.randn(30, d, dtype=torch.float64) * 2 / math.sqrt(d)
    wanted = torch.tensor(exact(x.numpy()))
    errors = []
    for seed in range(SEEDS):
        y = FastfoodFeatures(d, D, kernel, 2.0, nu, seed)(x)
        errors.append(y @ y.T - wanted)
    errors = torch.stack(errors) * math.sqrt(D)
    # Of independent frequencies: mean 0, variance 1 + k(2 (x - y)) - 2 k^2 <= 2. Few distinct
    # pairs: 5 sigma.
    assert errors.square().mean().sqrt() < 1.2
    assert errors.mean(0).abs().max() < 5 * math.sqrt(2 / SEEDS)


def test_lengths_are_independent_and_of_the_spectrum():
    """Rows of V as the gradient sees them: those of one block, whose G has one length, differ as
    those of a Gaussian matrix do."""
    n = 64
    features = FastfoodFeatures(n, 2 * 40 * n, seed=3).double()
    V = torch.func.jacrev(features)(torch.zeros(n, dtype=torch.float64))[features.D // 2 :]
    lengths = (V * math.sqrt(features.D / 2)).norm(dim=1)
    assert abs(float(lengths.square().mean()) / n - 1) < 5 * math.sqrt(2 / n / len(lengths))
    assert abs(float(lengths.square().var()) / (2 * n) - 1) < 0.15
    assert lengths.reshape(-1, n).var(1).min() > 0.2


@pytest.mark.parametrize("D", [1, 2, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_shapes_and_dtypes(D, dtype, device):
    features = FastfoodFeatures(5, D, seed=1).to(device)
    x = torch.randn(2, 3, 5, device=device).to(dtype)
    y = features(x)
    assert y.shape == (2, 3, D) and y.dtype == dtype and not features.state_dict()
    wide = FastfoodFeatures(5, D, seed=1).to(device)(x.double())
    assert (y.double() - wide).abs().max() < 4 * torch.finfo(dtype).eps + 1e-6


def test_gradients_and_repr():
    features = FastfoodFeatures(3, 20, "matern", nu=0.5)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(features, (x,), check_forward_ad=True)
    assert "d=3, D=20, kernel='matern', length_scale=1.0, nu=0.5, seed=0" in repr(features)


def test_seeds_repeat_and_differ():
    x = torch.randn(10, 7)
    a, b, c = (FastfoodFeatures(7, 100, seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d": 0}, "d: wanted an integer of at least 1, got 0"),
        ({"D": 2.5}, "D: wanted an integer of at least 1, got 2.5"),
        ({"kernel": "poly"}, "kernel: wanted one of rbf, matern, got 'poly'"),
        ({"length_scale": 0}, "length_scale: wanted a number above 0, got 0"),
        ({"kernel": "matern", "nu": 0.7}, "nu: wanted a positive multiple of 1/2, got 0.7"),
        ({"seed": -1}, "seed: wanted an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FastfoodFeatures(**{"d": 3, "D": 4} | arguments)
    with pytest.raises(ValueError, match=r"x: wanted shape \(..., 3\), got \(4,\)"):
        FastfoodFeatures(3, 4)(torch.randn(4))


def test_scikit_learn_accepts_the_transformer():
    check_estimator(FastfoodSampler(n_components=10))


def test_the_transformer_approximates_the_kernel():
    x = torch.randn(20, 6).numpy()
    y = FastfoodSampler("matern", nu=1.5, n_components=20_000, random_state=0).fit_transform(x)
    assert abs(y @ y.T - Matern(1.0, nu=1.5)(x)).max() < 6 * math.sqrt(2 / 20_000)
