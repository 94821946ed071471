"""The native build: what setup.py finds, what the sdist holds, and what the libraries ask of the
process that loads them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = sorted((ROOT / "fastfood" / "lib").glob("*.so"))
EACH_LIBRARY = pytest.mark.parametrize("library", LIBRARIES, ids=[p.name for p in LIBRARIES])


def load(path):
    """A Python file outside of any package, as a module."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = load(ROOT / ".ci" / "check_wheel.py")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, on a machine without nvcc."""
    module = load(ROOT / "setup.py")
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
    torch = tmp_path / "site-packages" / "torch"
    assert build.find_nvcc(torch) is None
    assert "left out" in capsys.readouterr().out
    monkeypatch.setattr(build, "TOOLKIT", tmp_path / "toolkit")
    nvcc = fake_nvcc(tmp_path / "toolkit" / "bin")
    assert build.find_nvcc(torch) == nvcc
    assert str(nvcc) in capsys.readouterr().out
    on_path = fake_nvcc(tmp_path / "path")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert build.find_nvcc(torch) == on_path
    pip = fake_nvcc(torch.parent / "nvidia" / "cu13" / "bin")
    assert build.find_nvcc(torch) == on_path  # its headers are missing
    for header in ("cuda_runtime.h", "crt/host_config.h", "cccl/nv/target"):
        file = torch.parent / "nvidia" / "cu13" / "include" / header
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert build.find_nvcc(torch) == pip
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_nvcc(torch) == pip
    assert build.find_nvcc(torch) != fake_nvcc(tmp_path / "home/bin") == build.find_nvcc(torch)
    monkeypatch.setenv("FASTFOOD_CUDA", "0")
    assert build.find_nvcc(torch) is None


def test_cuda_can_be_insisted_on(build, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTFOOD_CUDA", "1")
    with pytest.raises(SetupError, match="FASTFOOD_CUDA: wanted nvcc for 1, got none, because"):
        build.find_nvcc(tmp_path / "torch")
    monkeypatch.setenv("FASTFOOD_CUDA", "yes")
    with pytest.raises(SetupError, match="FASTFOOD_CUDA: wanted 0, 1 or nothing, got 'yes'"):
        build.find_nvcc(tmp_path / "torch")


def test_a_machine_that_cannot_build_is_told(build, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match="compiler: wanted c[+][+] or g[+][+] .*, got none"):
        build.check_platform()
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="compiler: wanted .*nowhere on PATH, .*: install g"):
        build.check_platform()
    monkeypatch.setenv("CXX", f"{sys.executable} -std=c++17")
    build.check_platform()
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        with pytest.raises(SetupError, match=f"platform: wanted linux .*, got {platform}"):
            build.check_platform()


def test_torch_is_found_without_importing_it(build, monkeypatch, tmp_path):
    old, new = fake_torch(tmp_path / "old", "2.9.1"), fake_torch(tmp_path / "new", "2.10.0a0+git")
    monkeypatch.setattr(build, "pythons", lambda: ["python"])
    monkeypatch.setattr(build, "torch_folders", lambda python: [tmp_path / "none", old, new])
    assert build.find_torch() == new
    monkeypatch.setattr(build, "torch_folders", lambda python: [tmp_path / "none", old])
    with pytest.raises(SetupError, match="^torch: wanted .*got .*old is torch 2.9: install"):
        build.find_torch()
    monkeypatch.setattr(build, "torch_folders", lambda python: [])
    with pytest.raises(SetupError, match="^torch: wanted .* >= 2.10 .*got none in python: install"):
        build.find_torch()


def isolated_environment(folder):
    """A Python without packages, one with nothing but a torch, and the folder of that torch."""
    for name in ("bare", "outer"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / name], check=True)
    [site] = (folder / "outer/lib").glob("python3*/site-packages")
    torch = fake_torch(site / "torch", "2.10.0")
    (torch / "__init__.py").write_text("raise SystemExit('imported')")
    return folder / "bare/bin/python", folder / "outer/bin/python", torch


