"""Drives the native build of CMakeLists.txt and packs its libraries into one py3-none wheel.

Environment: FASTFOOD_CUDA=1 insists on the CUDA library, =0 leaves it out, unset builds it where
nvcc is; FASTFOOD_CUDA_ARCHS replaces the GPU architectures; FASTFOOD_LABEL=cu13 names the version
0.1.0+cu13; FASTFOOD_TESTS=1 also builds the test module and the programs of tests/native;
FASTFOOD_TORCH_DIR names the folder of the torch package, if setup.py does not find it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # pyproject.toml binds isolated builds alone
    sys.exit(f"setuptools: wanted version 77 or newer, got {setuptools.__version__}: upgrade it")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cmake"  # stays, so that a second build compiles only changed files
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
            f"platform: wanted linux (x86-64 or aarch64) to build fastfood, got {sys.platform}"
        )
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, names)):
        raise SetupError(
            f"compiler: wanted {' or '.join(names)} on PATH, with C++17, got none: install g++, or "
            "name a compiler in CXX"
        )


def pythons():
    """Interpreters that may have torch, the likeliest first.

    This interpreter has it, unless a tool such as `build` runs the build in an environment of its
    own; then the active environment may have it.
    """
    prefixes = filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")))
    candidates = [Path(sys.executable), *(Path(prefix, "bin/python") for prefix in prefixes)]
    return [python for python in dict.fromkeys(candidates) if os.access(python, os.X_OK)]


def torch_folders(python):
    """Folders of the torch package that `python` finds, with and without pip's isolation."""
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")
    for hidden in (False, True):
        environment = {k: v for k, v in os.environ.items() if not (hidden and k in isolation)}
        command = [str(python), "-c", FIND_TORCH]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
        yield from map(Path, done.stdout.splitlines())


def torch_version(folder):
    """(major, minor) of the torch package in a folder, read without importing it, or None."""
    file = folder / "version.py"
    text = file.read_text() if file.is_file() else ""
    version = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    return tuple(map(int, version.groups())) if version else None


def find_torch():
    named = os.environ.get("FASTFOOD_TORCH_DIR")
    old = []
    for folder in [Path(named)] if named else (t for p in pythons() for t in torch_folders(p)):
        version = torch_version(folder)
        if version and version >= OLDEST_TORCH:
            return folder
        if version:
            old.append(f"{folder} is torch {version[0]}.{version[1]}")
    raise SetupError(
        "torch: wanted an installed torch >= 2.10 to build against, got "
        + (", ".join(old) or "none in " + (named or " or ".join(map(str, pythons()))))
        + ": install it first, or name its folder in FASTFOOD_TORCH_DIR"
    )


def pip_nvccs(torch):
    """Each nvcc of a package nvidia-cuda-nvcc beside torch that has the headers that it needs."""
    sites = [torch.parent, Path(sysconfig.get_path("purelib"))]
    headers = ("cuda_runtime.h", "crt/host_config.h", "cccl/nv/target")
    for home in (h for s in sites for h in sorted(s.glob("nvidia/cu[0-9]*"), reverse=True)):
        if all((home / "include" / header).is_file() for header in headers):
            yield home / "bin/nvcc"


def find_nvcc(torch):
    """The path of nvcc, or None to leave out CUDA, as FASTFOOD_CUDA says; prints the decision."""
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
        raise SetupError(f"FASTFOOD_CUDA: wanted nvcc for 1, got none, because {nowhere}")
    else:
        print(f"fastfood: CUDA library left out, {nowhere}")
    return nvcc


def tool(name):
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if not path:
        raise SetupError(
            f"{name}: wanted it on PATH to build fastfood, got none: pip install {name}"
        )
    return path


def run(*command):
    print("+", *command, flush=True)
    if subprocess.run([str(part) for part in command]).returncode:
        raise SetupError("the native build failed; the reason is in the lines above")


def source_files():
    """The files that a build from the sdist needs beside the Python packages, relative to ROOT."""
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
                library.unlink()  # an earlier build with CUDA has left it
        if tests:
            run(cmake, "--install", BUILD, "--prefix", ROOT, "--component", "tests")

    def get_source_files(self):
        return source_files()

    def get_outputs(self):
        return [str(p) for p in sorted(Path(self.build_lib, "fastfood", "lib").glob("*.so"))]

    def get_output_mapping(self):
        return {}


class CleanBuild(build):
    """Starts from an empty tree, so that no file of an earlier build gets into the wheel."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class OneWheel(bdist_wheel):
    """Tags the wheel for every Python 3, because its libraries use nothing of CPython."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    label = os.environ.get("FASTFOOD_LABEL")
    setup(
        options={"egg_info": {"tag_build": f"+{label}"}} if label else {},
        ext_modules=[Extension("fastfood.lib", sources=[])],
        cmdclass={"build": CleanBuild, "build_ext": BuildNative, "bdist_wheel": OneWheel},
    )
