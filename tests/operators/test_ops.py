"""The operators of the generator and the projection: torch's own checks, and the same bits on every
instruction set and thread count, also of the transform and of a training. Of a training we promise
only our part, because the bits of torch's large sums may depend on its threads.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from fastfood import ops


def operator_calls(device):
    v = torch.randn(2, 256, device=device)
    vector, offsets = torch.randn(700, device=device), torch.tensor([0, 100, 700], device=device)
    return {
        "project_rows": (v.clone().requires_grad_(), 3, 10, 700),
        "project_rows_adjoint": (
            torch.randn(2, 690, device=device, requires_grad=True),
            256,
            3,
            10,
        ),
        "project_rows_adjoint_sum": (
            [
                torch.randn(690, device=device, requires_grad=True),
                torch.randn(30, device=device).bfloat16().requires_grad_(),
            ],
            [10, 3],
            [1.0, -0.5],
            256,
            3,
        ),
        "perturb_": (
            vector.clone(),
            vector,
            v[0].clone(),
            offsets,
            torch.randn(2, device=device),
            3,
            10,
        ),
        "perturbed": (
            [vector[:300].view(30, 10), vector[:350].view(50, 7).T],
            v[0].clone(),
            torch.tensor([0, 350], device=device),
            torch.randn(2, device=device),
            3,
            [10, 7],
            [1, 0],
        ),
        "philox_words": (v, 3, 1, 10, 7),
        "normals": (v, 3, 1, 10, 7),
    }


@pytest.mark.parametrize("name", operator_calls("cpu"))
def test_torch_accepts_the_registration(name, device):
    torch.library.opcheck(getattr(torch.ops.fastfood, name).default, operator_calls(device)[name])


WRONG = [  # operator, which argument, what stands there instead, what is said
    (
        "project_rows",
        0,
        lambda x: x.half(),
        "v: wanted (Float|float32 or float64), got .*[Hh]alf|v: wanted .*, got torch.float16",
    ),
    ("project_rows", 0, lambda x: x[:, :200], "L: wanted a power of two of at least 256"),
    ("project_rows", 2, lambda x: -1, "start: wanted no negative number, got -1"),
    ("project_rows_adjoint", 0, lambda x: x.long(), "g: wanted float32, float64, float16"),
    ("project_rows_adjoint", 1, lambda x: 300, "L: wanted a power of two of at least 256, got 300"),
    ("project_rows_adjoint_sum", 1, lambda x: [1], "starts, factors: wanted one for each of 2"),
    ("project_rows_adjoint_sum", 0, lambda x: [x[0].long()] * 2, "gs: wanted float32, float64"),
    ("perturb_", 1, lambda x: x[1:], "base: wanted 700 entries, got 699|base: wanted a contig"),
    ("perturb_", 3, lambda x: x.int(), "offsets: wanted .*[Ll]ong|offsets: wanted torch.int64"),
    ("perturb_", 4, lambda x: x.double(), "scales: wanted .*[Ff]loat"),
    ("perturbed", 0, lambda x: [x[0], x[1].half()], "bases: wanted (Float|torch.float32), got"),
    ("perturbed", 2, lambda x: x[1:], "bounds: wanted (2 entries, got 1|a contiguous vector of 2)"),
    ("perturbed", 5, lambda x: [1], "starts, places: wanted one for each of 2 tensors, got 1 and"),
    ("perturbed", 6, lambda x: [0, 2], "places: wanted 0 ... 1, got 2"),
    ("philox_words", 3, lambda x: -1, "first.*: wanted no negative number, got -1"),
    ("normals", 2, lambda x: -1, r"stream: wanted 0 \.\.\. 2\^32 - 1, got -1"),
]


@pytest.mark.parametrize("name, place, change, said", WRONG)
def test_wrong_arguments_are_refused_while_tracing_too(name, place, change, said):
    operator = getattr(torch.ops.fastfood, name).default
    with torch.no_grad():
        arguments = list(operator_calls("cpu")[name])
        arguments[place] = change(arguments[place])
        with pytest.raises(RuntimeError, match=said):
            operator(*arguments)
        with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=said):
            operator(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))


ALL_RESULTS = """
import hashlib, torch
from word_model import trained
from fastfood import hadamard_transform_KN, ops
torch.manual_seed(0)
def show(*tensors):
    print([hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest()[:16] for t in
    tensors])
for n in (1, 2, 4, 8, 12, 16, 32, 172, 2048, 20 << 8, 1 << 17, 1 << 20, 12 << 16):
    x = torch.randn(3, n, dtype=torch.float64)
    show(*(hadamard_transform_KN(x.to(t), 0.3, before=3) for t in (torch.float64, torch.float32,
    torch.float16, torch.bfloat16)))
show(hadamard_transform_KN(torch.randn(1 << 23)))
show(ops.philox_words(5, 1, 3, 1001), ops.normals(5, 1, 3, 1 << 17))
for L, blocks in ((256, 90), (2048, 90), (1 << 14, 5), (1 << 19, 1)):
    for t in (torch.float32, torch.float64):
        v, g = torch.randn(L, dtype=t), torch.randn(blocks * L + 5, dtype=t)
        show(ops.project_rows(v, 9, 77, blocks * L // 2), ops.project_rows_adjoint(g, L, 9, 77))
    for t in (torch.float16, torch.bfloat16):
        base, ends = g.to(t), torch.tensor([0, 3, len(g)])
        show(ops.perturb_(base.clone(), base, v.float(), ends, torch.randn(2), 9, 77))
        show(ops.project_rows_adjoint(base, L, 9, 77))
for weights in ("resident", "streamed"):
    show(*trained(weights=weights, words=2000))
"""


def start(isa, threads, caches):
    return subprocess.Popen(
        [sys.executable, "-c", ALL_RESULTS],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),  # for word_model
            "FASTFOOD_ISA": isa,
            "OMP_NUM_THREADS": threads,
            "FASTFOOD_CACHES": caches,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_instruction_set_thread_count_and_cache_gives_the_same_bits():
    flags = torch.backends.cpu.get_cpu_capability()
    known = ["avx512"] * ("AVX512" in flags) + ["avx2"] * ("AVX" in flags)
    # all at once, because importing torch takes most of their time
    plain = start("portable", "1", "32,1024,1000000")
    bad = [start("sse9", "1", "32,1024,32768"), start("portable", "1", "32,1024")]
    # with small caches long rows go through a buffer, of 2^7 rows or of 2^4 in several sweeps
    cases = zip(known or ["portable"], "31", ("16,256,1024", "16,32,512"), strict=False)
    others = {case: start(*case) for case in cases}
    want, error = plain.communicate()
    assert want.count("[") == 41, error
    for which, process in others.items():
        assert process.communicate()[0] == want, which
    errors = [process.communicate()[1] for process in bad]
    assert "FASTFOOD_ISA: wanted one of" in errors[0]
    assert "FASTFOOD_CACHES: wanted the kilobytes" in errors[1]


def test_import_needs_torch_alone_and_leaves_the_gpu_alone():
    code = (
        "import sys, fastfood, torch\n"
        "heavy = {'transformers', 'datasets', 'matplotlib', 'safetensors', 'optuna', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seed_is_64_bits():
    words = [ops.philox_words(seed, 0, 0, 1) for seed in (0, 1, 1 << 32, 1 << 63)]
    assert len({tuple(w.tolist()) for w in words}) == 4
    for seed in (-1, 1 << 64, 0.5, True, None):
        with pytest.raises(ValueError, match="seed: wanted an integer"):
            ops.signed(seed)
