"""Prints what a wheel holds, and fails if it would not install or load on another machine. It
compares the wheel's tag with what the libraries need of the system, and checks their symbols, run
paths, CUDA runtime and GPU code, the metadata and the data files."""

import argparse
import email
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

SYSTEM = {"libc", "libm", "libstdc++", "libgcc_s", "librt", "libdl", "libpthread", "ld-linux"}
FOREIGN = ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10", "cuda", "cu")
FATBIN = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # magic, version, bytes of the header
DATA = (  # files that the package reads when it runs, one for each line of package data
    "fastfood/py.typed",
    "fastfood/experiments/recipes/table1.toml",
    "fastfood/experiments/report/page.css",
    "fastfood/experiments/report/page.html.jinja",
    "fastfood/guides/format_1.md",
)
CPU, CUDA = "libfastfood_cpu.so", "libfastfood_cuda.so"


def library_faults(path):
    """What keeps a library from loading beside every torch and Python, one sentence a fault."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
        dynamic = list(elf.get_section_by_name(".dynamic").iter_tags())
        texts = elf.get_section_by_name(".rodata").data()
    undefined = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
    stable = {name for name in undefined if name.startswith(("aoti_torch_", "torch_"))}
    needed = {t.needed.split(".so")[0] for t in dynamic if t.entry.d_tag == "DT_NEEDED"}
    needed = {"ld-linux" if name.startswith("ld-linux") else name for name in needed}
    torch = {"libtorch_cpu", "libtorch_cuda"} if path.name == CUDA else {"libtorch_cpu"}
    faults = {
        "uses nothing of torch's stable ABI": not stable,
        "wants symbols outside the stable ABI": sorted(
            name for name in undefined - stable if name.startswith(FOREIGN)
        ),
        "wants a libgcc_s of GCC 12 or newer": sorted(
            name for name in undefined if name in ("__extendhfsf2", "__truncsfhf2")
        ),
        "exports symbols": sorted({s.name for s in symbols} - undefined),
        "needs other libraries": sorted(needed - SYSTEM - torch),
        "does not need libtorch_cuda": path.name == CUDA and not needed & {"libtorch_cuda"},
        "has a run path": any(t.entry.d_tag in ("DT_RPATH", "DT_RUNPATH") for t in dynamic),
        "holds no CUDA runtime": path.name == CUDA and b"cudaError" not in texts,
    }
    return [
        f"{path.name} {fault}" + (f": {', '.join(names)}" if names is not True else "")
        for fault, names in faults.items()
        if names
    ]


def is_stripped(path):
    with path.open("rb") as file:
        return ELFFile(file).get_section_by_name(".symtab") is None


def tag_faults(wheel):
    """What auditwheel objects to in the tag of the wheel's name, apart from torch's libraries."""
    interpreter, abi, platform = wheel.stem.split("-")[-3:]
    if (interpreter, abi) != ("py3", "none") or not platform.startswith("manylinux"):
        return [f"tag: wanted py3-none-manylinux_*, got {interpreter}-{abi}-{platform}"]
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [f"auditwheel: {(done.stderr or done.stdout).strip()}"]
    report = json.loads(done.stdout)
    libraries = {name for name in report["external_libs"] if not name.startswith("libtorch_c")}
    return [
        sentence
        for sentence, wrong in {
            f"tag: wanted {report['sym_tag']}, which the symbols need, got {platform}": (
                report["sym_tag"] not in platform.split(".")
            ),
            f"needs libraries that the tag does not promise: {', '.join(libraries)}": libraries,
            "needs instructions that not every processor has": report["unsupported_isa"],
        }.items()
        if wrong
    ]


def gpu_code(library):
    """The architectures with machine code ("elf") and with PTX in the library's fat binaries. A fat
    binary is a header of 16 bytes and then entries, whose headers hold kind, length and
    architecture."""
    with library.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".nv_fatbin")
        data = section.data() if section else b""
    code, start = {"ptx": set(), "elf": set()}, 0
    while (start := data.find(FATBIN, start)) >= 0:
        (size,) = struct.unpack_from("<Q", data, start + 8)
        entry, start = start + 16, start + 16 + size
        while entry < start:
            kind, header, length = struct.unpack_from("<H2xIQ", data, entry)
            code["ptx" if kind == 1 else "elf"].add(*struct.unpack_from("<I", data, entry + 28))
            entry += header + length
    return {kind: sorted(architectures) for kind, architectures in code.items()}


def gpu_faults(code):
    if code["elf"][:2] == [75, 80] and 90 in code["elf"] and code["ptx"]:
        return []
    return [f"{CUDA}: wanted code for 75, 80, 90 and newer and one PTX, got {code}"]


def metadata_faults(folder):
    [file] = folder.glob("*.dist-info/METADATA")
    read = email.message_from_string(file.read_text())
    extras = set(read.get_all("Provides-Extra", []))
    wanted = {"subspace", "hub", "peft", "experiments", "grpo", "cluster", "test", "all"}
    return [
        f"metadata: {field}: wanted {want}, got {got}"
        for field, want, got in (
            ("Name", "fastfood-torch", read["Name"]),
            ("License-Expression", "BSD-3-Clause", read["License-Expression"]),
            ("Requires-Python", ">=3.10", read["Requires-Python"]),
            ("Provides-Extra", sorted(wanted), sorted(extras & wanted)),
            ("LICENSE", True, (file.parent / "licenses/LICENSE").is_file()),
        )
        if want != got
    ]


def data_faults(folder):
    return [f"{name} is missing" for name in DATA if not Path(folder, name).is_file()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--cpu", action="store_true", help="a wheel without the CUDA library")
    arguments = parser.parse_args()
    wheel, faults = arguments.wheel, tag_faults(arguments.wheel)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        libraries = sorted(Path(folder, "fastfood/lib").glob("*"))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {len(archive.namelist())} files")
        for library in libraries:
            held = archive.getinfo(str(library.relative_to(folder)))
            size, packed = held.file_size / 1e6, held.compress_size / 1e6
            print(f"  {library.name}: {size:.2f} MB, {packed:.2f} MB packed")
            faults += library_faults(library)
            faults += [] if is_stripped(library) else [f"{library.name} is not stripped"]
        names = [library.name for library in libraries]
        if names != [CPU] + [CUDA] * (not arguments.cpu):
            faults.append(
                f"libraries: wanted {CPU}{'' if arguments.cpu else f', {CUDA}'}, got {names}"
            )
        if CUDA in names:
            code = gpu_code(libraries[names.index(CUDA)])
            print(f"  machine code for {code['elf']}, PTX of {code['ptx']}")
            faults += gpu_faults(code)
        faults += metadata_faults(Path(folder)) + data_faults(Path(folder))
    if faults:
        sys.exit("\n".join(faults))
    print("  no faults")


if __name__ == "__main__":
    main()
