"""An adapter file of format 1 that never changes, and the weights that it must give on every
instruction set, and from the CUDA sources on the emulator.

`python tests/operators/test_golden.py` prints the instruction set's digest of these weights.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastfood

pytest.importorskip("safetensors.torch")

FILE = Path(__file__).parents[1] / "fixtures" / "golden_adapter.safetensors"
DIGEST = "b72601dca56a18bb0fcbdf15438d88c0989993d8c14a5c27c08498dd15aa50be"


class Base(nn.Module):
    """Weights that no generator made: they are fractions of small whole numbers, exact in any
    type."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.layer = nn.ModuleList(nn.Linear(64, 64 + i) for i in range(6))
        self.layer[2].bfloat16()
        self.layer[4].half()
        self.head = nn.Linear(64, 3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        for i, p in enumerate(self.parameters()):
            p.data.copy_(((torch.arange(p.numel()) * (31 + i)) % 127 - 63).view(p.shape) / 256)


def adapted():
    return fastfood.SubspaceModel.from_pretrained(Base(), FILE)


def digest(model):
    """A hash of all weights, in the order of their names."""
    sha = hashlib.sha256()
    for _, p in model.wrapped.named_parameters():
        sha.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()


def test_the_golden_adapter_gives_the_golden_weights(device):
    model = adapted().to(device)
    model.refresh()
    config = model.subspace_config
    assert (config.d, config.method, model.projection.D) == (300, "said", 45_330)
    assert digest(model) == DIGEST


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_gives_them(isa):
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "FASTFOOD_ISA": isa},
        capture_output=True,
        text=True,
    )
    if done.returncode and "FASTFOOD_ISA: wanted" in done.stderr:
        pytest.skip(f"this processor lacks {isa}")
    assert done.stdout.split() == [DIGEST], done.stderr


def test_the_cuda_sources_give_them_on_the_emulator():
    sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
    native = pytest.importorskip("fastfood_native_tests", reason="built with FASTFOOD_TESTS=1")
    model = adapted()
    kinds = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}  # the order of kernels.h
    v = model.projection.spread(model.theta.detach())
    for run in model._holder.buffers:
        segments = [model.segments[segment.index] for segment in run.segments]
        ends = [segment.start + segment.numel - run.start for segment in segments]
        offsets, norms = torch.tensor([0, *ends]), torch.tensor([s.norm for s in segments])
        scales = norms * model.lambda_.detach()[[s.group for s in segments]]
        out = torch.full_like(run.base, float("nan"))
        addresses = [t.data_ptr() for t in (out, run.base, v, offsets, scales)]
        native.project(
            True,
            *addresses,
            len(scales),
            kinds[run.base.dtype],
            len(v),
            run.segments[0].start,
            len(out),
            model.projection.seed,
        )
        assert torch.equal(out, run.current)


if __name__ == "__main__":
    print(digest(adapted()))
