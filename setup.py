"""Drives the native build of CMakeLists.txt and packs its libraries into one py3-none wheel.

Environment: FASTFOOD_CUDA=1 insists on the CUDA library, =0 leaves it out, unset builds it where
nvcc is; FASTFOOD_CUDA_ARCHS replaces the GPU architectures; FASTFOOD_LABEL=cu13 names the version
0.1.0+cu13; FASTFOOD_TESTS=1 also builds the test module and the programs of tests/native;
FASTFOOD_TORCH_DIR names the torch package where it is not found by itself.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # as pyproject.toml says to an isolated build
    sys.exit(f"fastfood is built with setuptools >= 77, got {setuptools.__version__}: upgrade it")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cmake"  # kept: a second build compiles what has changed
TOOLKIT = Path("/usr/local/cuda")
OLDEST_TORCH = (2, 10)
FIND_TORCH = """
import importlib.util
spec = importlib.util.find_spec("torch")
print(*(spec.submodule_search_locations or [] if spec else []), sep="\\n")
"""


def check_platform():
    if sys.platform != "linux":
        raise SetupError(
            f"fastfood is built on Linux (x86-64 or aarch64), wanted linux, got {sys.platform}"
        )
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, names)):
        raise SetupError(
            f"fastfood is built with a C++17 compiler, and there is no {' or '.join(names)} on "
            "PATH: install g++, or name a compiler in CXX"
        )


def ancestors():
    """The Pythons that started this one, the nearest first; of this user's alone."""
    pid = os.getppid()
    while pid > 1:
        process = Path("/proc", str(pid))
        try:
            name = Path((process / "cmdline").read_bytes().split(b"\0")[0].decode())
            if name.name.startswith("python") and process.stat().st_uid == os.getuid():
                bare = len(name.parts) == 1  # found on a PATH that has changed since
                yield (process / "exe").readlink() if bare else (process / "cwd").readlink() / name
            pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # of another user, or gone
            return


def pythons():
    """Interpreters that may see a torch that an isolated build hides, the likeliest first."""
    prefixes = filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")))
    found = [Path(sys.executable), *(Path(p, "bin/python") for p in prefixes), *ancestors()]
    return [python for python in dict.fromkeys(found) if os.access(python, os.X_OK)]


def torch_places(python):
    """Folders of the torch package as `python` sees them outside of pip's isolation."""
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")
    for hidden in (False, True):
        environment = {k: v for k, v in os.environ.items() if not (hidden and k in isolation)}
        command = [str(python), "-c", FIND_TORCH]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
        yield from map(Path, done.stdout.splitlines())


def torch_version(place):
    """(major, minor) of the torch package in a folder, which is not imported; None without one."""
    file = place / "version.py"
    text = file.read_text() if file.is_file() else ""
    found = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


def find_torch():
    named = os.environ.get("FASTFOOD_TORCH_DIR")
    old = []
    for place in [Path(named)] if named else (t for p in pythons() for t in torch_places(p)):
        version = torch_version(place)
        if version and version >= OLDEST_TORCH:
            return place
        if version:
            old.append(f"{place} is torch {version[0]}.{version[1]}")
    raise SetupError(
        "fastfood is built against the installed torch, wanted torch >= 2.10, got "
        + (", ".join(old) or "none in " + (named or " or ".join(map(str, pythons()))))
        + ": install it first, or name its folder in FASTFOOD_TORCH_DIR"
    )


def pip_nvccs(torch):
    """nvcc of the package nvidia-cuda-nvcc beside torch, where its headers are installed too."""
    sites = [torch.parent, Path(sysconfig.get_path("purelib"))]
    headers = ("cuda_runtime.h", "crt/host_config.h", "cccl/nv/target")
    for home in (h for s in sites for h in sorted(s.glob("nvidia/cu[0-9]*"), reverse=True)):
        if all((home / "include" / header).is_file() for header in headers):
            yield home / "bin/nvcc"


