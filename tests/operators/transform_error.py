"""The types that the transform takes, and how far its results may be from those in float64."""

import math

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def assert_close(y, x, want, scale, n):
    """y is within twice the error of plain sums in its arithmetic, and one rounding to its
    dtype.
    """
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    size = x.double().square().sum(-1, keepdim=True).sqrt() * abs(scale) * math.sqrt(n)
    error = 4 * torch.finfo(arithmetic).eps * size
    rounding = want.abs() * torch.finfo(y.dtype).eps + torch.finfo(y.dtype).smallest_normal
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
    assert bool(((y.double() - want).abs() <= error + rounding).all())
