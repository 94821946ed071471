"""Loads the native libraries, or says in one line what was wanted, what was got and what to do.

Without the CPU library the import fails. With a CUDA library that cannot be loaded it warns once
and the CPU's operators work; on CUDA the transform then runs in plain torch, and other operators
name the reason.
"""

import pathlib
import platform
import re
import struct
import sys
import warnings

OLDEST_TORCH = (2, 10)  # the first with the stable ABI that the libraries use
_LIBRARIES = pathlib.Path(__file__).parent / "lib"
_MACHINES = {62: "x86_64", 183: "aarch64"}  # as ELF files number them
_BUILD = "install a wheel made for it, or run `pip install .` in the sources"


def _import_torch():
    wanted = "torch: wanted 2.10 or newer, got"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{wanted} none; run `pip install torch`") from None
    got = getattr(torch, "__version__", "a folder of that name")
    version = re.match(r"(\d+)\.(\d+)", got)
    if not version or tuple(map(int, version.groups())) < OLDEST_TORCH:
        raise ImportError(f"{wanted} {got}; run `pip install --upgrade torch`")
    return torch


def _fault(library: pathlib.Path) -> str:
    """What is wrong with a library's file, or "". The system's loader would crash over it or refuse
    it by an unclear message."""
    if not library.exists():
        return "it is missing"
    got = library.stat().st_size
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return "it is no library of a 64-bit Linux"
    (number,) = struct.unpack_from("<H", head, 18)
    machine = _MACHINES.get(number, f"machine {number}")
    if machine != platform.machine():
        return f"it is made for {machine}, this is {platform.machine()}"
    (table,) = struct.unpack_from("<Q", head, 40)
    size, count = struct.unpack_from("<HH", head, 58)
    wanted = table + size * count
    return f"it is cut off: wanted {wanted} bytes, got {got}" if got < wanted else ""


def _load(torch, name: str) -> str:
    """Loads a library and returns "", or the reason why it cannot be loaded."""
    library = _LIBRARIES / f"libfastfood_{name}.so"
    reason = _fault(library)
    if not reason:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            reason = str(error.__cause__ or error)  # torch's own message names the file alone
            reason = reason.removeprefix(f"{library}: ")
    return reason and f"{library} does not load with torch {torch.__version__}: {reason}"


def _load_all() -> dict:
    """Loads the libraries that this torch can use, and returns for each type of device "" or why it
    has no kernels."""
    torch = _import_torch()
    if sys.platform != "linux":
        raise ImportError(
            f"fastfood: wanted Linux on x86_64 or aarch64, got {sys.platform} on "
            f"{platform.machine()}; use a Linux machine, container or WSL"
        )
    reason = _load(torch, "cpu")
    if reason:
        raise ImportError(f"fastfood: {reason}; {_BUILD}")
    if torch.version.cuda is None:
        return {"cpu": "", "cuda": f"torch {torch.__version__} is built without CUDA"}
    if not (_LIBRARIES / "libfastfood_cuda.so").exists():
        return {"cpu": "", "cuda": f"this fastfood is built without CUDA; {_BUILD}"}
    reason = _load(torch, "cuda")
    if reason:
        warnings.warn(f"fastfood works on the CPU alone: {reason}; {_BUILD}", stacklevel=4)
    return {"cpu": "", "cuda": reason}


_REASONS = _load_all()


def why_no_kernels(device_type: str) -> str:
    """Why operators have no kernel on devices of this type, or "" where they have."""
    return _REASONS.get(device_type, "fastfood has no kernels for such devices")