def find_nvcc(torch):
    """The path of nvcc or None, after the wish in FASTFOOD_CUDA; the decision is printed."""
    wish = os.environ.get("FASTFOOD_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SetupError(f"FASTFOOD_CUDA: wanted 0, 1 or nothing, got {wish!r}")
    if wish == "0":
        print("fastfood: CUDA library left out (FASTFOOD_CUDA=0)")
        return None
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    places = [Path(home, "bin/nvcc") for home in homes]
    places += [*pip_nvccs(torch), *map(Path, filter(None, [shutil.which("nvcc")]))]
    places += [TOOLKIT / "bin/nvcc"]
    nowhere = f"nvcc is neither in CUDA_HOME nor beside torch nor on PATH nor in {TOOLKIT}/bin"
    nvcc = next((p for p in places if os.access(p, os.X_OK)), None)
    if nvcc:
        print(f"fastfood: CUDA library built with {nvcc}")
    elif wish == "1":
        raise SetupError(f"FASTFOOD_CUDA=1, but {nowhere}")
    else:
        print(f"fastfood: CUDA library left out, {nowhere}")
    return nvcc


def tool(name):
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if not path:
        raise SetupError(f"fastfood is built with {name}, which is not on PATH: pip install {name}")
    return path


def run(*command):
    print("+", *command, flush=True)
    if subprocess.run([str(part) for part in command]).returncode:
        raise SetupError("the native build failed; the reason is in the lines above")


def source_files():
    """What a build from the sdist needs beside the Python packages, relative to the root."""
    folders = ("csrc", "tests", ".ci")
    kinds = {".cpp", ".h", ".cu", ".cuh", ".py", ".json", ".safetensors"}
    files = [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in kinds]
    return ["CMakeLists.txt", *(str(p.relative_to(ROOT)) for p in files)]


class BuildNative(build_ext):
    """Runs CMake, and installs into the sources when in place, else into the wheel's tree."""

    def run(self):
        check_platform()
        torch, cmake = find_torch(), tool("cmake")
        nvcc = find_nvcc(torch)
        tests = os.environ.get("FASTFOOD_TESTS", "0") == "1"
        options = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "FASTFOOD_TORCH_DIR": torch,
            "FASTFOOD_CUDA": "ON" if nvcc else "OFF",
            "FASTFOOD_TESTS": "ON" if tests else "OFF",
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["FASTFOOD_CUDA_ARCHS"] = os.environ.get(
                "FASTFOOD_CUDA_ARCHS", "editable" if self.inplace else "wheel"
            )
        definitions = [f"-D{key}={value}" for key, value in options.items()]
        run(cmake, "-G", "Ninja", "-S", ROOT, "-B", BUILD, *definitions)
        run(cmake, "--build", BUILD)
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        strip = [] if self.inplace else ["--strip"]
        run(cmake, "--install", BUILD, "--prefix", target, "--component", "libraries", *strip)
        installed = (BUILD / "install_manifest_libraries.txt").read_text().splitlines()
        for library in (target / "fastfood" / "lib").glob("*.so"):
            if str(library) not in installed:
                library.unlink()  # of an earlier build, with CUDA
        if tests:
            run(cmake, "--install", BUILD, "--prefix", ROOT, "--component", "tests")

    def get_source_files(self):
        return source_files()

    def get_outputs(self):
        return [str(p) for p in sorted(Path(self.build_lib, "fastfood", "lib").glob("*.so"))]

    def get_output_mapping(self):
        return {}


class CleanBuild(build):
    """Starts from an empty tree: the wheel holds no module or library that has gone since."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class OneWheel(bdist_wheel):
    """The libraries use torch's stable ABI and nothing of CPython: one wheel for every Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    label = os.environ.get("FASTFOOD_LABEL")
    setup(
        options={"egg_info": {"tag_build": f"+{label}"}} if label else {},
        ext_modules=[Extension("fastfood.lib", sources=[])],
        cmdclass={"build": CleanBuild, "build_ext": BuildNative, "bdist_wheel": OneWheel},
    )
