"""The native build: what setup.py finds, what the sdist holds, and what the libraries ask of the
process that loads them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from setuptools import Distribution
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = sorted((ROOT / "fastfood" / "lib").glob("*.so"))
EACH_LIBRARY = pytest.mark.parametrize("library", LIBRARIES, ids=[p.name for p in LIBRARIES])


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, on a machine without nvcc."""
    spec = importlib.util.spec_from_file_location("fastfood_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOOLKIT", tmp_path / "no toolkit")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTFOOD_CUDA", "FASTFOOD_TORCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    return module


def fake_nvcc(folder):
    folder.mkdir(parents=True)
    (folder / "nvcc").touch(0o755)
    return folder / "nvcc"


def fake_torch(folder, version):
    folder.mkdir(parents=True)
    (folder / "version.py").write_text(f"__version__ = '{version}'\n")
    return folder


def test_nvcc_is_used_where_it_exists(build, monkeypatch, tmp_path, capsys):
    assert build.find_nvcc() is None
    assert "left out" in capsys.readouterr().out
    monkeypatch.setattr(build, "TOOLKIT", tmp_path / "toolkit")
    nvcc = fake_nvcc(tmp_path / "toolkit" / "bin")
    assert build.find_nvcc() == nvcc
    assert str(nvcc) in capsys.readouterr().out
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_nvcc() == nvcc
    assert build.find_nvcc() != fake_nvcc(tmp_path / "home" / "bin") == build.find_nvcc()
    monkeypatch.setenv("FASTFOOD_CUDA", "0")
    assert build.find_nvcc() is None


def test_cuda_can_be_insisted_on(build, monkeypatch):
    monkeypatch.setenv("FASTFOOD_CUDA", "1")
    with pytest.raises(SetupError, match="FASTFOOD_CUDA=1, but nvcc is neither in CUDA_HOME"):
        build.find_nvcc()
    monkeypatch.setenv("FASTFOOD_CUDA", "yes")
    with pytest.raises(SetupError, match="FASTFOOD_CUDA: wanted 0, 1 or nothing, got 'yes'"):
        build.find_nvcc()


def test_torch_is_found_without_importing_it(build, monkeypatch, tmp_path):
    old, new = fake_torch(tmp_path / "old", "2.9.1"), fake_torch(tmp_path / "new", "2.10.0a0+git")
    monkeypatch.setattr(build, "torch_places", lambda: [tmp_path / "none", old, new])
    assert build.find_torch() == new
    monkeypatch.setattr(build, "torch_places", lambda: [tmp_path / "none", old])
    with pytest.raises(SetupError, match="there is no torch >= 2.10 in "):
        build.find_torch()


def test_torch_is_found_from_an_isolated_build(build, monkeypatch):
    """There sys.path hides the environment's packages."""
    installed = Path(build.find_torch())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("VIRTUAL_ENV", str(installed.parents[3]))
    assert installed in build.torch_places()


def test_a_build_without_torch_fails_with_one_line(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "FASTFOOD_TORCH_DIR": str(tmp_path / "torch")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert line.startswith("error: fastfood is built against the installed torch, and")
    assert str(tmp_path) in line


def test_one_wheel_for_every_python(build):
    wheel = build.OneWheel(Distribution({"name": "x", "ext_modules": [build.Extension("x", [])]}))
    wheel.finalize_options()
    assert wheel.get_tag()[:2] == ("py3", "none")
    assert wheel.get_tag()[2] != "any"


def test_sdist_holds_all_sources(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist"]
    subprocess.run([*command, "--dist-dir", tmp_path], cwd=ROOT, check=True, capture_output=True)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    wanted = [ROOT / n for n in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md")]
    for folder in ("csrc", "fastfood", "tests"):
        wanted += [p for p in (ROOT / folder).rglob("*.*") if p.suffix not in (".so", ".pyc")]
    assert not {str(p.relative_to(ROOT)) for p in wanted if p.is_file()} - held
    assert not [name for name in held if name.endswith(".so")]


def test_there_is_a_library():
    assert LIBRARIES


@EACH_LIBRARY
def test_a_library_needs_torchs_stable_abi_alone(library):
    with library.open("rb") as file:
        elf = ELFFile(file)
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
        dynamic = list(elf.get_section_by_name(".dynamic").iter_tags())
    undefined = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
    torch = {name for name in undefined if name.startswith(("aoti_torch_", "torch_"))}
    assert torch
    foreign = ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10", "cuda", "cu")
    assert not [name for name in undefined - torch if name.startswith(foreign)]
    assert not [s.name for s in symbols if s.name and s["st_shndx"] != "SHN_UNDEF"]
    needed = {t.needed.split(".so")[0] for t in dynamic if t.entry.d_tag == "DT_NEEDED"}
    system = {"libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64", "librt", "libdl"}
    assert needed - system - {"libpthread"} <= {"libtorch_cpu", "libtorch_cuda"}
    assert ("libtorch_cuda" in needed) == (library.name == "libfastfood_cuda.so")
    assert not [t for t in dynamic if t.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]


@pytest.mark.skipif(not (ROOT / "fastfood/lib/libfastfood_cuda.so").exists(), reason="not built")
@pytest.mark.skipif(not shutil.which("c++"), reason="no compiler for the stand-in")
def test_the_cuda_library_registers_its_operators(tmp_path):
    """Without CUDA, beside a stand-in for the library that a torch with CUDA has loaded."""
    stub = tmp_path / "libtorch_cuda.so"
    source = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }'
    compile_stub = ["c++", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-x", "c++", "-"]
    subprocess.run([*compile_stub, "-o", stub], input=source, text=True, check=True)
    program = f"""
import ctypes, torch
if not torch.version.cuda:
    ctypes.CDLL({str(stub)!r})
torch.ops.load_library({str(ROOT / "fastfood/lib/libfastfood_cpu.so")!r})
torch.ops.load_library({str(ROOT / "fastfood/lib/libfastfood_cuda.so")!r})
for name in ("hadamard_transform", "philox_words", "normals", "project_rows",
             "project_rows_adjoint", "perturb_"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastfood::" + name, "CUDA"), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)
