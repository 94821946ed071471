"""Drives the native build of CMakeLists.txt and packs its libraries into one py3-none wheel.

Environment: FASTFOOD_CUDA=1 insists on the CUDA library, =0 leaves it out, unset builds it where
nvcc is; FASTFOOD_CUDA_ARCHS replaces the GPU architectures; FASTFOOD_TESTS=1 also builds the test
module of tests/native; FASTFOOD_TORCH_DIR names the torch package where it is not found by itself.
"""

import importlib.util
import os
import re
import shutil
import site
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


def torch_places():
    """Folders that may hold the torch package, which is not imported."""
    if "FASTFOOD_TORCH_DIR" in os.environ:
        return [Path(os.environ["FASTFOOD_TORCH_DIR"])]
    spec = importlib.util.find_spec("torch")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    # An isolated build sees nothing on sys.path, but the interpreter knows where it installs to.
    sites = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
    ]
    for prefix in filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX"))):
        sites += sorted(Path(prefix).glob("lib/python3*/site-packages"))
    return list(dict.fromkeys(places + [Path(s) / "torch" for s in sites]))


def find_torch():
    places = torch_places()
    for place in places:
        if not (place / "version.py").is_file():
            continue
        version = re.search(r"__version__ = '(\d+)\.(\d+)", (place / "version.py").read_text())
        if version and tuple(map(int, version.groups())) >= OLDEST_TORCH:
            return place
    raise SetupError(
        "fastfood is built against the installed torch, and there is no torch >= 2.10 in "
        + ", ".join(str(p.parent) for p in places)
        + ": install it first, or name its folder in FASTFOOD_TORCH_DIR"
    )


def find_nvcc():
    """The path of nvcc or None, after the wish in FASTFOOD_CUDA; the decision is printed."""
    wish = os.environ.get("FASTFOOD_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SetupError(f"FASTFOOD_CUDA: wanted 0, 1 or nothing, got {wish!r}")
    if wish == "0":
        print("fastfood: CUDA library left out (FASTFOOD_CUDA=0)")
        return None
    homes = [Path(os.environ[k]) for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    on_path = shutil.which("nvcc")
    places = (
        [h / "bin/nvcc" for h in homes]
        + ([Path(on_path)] if on_path else [])
        + [TOOLKIT / "bin/nvcc"]
    )
    nvcc = next((p for p in places if os.access(p, os.X_OK)), None)
    if nvcc:
        print(f"fastfood: CUDA library built with {nvcc}")
    elif wish == "1":
        raise SetupError(
            f"FASTFOOD_CUDA=1, but nvcc is neither in CUDA_HOME nor on PATH nor in {TOOLKIT}/bin"
        )
    else:
        print(
            "fastfood: CUDA library left out (no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda)"
        )
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
    folders = ("csrc", "tests")
    kinds = {".cpp", ".h", ".cu", ".cuh", ".py", ".json", ".safetensors"}
    files = [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in kinds]
    return ["CMakeLists.txt", *(str(p.relative_to(ROOT)) for p in files)]


class BuildNative(build_ext):
    """Runs CMake, and installs into the sources when in place, else into the wheel's tree."""

    def run(self):
        torch, nvcc, cmake = find_torch(), find_nvcc(), tool("cmake")
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
            if "FASTFOOD_CUDA_ARCHS" in os.environ:
                options["FASTFOOD_CUDA_ARCHS"] = os.environ["FASTFOOD_CUDA_ARCHS"]
        definitions = [f"-D{key}={value}" for key, value in options.items()]
        run(cmake, "-G", "Ninja", "-S", ROOT, "-B", BUILD, *definitions)
        run(cmake, "--build", BUILD)
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        run(cmake, "--install", BUILD, "--prefix", target, "--component", "libraries")
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
    setup(
        ext_modules=[Extension("fastfood.lib", sources=[])],
        cmdclass={"build": CleanBuild, "build_ext": BuildNative, "bdist_wheel": OneWheel},
    )
