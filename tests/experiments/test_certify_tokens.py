"""A message of a model that writes also names alpha, and `fastfood bound` scores what the message
gives: its numbers are computed here once more, from the message's file and another forward."""

import pytest
import torch

import fastfood
from fastfood.experiments.bound.message import (
    decode_message,
    encode_message,
    with_alpha,
    without_alpha,
)
from fastfood.experiments.bound.tokens import ALPHA_BITS, ALPHAS
from fastfood.quantize import quantize

# the message


@pytest.mark.parametrize("n", range(60, 68))  # all fillings of the last byte
@pytest.mark.parametrize("index", [0, 13, len(ALPHAS) - 1])
def test_alpha_comes_back_and_its_bits_are_in_the_ledger(n, index):
    theta = quantize(torch.randn(n), 4)
    message = encode_message(fastfood.SubspaceConfig(n, method="did", seed=5), theta)
    longer = with_alpha(message, index)
    assert longer.ledger == {"alpha": ALPHA_BITS} | message.ledger
    assert len(longer.data) == -(-longer.bits // 8) and longer.bits == message.bits + ALPHA_BITS
    assert without_alpha(longer.data) == (index, message.data)
    assert torch.equal(decode_message(without_alpha(longer.data)[1])[1], theta.dequantize())
    for cut in (longer.data[:-1], longer.data + b"\0", b""):
        with pytest.raises(ValueError, match="damaged"):
            without_alpha(cut)


@pytest.mark.parametrize("index", [-1, len(ALPHAS)])
def test_an_alpha_that_the_grid_has_not_is_refused(index):
    message = encode_message(fastfood.SubspaceConfig(9, method="did"), quantize(torch.randn(9), 2))
    with pytest.raises(ValueError, match=f"^index: wanted a place in 0..31, got {index}"):
        with_alpha(message, index)
