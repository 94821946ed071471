"""Task vectors on disk: one safetensors file with theta, lambda_ and how to rebuild P.

The header carries the format, the configuration, D and a hash of the base model, so that a file is
never applied to other weights than those it was trained on, and a checksum of the whole file. At
d = 200 a file takes at most 1,536 bytes in float32, 1,024 in float16 and 640 on 16 levels. Nothing
is ever unpickled. Buffers are not kept: statistics that a training changes (BatchNorm) belong to
the base model's own checkpoint.
"""

import hashlib
import json
import operator
import os
import re
import threading
import zlib
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .coordinates import Coordinates
from .layout import SubspaceConfig
from .quantize import MAX_LEVELS, decode, encode, quantize

FILE_NAME = "adapter.safetensors"
FORMAT = 1
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SETTINGS = ("d", "method", "seed", "normalization", "groups", "projection")

Groups = Callable[[str], Hashable] | None  # a function as `groups`, which no file can hold

_REQUIRED = ("format", *SETTINGS, "D", "base")
_OPTIONAL = ("levels", "crc")  # the first files had no checksum
_CRC = b'\\"crc\\":\\"'  # stands before the checksum's 8 digits, in JSON within JSON
_BASE = re.compile("[0-9a-f]{8}-[0-9a-f]{32}")
_CHUNK = 1 << 22  # bytes hashed at a time, in several threads


class AdapterFile(NamedTuple):
    """An adapter file: its header, theta (d - m,) and, for SAID, lambda_ (m,), and the bits that
    each takes in the file, a code's codebook included."""

    path: Path
    header: dict
    tensors: dict[str, torch.Tensor]
    bits: dict[str, int]

    def config(self, groups: Groups = None) -> SubspaceConfig:
        """The settings that the adapter was trained with. groups: the function of the training, if
        it was one. Raises ValueError if it is missing, or given to an adapter without one."""
        trained = self.header["groups"]
        if (trained == "custom") != (groups is not None):
            wanted = "a function, as in training" if groups is None else f"none beside {trained!r}"
            raise ValueError(f"{self.path}: groups: wanted {wanted}, got {groups!r}")
        settings = {name: self.header[name] for name in SETTINGS}
        return SubspaceConfig(**settings | ({} if groups is None else {"groups": groups}))

    def fill(self, model: Coordinates, name: str) -> None:
        """Writes theta and lambda_ into the adapter `name` of a model, which was made with this
        config. Raises ValueError, before anything is written, if the base model is another one."""
        problem = _mismatch(model, self.header, self.tensors, name)
        if problem:
            raise ValueError(f"{self.path}: {problem}")
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                getattr(model.adapters[name], key).copy_(tensor)


