"""Builds the native code with sanitizers, in folders of its own, and runs its tests with them:
AddressSanitizer and UndefinedBehaviorSanitizer (which sees misaligned packets) over the CPU kernels
of every instruction set, the emulated CUDA kernels and torch's operators, ThreadSanitizer over the
CPU kernels in threads. Before its tests, each sanitizer has to find a mistake that is made on
purpose. `make sanitize` runs it."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
OPTIONS = {
    # CPython does not free all its memory when it ends, which would be reported as leaks of ours;
    # `make soak` looks for leaks
    "ASAN_OPTIONS": "detect_leaks=0:strict_string_checks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # numpy and the interpreter are not compiled with ThreadSanitizer
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
}
MODULE = "import sys; sys.path.insert(0, 'tests/native'); from numpy_model import *\n"
# Two mistakes on purpose. OVERRUN writes 16 normals into an array of 15. RACE has each thread of a
# transform write 64 entries further on than it reads, where another thread reads.
OVERRUN = MODULE + (
    "x = np.empty(15, np.float32)\n"  # the name keeps the array alive during the call
    "native.normals(False, 1, 0, 0, 2, x.ctypes.data)"
)
RACE = MODULE + (
    "native.use_threads(4); x = np.zeros(4097 * 64, np.float32)\n"
    "native.transform(False, x.ctypes.data, x.ctypes.data + 256, F32, 4096, 64, 1.0)"
)
# Tests that are left out here, because the emulator is slow on their sizes, or because they start
# threads or processes; the suite runs them without the sanitizers.
SLOW = "more_shared_memory or many_short_rows or launch or thread or instruction_sets"
ISAS = ("portable", "avx2", "avx512")


def build(kind: str, sanitizers: str, *targets: str) -> Path:
    """A copy of the package and the tests with libraries under the sanitizers; returns its path."""
    torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    folder, tree = BUILD / kind, BUILD / kind / "tree"
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or "ninja"
    options = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "FASTFOOD_TORCH_DIR": torch,
        "FASTFOOD_TESTS": "ON",
        "FASTFOOD_SANITIZE": sanitizers,
    }
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    run([cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *definitions], stdout=subprocess.DEVNULL)
    run([cmake, "--build", folder, "--target", *targets])
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("lib", "*.so", "__pycache__")
    for name in ("csrc", "fastfood", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree)
    for library, place in (("libfastfood_cpu*", "fastfood/lib"), ("*tests*.so", "tests/native")):
        (tree / place).mkdir(exist_ok=True)
        for path in folder.glob(library):
            shutil.copy(path, tree / place)
    return tree


def run(command: list, **options) -> None:
    if subprocess.run(command, **options).returncode:
        sys.exit(f"{sys.argv[0]}: failed: {' '.join(map(str, command))}")


def environment(runtime: str, isa: str | None = None) -> dict:
    """Variables with which a process loads a sanitizer's runtime, and the C++ library that it
    wraps, before all others."""
    named = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in (runtime, "libstdc++.so.6")
    ]
    changes = {"LD_PRELOAD": " ".join(named), "PYTHONPATH": ".", "OMP_NUM_THREADS": "2", **OPTIONS}
    return {**os.environ, **changes} | ({"FASTFOOD_ISA": isa} if isa else {})


def expect_fault(code: str, said: str, **options) -> None:
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, **options)
    if done.returncode == 0 or said not in done.stderr:
        sys.exit(f"a mistake made on purpose was not found: wanted {said!r}, got\n{done.stderr}")
    print(f"found, as it should be: {said}", flush=True)


def has(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return isa == "portable" or {"avx2": "avx2", "avx512": "avx512bw"}[isa] in flags


def tests(tree: Path, runtime: str, isa: str | None, *arguments: str) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments]
    print(f"{runtime}, {isa or 'any'}: {' '.join(arguments)}", flush=True)
    run(command, cwd=tree, env=environment(runtime, isa))
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def address() -> None:
    kernels = "tests/native/test_emulator.py"
    tree = build("address", "address,undefined", "fastfood_native_tests", "fastfood_cpu")
    expect_fault(OVERRUN, "heap-buffer-overflow", cwd=tree, env=environment("libasan.so"))
    tests(tree, "libasan.so", None, kernels, "-k", f"not ({SLOW})")
    tests(tree, "libasan.so", None, "tests/native/test_places.py", "tests/native/test_tensor.py")
    for isa in filter(has, ISAS[:-1] if has(ISAS[-1]) else ISAS[:-2]):
        tests(tree, "libasan.so", isa, kernels, "-k", f"cpu and not ({SLOW})")
    files = ("tests/operators/test_random_numbers.py", "tests/operators/test_projection.py")
    tests(tree, "libasan.so", None, *files, "-k", "not compiled and not isometric")


def thread() -> None:
    tree = build("thread", "thread", "fastfood_native_tests")
    settings = {"cwd": tree, "env": environment("libtsan.so")}
    expect_fault(RACE, "data race", **settings)
    tests(tree, "libtsan.so", None, "tests/native/test_emulator.py", "-k", "threads")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["address", "thread"])
    for kind in parser.parse_args().kinds:
        {"address": address, "thread": thread}[kind]()
