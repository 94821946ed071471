"""The plain kernel of tests/native/plain.cuh, to which a GPU's results are compared as well: on the
emulator, bit for bit against the numpy model."""

import pytest
from native_calls import Array, diagonals_for, garbage, random
from numpy_model import F16, F32, F64, NAMES, STORAGE, arithmetic, native, transform

SHARED = 48 * 1024  # bytes that a block has without asking


def plain(x, kind, n, memory, diagonals=(), in_place=False):
    """Rows of n by the plain kernel, in shared memory or in an array of its own."""
    source, factors = Array(x), [Array(diagonal) for diagonal in diagonals]
    out = source if in_place else garbage(x.size, STORAGE[kind], 1)
    work = garbage(x.size, arithmetic(kind)) if memory == "global" else None
    addresses = [a.address if a else 0 for a in (source, out, work)]
    addresses_of_factors = [a.address for a in factors] or [0, 0]
    native.plain_transform(*addresses, kind, x.size // n, n, 0.3, *addresses_of_factors)
    if work:
        work.take()
    return out.take()


@pytest.mark.parametrize("memory", ["shared", "global"])
@pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("log_n", [0, 1, 2, 5, 7, 8, 12, 13])
@pytest.mark.parametrize("backwards", [False, True])
def test_it_equals_the_model(log_n, kind, memory, backwards):
    n = 2**log_n
    if memory == "shared" and n * arithmetic(kind)().nbytes > SHARED:
        pytest.skip("more than a block's shared memory")
    native.configure(3, 2**15, 3, SHARED, backwards)
    x, diagonals = random(3 * n, kind), diagonals_for(n, kind)
    wanted = transform(x, kind, n, 0.3)
    assert (plain(x, kind, n, memory) == wanted).all()
    wanted = transform(x, kind, n, 0.3, diagonals)
    assert (plain(x, kind, n, memory, diagonals, in_place=True) == wanted).all()


@pytest.mark.parametrize("kind", [F32, F64, F16])
def test_more_than_a_block_may_have_is_refused(kind):
    with pytest.raises(RuntimeError, match="invalid configuration"):
        plain(random(1 << 14, kind), kind, 1 << 14, "shared")