def save(
    model: Coordinates,
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    levels: int | None = None,
) -> Path:
    """Writes folder/adapter.safetensors whole or not at all, and returns its path.

    dtype: float32, float16, bfloat16 or float64, of theta (d - m,) and lambda_ (m,) in the file.
    levels: how many different values theta keeps at most, and lambda_ as well, 1 to 256; they are
        stored in float16 and an entropy code instead of `dtype` (fastfood/quantize.py).
    A function given as `groups` is recorded as "custom" and has to be given again at loading.
    Raises ValueError if a value is not finite in `dtype` (float16 if there are `levels`), TypeError
    or ValueError for bad arguments, ImportError without safetensors.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: wanted one of {DTYPES}, got {dtype}")
    dtype = dtype if levels is None else torch.float16
    tensors = {}
    for name, p in model.state_dict().items():
        tensors[name] = p.to("cpu", dtype).contiguous()
        if not tensors[name].isfinite().all():
            raise ValueError(f"{name}: wanted values that are finite in {dtype}, got others")
        if levels is not None:
            code = bytearray(encode(quantize(p, levels)))
            tensors[name] = torch.frombuffer(code, dtype=torch.uint8)
    config = model.subspace_config
    header = {"format": FORMAT, **{name: getattr(config, name) for name in SETTINGS}}
    if callable(config.groups):
        header["groups"] = "custom"
    header |= {"D": model.projection.D, "base": base_hash(model)}
    header |= {} if levels is None else {"levels": levels}
    # one entry: safetensors writes several in a random order
    metadata = {"fastfood": json.dumps(header | {"crc": 8 * "0"}, separators=(",", ":"))}
    before, after = _around_crc(_safetensors().torch.save(tensors, metadata))
    content = before + _checksum(before, after).encode() + after

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    temporary = folder / f".{FILE_NAME}.{os.getpid()}.{threading.get_ident()}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_into(
    model: Coordinates, path: str | os.PathLike, name: str, groups: Groups = None
) -> None:
    """Adds the adapter of `path`, a file of save() or its folder, to a wrapped base model under
    `name`, without making it active. Raises as SubspaceModel.from_pretrained does; the model is
    then left as it was."""
    file = read(path)
    config = file.config(groups)
    try:
        model.add_adapter(name, config)
    except ValueError as error:
        raise ValueError(f"{file.path}: cannot be put on this model: {error}") from error
    try:
        file.fill(model, name)
    except ValueError:
        model.delete_adapter(name)
        raise


def read(path: str | os.PathLike) -> AdapterFile:
    """A file of save(), or its folder, checked as far as the file alone allows.

    Raises FileNotFoundError, or ValueError naming the file: it is damaged or no adapter of ours.
    """
    safetensors = _safetensors()
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such adapter file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
    try:
        header = json.loads(metadata["fastfood"])
        version = operator.index(header["format"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a fastfood adapter, its header has no format") from error
    if version != FORMAT:
        raise ValueError(f"{path}: format: wanted {FORMAT}, got {version!r}: use a newer fastfood")
    problem = _damage(header, path.read_bytes())
    if problem:
        raise ValueError(f"{path}: damaged, {problem}")
    if "theta" not in tensors:
        raise ValueError(f"{path}: damaged, it lacks theta")
    bits = {name: 8 * tensor.nbytes for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if "levels" in header:
            tensor = tensors[name] = _decoded(tensor, f"{path}: {name}")
        vector = tensor.dtype in DTYPES and tensor.dim() == 1 and len(tensor)
        if not vector or not tensor.isfinite().all():
            got = f"{tensor.dtype} of shape {list(tensor.shape)}" if not vector else "others"
            raise ValueError(
                f"{path}: {name}: wanted a vector of finite floating-point numbers, got {got}"
            )
    return AdapterFile(path, header, tensors, bits)


def base_hash(model: Coordinates, adapter: str | None = None) -> str:
    """The base model as "layout-weights" in hex, its weights read once.

    layout: 4 bytes, of names, dtypes, shapes and groups of all parameters, frozen ones included.
    The groups are those of the adapter of that name, by default of the active one.
    weights: 16 bytes, of the layout and all values (theta_0 where they train), by BLAKE2b.
    """
    theta_0 = {segment.name: tensor for segment, tensor in model.theta_0()}
    segments = model.adapters[adapter or model.active_adapter].segments
    groups = {segment.name: segment.group for segment in segments}
    parameters = [
        (name, theta_0.get(name, p.detach())) for name, p in model.wrapped.named_parameters()
    ]
    rows = [[name, str(p.dtype), list(p.shape), groups.get(name)] for name, p in parameters]
    layout = json.dumps(rows).encode()
    if model.base_digests is None:
        with ThreadPoolExecutor() as pool:
            model.base_digests = [
                digest
                for _, p in parameters
                for digest in pool.map(_digest, _bytes(p).split(_CHUNK))
            ]
    whole = hashlib.blake2b(layout, digest_size=16)
    for digest in model.base_digests:
        whole.update(digest)
    short = hashlib.blake2b(layout, digest_size=4)
    return f"{short.hexdigest()}-{whole.hexdigest()}"


def _bytes(p: torch.Tensor) -> torch.Tensor:
    p = p.full_tensor() if hasattr(p, "full_tensor") else p  # a sharded one is gathered
    return p.cpu().contiguous().reshape(-1).view(torch.uint8)


def _digest(values: torch.Tensor) -> bytes:
    array: Any = values.numpy()  # a buffer, which numpy's types do not say
    return hashlib.blake2b(array, digest_size=16).digest()


def _mismatch(model: Coordinates, header: dict, tensors: dict, name: str) -> str | None:
    """How the base model and the adapter `name`, new on it, differ from those of the file, or None
    where they do not."""
    adapter = model.adapters[name]
    D = adapter.projection.D
    if header["D"] != D:
        return f"was trained on a model with D = {header['D']}, this one has D = {D}"
    vectors = {"theta": adapter.theta}
    if adapter.lambda_ is not None:
        vectors["lambda_"] = adapter.lambda_
    for key in sorted(vectors.keys() | tensors.keys()):
        wanted, got = (list(x[key].shape) if key in x else None for x in (vectors, tensors))
        if wanted != got:
            return f"{key}: wanted shape {wanted}, got {got}"
        if not tensors[key].to(vectors[key].dtype).isfinite().all():
            return f"{key}: wanted values that are finite in {vectors[key].dtype}, got others"
    return other_base(model, header["base"], name)


def other_base(model: Coordinates, recorded: str, adapter: str | None = None) -> str | None:
    """How the base model differs from the one whose base_hash() was `recorded`, or None where it
    does not."""
    got, wanted = base_hash(model, adapter).split("-"), recorded.split("-")
    if got[0] != wanted[0]:
        return "was trained on a model with other parameter names, shapes, types or groups"
    if got != wanted:
        return (
            "was trained on other base weights: load the same checkpoint, and initialise a new "
            "head with the same seed as in training"
        )
    return None


def _damage(header: dict, content: bytes) -> str | None:
    """What is wrong with the header of a file with this content, or None."""
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        return f"its header lacks {', '.join(missing)}"
    unknown = sorted(header.keys() - {*_REQUIRED, *_OPTIONAL})
    if unknown:  # a damaged name would hide the checksum
        return f"its header has unknown entries: {', '.join(unknown)}"
    if "crc" in header:
        wanted = _checksum(*_around_crc(content))
        if header["crc"] != wanted:
            return f"checksum: wanted {wanted}, got {header['crc']!r}"
    return _wrong_value(header)


def _wrong_value(header: dict) -> str | None:
    """Which value of a header is none that save() writes, or None."""
    for name, value in header.items():
        if type(value) not in (int, str):
            return f"{name}: wanted a number or a word, got a {type(value).__name__}"
    if not isinstance(header["D"], int) or header["D"] < 1:
        return f"D: wanted a number from 1 on, got {header['D']!r}"
    if not _BASE.fullmatch(str(header["base"])):
        return f"base: wanted 8 and 32 hex digits, got {header['base']!r}"
    if header.get("levels", 1) not in range(1, MAX_LEVELS + 1):
        return f"levels: wanted an integer from 1 to {MAX_LEVELS}, got {header['levels']!r}"
    settings = {name: header[name] for name in SETTINGS}
    if settings["groups"] == "custom":
        settings["groups"] = "layer"  # stands in for the function, which no file holds
    try:
        SubspaceConfig(**settings)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _around_crc(content: bytes) -> tuple[bytes, bytes]:
    """A file without the digits of its checksum: the bytes before and after them."""
    start, mark, rest = content.partition(_CRC)
    return start + mark, rest[8:]


def _checksum(before: bytes, after: bytes) -> str:
    return f"{zlib.crc32(after, zlib.crc32(before)):08x}"


def _decoded(code: torch.Tensor, place: str) -> torch.Tensor:
    if code.dtype != torch.uint8 or code.dim() != 1:
        got = f"{code.dtype} of shape {list(code.shape)}"
        raise ValueError(f"{place}: wanted a code of shape (n,) and type torch.uint8, got {got}")
    try:
        return decode(code.numpy().tobytes()).dequantize()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _safetensors():
    """The safetensors package, which only saving and loading need."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("adapter files need safetensors: pip install safetensors") from error
    return safetensors
