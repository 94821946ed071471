"""What `import fastfood` says where it cannot work, and what still works without the CUDA library.
Each test starts a process with copies of the libraries, of which one is broken.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
INSTALLED = Path(importlib.util.find_spec("fastfood").origin).parent
LIBRARY = INSTALLED / "lib" / "libfastfood_cpu.so"
OTHER = {"x86_64": (b"\xb7\x00", "aarch64")}.get(platform.machine(), (b"\x3e\x00", "x86_64"))

# Loads the libraries that `loads` says; as with torch, the reason of an error is its cause.
TORCH = """
import ctypes, types
__version__ = {version!r}
version = types.SimpleNamespace(cuda={cuda!r})
def load_library(path):
    try:
        {loads} in path and ctypes.CDLL(path)
    except Exception as error:
        raise OSError("Could not load this library: " + path) from error
ops = types.SimpleNamespace(load_library=load_library)
"""


def damaged(*, kind):
    """The bytes of the CPU library with one fault."""
    data = LIBRARY.read_bytes()
    return {
        "text": b"a page that a proxy sent instead of a library" * 9,
        "empty": b"",
        "cut off": data[: len(data) // 2],
        "another machine": data[:18] + OTHER[0] + data[20:],
        "no torch library": data,
        "symbol": data.replace(b"torch_library_impl\0", b"torch_library_imql\0"),
    }[kind]


FAULTS = {
    "text": "it is no library of a 64-bit Linux",
    "empty": "it is no library of a 64-bit Linux",
    "cut off": "it is cut off: wanted ",
    "another machine": f"it is made for {OTHER[1]}, this is {platform.machine()}",
    "no torch library": "libtorch_cpu.so: cannot open shared object file",
}


@pytest.fixture
def room(tmp_path):
    """A folder with the package without its libraries; tests may add a stand-in for torch."""
    (tmp_path / "fastfood" / "lib").mkdir(parents=True)
    for file in INSTALLED.glob("*.py"):
        (tmp_path / "fastfood" / file.name).symlink_to(file)
    return tmp_path


def fake_torch(room, version="2.10.0", cuda=None, loads="'fastfood'"):
    (room / "torch").mkdir()
    text = TORCH.format(version=version, cuda=cuda, loads=loads)
    (room / "torch" / "__init__.py").write_text(text)


def python(room, code, *options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True)


def refusal(room, code="import fastfood", *options):
    """The line that ends a failed import, after a check that there is only one error."""
    done = python(room, code, *options)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Error: ") == 1, done.stderr
    return done.stderr.splitlines()[-1]


def test_without_torch(room):
    want = "ImportError: torch: wanted 2.10 or newer, got none; run `pip install torch`"
    assert refusal(room, "import fastfood", "-S") == want


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu128"])
def test_with_a_torch_that_is_too_old(room, version):
    fake_torch(room, version)
    want = f"torch: wanted 2.10 or newer, got {version}; run `pip install --upgrade torch`"
    assert refusal(room) == f"ImportError: {want}"


def test_with_an_error_of_torchs_own(room):
    (room / "torch").mkdir()
    (room / "torch" / "__init__.py").write_text("import a_part_of_torch")
    assert "No module named 'a_part_of_torch'" in refusal(room)
    (room / "torch" / "__init__.py").unlink()
    assert "wanted 2.10 or newer, got a folder of" in refusal(room, "import fastfood", "-S")


@pytest.mark.parametrize("version", ["2.10.0a0+git1234", "2.11.0", "3.0.0"])
def test_where_the_cpu_library_was_not_built(room, version):
    fake_torch(room, version)
    line = refusal(room)
    assert f"libfastfood_cpu.so does not load with torch {version}: it is missing; " in line
    assert line.endswith("install a wheel made for it, or run `pip install .` in the sources")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_on_another_system(room, system):
    fake_torch(room)
    line = refusal(room, f"import sys; sys.platform = {system!r}; import fastfood")
    want = f"wanted Linux on x86_64 or aarch64, got {system} on {platform.machine()}; use a Linux"
    assert want in line


@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_cpu_library_is_refused(room, kind):
    fake_torch(room)
    (room / "fastfood/lib/libfastfood_cpu.so").write_bytes(damaged(kind=kind))
    line = refusal(room)
    assert line.startswith("ImportError: fastfood: ") and "does not load with torch 2.10.0" in line
    assert FAULTS[kind] in line


REASONS = """
import sys, warnings
sys.path.insert(0, "fastfood")
with warnings.catch_warnings(record=True) as caught:
    import loading
