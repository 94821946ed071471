"""The same bits whoever calls: many Python threads at once, forked workers, CUDA streams, and any
number of torch's own threads."""

import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from word_model import Words, trained

import fastfood
from fastfood import adapter
from fastfood.projection import Dense, Fastfood, Sparse
from fastfood.subspace import SubspaceConfig, get_subspace_model

THREADS, ROUNDS = 8, 2


def differentiated(f, *shape, device="cpu"):
    """f and its gradient at a point that the shape determines."""
    x = torch.linspace(-1, 1, shape[0] * shape[1], device=device).reshape(shape).requires_grad_()
    y = f(x)
    [g] = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), g


def jobs(device="cpu"):
    """The work of the threads; they share new projections, so that all threads make B and Pi."""
    projections = [
        Fastfood(300, 40_000, 1),
        Fastfood.one_block(300, 40_000, 2),
        Dense(9, 4000, 3),
        Sparse(9, 4000, 4),
    ]
    features = fastfood.FastfoodFeatures(20, 700, seed=5).to(device)
    made = [
        lambda: differentiated(
            lambda x: fastfood.hadamard_transform(x, 0.3, before=7), 70, 1024, device=device
        ),
        lambda: differentiated(fastfood.hadamard_transform_KN, 5, 28 << 4, device=device),
        lambda: differentiated(features, 6, 20, device=device),
        lambda: trained(device, "resident", 6),
        lambda: trained(device, "streamed", 7),
    ]
    for p in projections:
        made.append(lambda p=p: differentiated(p, 2, p.d, device=device))
        made.append(lambda p=p: differentiated(p.adjoint, 2, p.D, device=device))
    return made


def in_threads(work):
    """work(i) in each of THREADS threads, let loose together; the first error is raised."""
    gate, errors = threading.Barrier(THREADS), []

    def run(i):
        try:
            gate.wait(60)
            work(i)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def same(got, wanted):
    return all(map(torch.equal, got, wanted))


def test_many_python_threads_get_the_same_bits(device):
    wanted = [job() for job in jobs(device)]
    for _ in range(ROUNDS):
        shared = jobs(device)

        def work(i, shared=shared):
            for k in range(len(shared)):
                index = (k + i // 2) % len(shared)  # two threads at each job
                assert same(shared[index](), wanted[index]), index

        in_threads(work)


def test_steps_beside_threads_that_make_models():
    """A step asks which models live; the interpreter is told to change threads at every turn."""
    model = get_subspace_model(nn.Linear(4, 4), SubspaceConfig(d=5))
    optimizer = torch.optim.SGD(model._leaves(), 0.1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(i):
        for k in range(100):
            if i % 2:
                get_subspace_model(nn.Linear(2, 2), SubspaceConfig(d=4, seed=k))
            else:
                optimizer.step()

    try:
        in_threads(work)
    finally:
        sys.setswitchinterval(before)


def test_threads_save_into_one_folder(tmp_path):
    """The file is one of theirs, whole, and nothing is left beside it."""
    models = [get_subspace_model(Words(20), SubspaceConfig(d=50)) for _ in range(THREADS)]
    for i, model in enumerate(models):
        model.theta.data.fill_(i)

    def work(i):
        for _ in range(20):
            models[i].save_pretrained(tmp_path)

    in_threads(work)
    [path] = tmp_path.iterdir()
    theta = adapter.read(path).tensors["theta"]
    assert (theta == theta[0]).all() and theta[0] in range(THREADS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_many_cuda_streams_get_the_same_bits():
    shared = jobs("cuda")
    wanted = [job() for job in shared]
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(ROUNDS):
                for k in range(len(shared)):
                    index = (k + i) % len(shared)
                    got = shared[index]()
                    torch.cuda.current_stream().synchronize()
                    assert same(got, wanted[index]), index

    in_threads(work)


def large():
    """Results of all work that kernels divide among threads: a transform, a projection, an adjoint,
    and a training."""
    x = torch.linspace(-1, 1, 1 << 18)
    P = Fastfood(3000, 200_000, 8)
    return (
        fastfood.hadamard_transform(x.reshape(4, -1)),
        fastfood.hadamard_transform(x),
        P(x[:3000]),
        P.adjoint(x[:200_000].bfloat16()),
        *trained(words=2000),
        *trained(weights="streamed", words=2000),
    )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_torch_s_threads_gives_the_same_bits(threads):
    threads(1)
    wanted = large()
    for count in (2, 3, 8):
        threads(count)
        assert same(large(), wanted), count


class Transformed(Dataset):
    """Rows that the workers of a loader transform and project."""

    def __init__(self, projection):
        self.projection = projection

    def __len__(self):
        return 8

    def __getitem__(self, i):
        x = torch.linspace(-i, i, 1 << 18)
        return fastfood.hadamard_transform(x), self.projection(x[:3000])


def test_forked_workers_compute_after_the_parent_has(threads):
    threads(3)
    data = Transformed(Fastfood(3000, 200_000, 8))
    wanted = [data[i] for i in range(len(data))]  # threads of the parent have run
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        for got, want in zip(loader, wanted, strict=True):
            assert same(got, want)
