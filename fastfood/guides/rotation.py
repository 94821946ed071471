"""Rotation before quantisation: outliers that ruin four-bit rounding are spread by a Hadamard
rotation, which is folded into the weights of a linear layer so that its result does not change.

Activations of language models have a few columns that are far larger than all others. Rounding a
row to 15 levels takes its step from the largest entry, so nearly everything else becomes zero. With
an orthogonal matrix Q, x W^T = (x Q)(W Q)^T: rotate both, and each entry is a mean over the whole
row. Q here is random signs and then a Hadamard matrix (Ashkboos et al., "QuaRot", 2024), of 11008
columns = 172 * 2^6, where no power of two fits.

Expect the same output before rounding, to 1e-6, and a relative error of the rounded layer of about
0.8 without the rotation and 0.2 with it.
"""

import argparse

import torch

from fastfood import hadamard_transform_KN


def rotate(x, seed):
    """x Q with Q = diag(signs) H / sqrt(n), the signs and the scale in the transform's own pass."""
    return hadamard_transform_KN(x, x.shape[-1] ** -0.5, before=seed)


def round_to_int4(x):
    """Rounds each row to the 15 levels -7 ... 7 times a step that depends on the row."""
    step = x.abs().amax(-1, keepdim=True) / 7
    return (x / step).round().clamp(-7, 7) * step


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--columns", type=int, default=11008)
    parser.add_argument("--rows", type=int, default=512, help="tokens, and outputs of the layer")
    parser.add_argument("--outliers", type=int, default=8, help="columns 30 times as large")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    x = torch.randn(args.rows, args.columns)
    x[:, torch.randperm(args.columns)[: args.outliers]] *= 30
    weight = torch.randn(args.rows, args.columns) / args.columns**0.5
    wanted = x @ weight.T

    folded = rotate(weight, seed=1)  # once, before the model is saved
    turned = rotate(x, seed=1)  # at run time, before the layer
    print(f"the rotated layer differs by {relative_error(turned @ folded.T, wanted):.1e}")
    plain = relative_error(round_to_int4(x) @ round_to_int4(weight).T, wanted)
    rotated = relative_error(round_to_int4(turned) @ round_to_int4(folded).T, wanted)
    print(f"error of int4 weights and activations: {plain:.3f} as they are, {rotated:.3f} rotated")
    back = hadamard_transform_KN(turned, args.columns**-0.5, transpose=True, after=1)
    print(f"and back by the transpose: {relative_error(back, x):.1e}")
    return {"plain": plain, "rotated": rotated}


def relative_error(got, wanted):
    """|got - wanted| / |wanted|."""
    return ((got - wanted).norm() / wanted.norm()).item()


if __name__ == "__main__":
    main()