assert not loading.why_no_kernels("cpu")
print(len(caught), *[w.message for w in caught], loading.why_no_kernels("cuda"), sep="|")
"""


@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_cuda_library_is_named_once(room, kind):
    fake_torch(room, cuda="13.0", loads="'cuda.so'")
    shutil.copy(LIBRARY, room / "fastfood/lib")
    (room / "fastfood/lib/libfastfood_cuda.so").write_bytes(damaged(kind=kind))
    count, message, reason = python(room, REASONS).stdout.split("|")
    assert count == "1" and message.startswith("fastfood works on the CPU alone: ")
    assert "libfastfood_cuda.so does not load with torch 2.10.0: " in reason
    assert FAULTS[kind] in message and FAULTS[kind] in reason


@pytest.mark.parametrize(
    "cuda, want",
    [(None, "torch 2.10.0 is built without CUDA"), ("13.0", "this fastfood is built without CUDA")],
)
def test_without_cuda_nobody_is_warned(room, cuda, want):
    fake_torch(room, cuda=cuda, loads="'nothing'")
    shutil.copy(LIBRARY, room / "fastfood/lib")
    count, reason = python(room, REASONS).stdout.split("|")
    assert count == "0" and reason.startswith(want)


WITHOUT_CUDA = """
import warnings, torch
from torch._subclasses.fake_tensor import FakeTensorMode
torch.version.cuda = "13.0"
with warnings.catch_warnings(record=True) as caught:
    import fastfood
[warning] = caught
assert "undefined symbol: torch_library_imql" in str(warning.message), warning
from fastfood import ops
assert warning.filename == "<string>" and ops.has_kernels("cpu") and not ops.has_kernels("cuda")
x = torch.randn(3, 256)
torch.testing.assert_close(fastfood.hadamard_transform(x, 256**-1) @ torch.ones(256), x[:, 0])
assert fastfood.Fastfood(d=20, D=300, seed=0)(x[0, :20]).shape == (300,)
for name, arguments in {
    "project_rows": (1, 0, 5), "project_rows_adjoint": (256, 1, 0), "philox_words": (1, 0, 0, 4),
    "project_rows_out": (x[0], 1, 0), "normals": (1, 0, 0, 4),
}.items():
    try:
        getattr(torch.ops.fastfood, name)(x[0].to_sparse(), *arguments)
    except NotImplementedError as error:
        want = name + ": wanted dense tensors on a device with kernels, got torch.sparse_coo on cpu"
        assert str(error) == want, error
    else:
        raise AssertionError(name)
with FakeTensorMode():
    there = torch.empty(256, device="cuda")
try:
    ops._refuse("perturb_")(there)
except NotImplementedError as error:
    print(error)
"""


def test_the_cpu_works_without_the_cuda_library(room):
    """That here is one that a newer torch was built for: it wants a symbol that this one lacks."""
    shutil.copy(LIBRARY, room / "fastfood/lib")
    (room / "fastfood/lib/libfastfood_cuda.so").write_bytes(damaged(kind="symbol"))
    done = python(room, WITHOUT_CUDA)
    want = "perturb_: wanted dense tensors on a device with kernels, got torch.strided on cuda; "
    assert done.stdout.startswith(want), done.stderr
    assert done.stdout.strip().endswith("undefined symbol: torch_library_imql")


FIRST_LAUNCH = """
#include <cstdio>
#include "cuda/launch.cuh"
__global__ void nothing(int) {}
using namespace fastfood::cuda;
int main() { std::puts(Launch<nothing>::run("nothing", {1, 32, 0, {nullptr, 0}}, 1)); }
"""
OLD_DRIVER = "int cuDriverGetVersion(int* number) { *number = 11040; return 0; }"


@pytest.mark.skipif(not SOURCES.exists(), reason="needs the sources")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_a_driver_that_is_too_old_is_named(tmp_path):
    """By the first launch, which finds a stand-in for the driver's library."""
    (tmp_path / "launch.cu").write_text(FIRST_LAUNCH)
    (tmp_path / "driver.c").write_text(OLD_DRIVER)
    nvcc = ["nvcc", "-std=c++17", "-cudart=static", f"-I{SOURCES}", "launch.cu", "-o", "launch"]
    subprocess.run(nvcc, cwd=tmp_path, check=True)
    driver = ["cc", "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
    subprocess.run(driver, cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([tmp_path / "launch"], env=environment, capture_output=True, text=True)
    assert "nothing: CUDA driver version is insufficient for CUDA runtime" in done.stdout
    assert re.search(r": wanted a driver for CUDA 1\d\.\d, got one for CUDA 11\.4; ", done.stdout)