def test_torch_is_found_from_an_isolated_build(tmp_path):
    """Through the active environment, or in this Python's packages, which pip's isolation hides."""
    bare, outer, torch = isolated_environment(tmp_path)
    find = "import importlib.util as u, sys; sys.path.append(sys.argv[2]);"
    find += "s = u.spec_from_file_location('setup', sys.argv[1]); m = u.module_from_spec(s);"
    find += "s.loader.exec_module(m); print(m.find_torch())"
    setuptools = Path(importlib.util.find_spec("setuptools").origin).parent.parent
    child = [str(bare), "-c", find, str(ROOT / "setup.py"), str(setuptools)]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FASTFOOD_TORCH_DIR")}
    clean.pop("VIRTUAL_ENV", None)
    for command, environment in (
        (child, {**clean, "VIRTUAL_ENV": str(tmp_path / "outer")}),
        ([str(outer), *child[1:]], {**clean, "PYTHONPATH": str(tmp_path / "overlay")}),
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(torch)


def test_a_build_without_torch_fails_with_one_line(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "FASTFOOD_TORCH_DIR": str(tmp_path / "torch")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert line.startswith("error: torch: wanted an installed torch >= 2.10")
    assert str(tmp_path) in line


def test_one_wheel_for_every_python(build):
    wheel = build.OneWheel(Distribution({"name": "x", "ext_modules": [build.Extension("x", [])]}))
    wheel.finalize_options()
    assert wheel.get_tag()[:2] == ("py3", "none")
    assert wheel.get_tag()[2] != "any"


def test_a_label_names_the_variant(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    environment = {**os.environ, "FASTFOOD_LABEL": "cu13"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    [metadata] = tmp_path.glob("*.egg-info/PKG-INFO")
    assert "\nVersion: 0.1.0+cu13\n" in metadata.read_text()


def test_sdist_holds_all_sources(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist"]
    subprocess.run([*command, "--dist-dir", tmp_path], cwd=ROOT, check=True, capture_output=True)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    wanted = [ROOT / n for n in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md")]
    wanted.append(Path(CHECK.__file__))  # the tests use it
    for folder in ("csrc", "fastfood", "tests"):
        wanted += [p for p in (ROOT / folder).rglob("*.*") if p.suffix not in (".so", ".pyc")]
    assert not {str(p.relative_to(ROOT)) for p in wanted if p.is_file()} - held
    assert not [name for name in held if name.endswith(".so")]


def test_a_build_holds_the_files_that_the_package_reads(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "build_py"]
    built = tmp_path / "built"
    subprocess.run([*command, "--build-lib", built], cwd=ROOT, check=True, capture_output=True)
    assert CHECK.data_faults(built) == []
    (built / CHECK.DATA[0]).unlink()
    assert CHECK.data_faults(built) == [f"{CHECK.DATA[0]} is missing"]


def test_there_is_a_library():
    assert LIBRARIES


@EACH_LIBRARY
def test_a_library_needs_torchs_stable_abi_alone(library):
    assert CHECK.library_faults(library) == []


@pytest.mark.skipif(not shutil.which("c++"), reason="no compiler for the libraries")
@pytest.mark.parametrize(
    "code, options, fault",
    [
        (
            "void *PyList_New(); void *f() { return PyList_New(); }",
            [],
            "outside the stable ABI: Py",
        ),
        (
            "float __extendhfsf2(int); float f() { return __extendhfsf2(1); }",
            ["-nodefaultlibs"],
            "wants a libgcc_s of GCC 12 or newer: __extendhfsf2",
        ),
        ("void f() {}", ["-Wl,-rpath,/opt"], "has a run path"),
        ("void f() {}", [], "exports symbols: f"),
        ("static int f() { return 1; }", [], "uses nothing of torch's stable ABI"),
    ],
)
def test_a_wrong_library_is_told(tmp_path, code, options, fault):
    library = tmp_path / CHECK.CPU
    command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-x", "none", "-o", library, *options]
    code = f'extern "C" {{ {code} const char text[] = "read"; }}'
    subprocess.run(command, input=code, text=True, check=True)
    assert any(fault in told for told in CHECK.library_faults(library))


def test_a_wrong_wheel_is_told(tmp_path):
    assert CHECK.tag_faults(tmp_path / "x-1-cp311-cp311-linux_x86_64.whl") == [
        "tag: wanted py3-none-manylinux_*, got cp311-cp311-linux_x86_64"
    ]
    wrong = tmp_path / "fastfood_torch-1-py3-none-manylinux_2_5_x86_64.whl"
    with zipfile.ZipFile(wrong, "w") as wheel:
        wheel.write(LIBRARIES[0], f"fastfood/lib/{LIBRARIES[0].name}")
        wheel.writestr("x-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
        wheel.writestr("x-1.dist-info/METADATA", "Name: other\nLicense-Expression: MIT\n")
        wheel.writestr("x-1.dist-info/RECORD", f"fastfood/lib/{LIBRARIES[0].name},,\n")
    [tag] = CHECK.tag_faults(wrong)
    assert tag.startswith("tag: wanted manylinux_2_") and tag.endswith("got manylinux_2_5_x86_64")
    with zipfile.ZipFile(wrong) as wheel:
        wheel.extractall(tmp_path / "wheel")
    told = "\n".join(CHECK.metadata_faults(tmp_path / "wheel"))
    for field in ("Name", "License-Expression", "Requires-Python", "Provides-Extra", "LICENSE"):
        assert f"metadata: {field}: wanted " in told
    assert CHECK.gpu_faults({"elf": [80, 90], "ptx": [90]})
    assert CHECK.gpu_faults({"elf": [75, 80, 86, 90], "ptx": []})
    assert not CHECK.gpu_faults({"elf": [75, 80, 86, 90], "ptx": [90]})


@pytest.mark.skipif(not (ROOT / "fastfood/lib/libfastfood_cuda.so").exists(), reason="not built")
def test_the_gpu_code_of_a_library_is_listed():
    """Each source file is compiled for each architecture, and for one of them to PTX."""
    found = CHECK.gpu_code(ROOT / "fastfood/lib" / CHECK.CUDA)
    assert (
        set(found["elf"]) >= set(found["ptx"]) and found["elf"][0] >= 75 and len(found["ptx"]) == 1
    )
    assert CHECK.gpu_code(ROOT / "fastfood/lib" / CHECK.CPU) == {"ptx": [], "elf": []}


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
             "project_rows_adjoint", "project_rows_adjoint_sum", "perturb_", "perturbed"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastfood::" + name, "CUDA"), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)
