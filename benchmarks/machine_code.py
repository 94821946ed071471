"""Reads the CUDA kernels' machine code for what it tells of their speed, without a GPU.

    python benchmarks/machine_code.py [LIBRARY] [--arch sm_90] [--all] [--cuobjdump PATH]
        [--check FILE.json | --record FILE.json]

The table has a row for each kernel: its registers, its instructions, and the instructions of its
hot loop for each entry that it stores (for the adjoint: loads), with the number of those that are
floating-point arithmetic and that access shared memory. The hot loop is the one whose way around is
longest. "least" counts the shortest way around it (no base, no diagonals, aligned, inside), "most"
the longest, both without inner loops. In kernels with tensor cores the hot loop goes over tiles and
the product is an inner loop: "a product" counts its instructions for each one of the tensor cores.
--check fails if a kernel of the file takes a fifth more registers or instructions than recorded or
is missing, or if a kernel that is shown spills, calls, divides, or converts single values to 16
bits.

The code is disassembled by cuobjdump and nvdisasm of the CUDA toolkit, which are on PyPI as
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "fastfood" / "lib" / "libfastfood_cuda.so"
RECORD = Path(__file__).with_suffix(".json")
GROWTH = 1.2
SIZES = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
SHOWN = ("tile_kernel", "short_kernel", "column_kernel", "project_kernel", "adjoint_kernel")
SHOWN += ("tensor_kernel",)

FUNCTION = re.compile(r"Function : (\S+)")
INSTRUCTION = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P[T\d]\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)"
    r"(?P<operands>[^;]*);"
)
TARGET = re.compile(r"(?:0x|`\(\.L_x_\d+\) )([0-9a-f]+)\s*$")
RESOURCES = re.compile(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass
class Instruction:
    address: int
    opcode: str
    conditional: bool
    target: int | None  # the address that a branch jumps to

    @property
    def kind(self):
        return self.opcode.split(".")[0]


@dataclass
class Kernel:
    name: str
    registers: int = 0
    stack: int = 0
    code: list[Instruction] = field(default_factory=list)


# --- Disassembly ---------------------------------------------------------------------------------


def find_cuobjdump(named=None):
    """The path of cuobjdump or None: as named, on PATH, in the toolkit, or in PyPI's package."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [Path(home, "bin/cuobjdump") for home in homes if home]
    for site in map(Path, sys.path):
        places += sorted(site.glob("nvidia/cu*/bin/cuobjdump"), reverse=True)
    candidates = [named, shutil.which("cuobjdump"), *map(str, places)]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def short_name(symbol):
    """A demangled kernel's name<arguments>."""
    symbol = re.sub(r"\(anonymous namespace\)::|fastfood::cuda::|^void ", "", symbol)
    depth, name = 0, ""
    for character in symbol:
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            break
        name += character
    return re.sub(r"\((?:int|bool)\)|\s+(?=>)", "", name)


def demangle(symbols):
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True)
    return dict(zip(symbols, map(short_name, done.stdout.splitlines()), strict=True))


def parse(disassembly):
    """The instructions of each function, without the padding after them, by mangled name."""
    functions, code = {}, []
    for line in disassembly.splitlines():
        function = FUNCTION.search(line)
        if function:
            code = functions.setdefault(function[1], [])
            continue
        match = INSTRUCTION.search(line)
        if not match or match["opcode"] == "NOP":
            continue
        # BRA.DIV jumps to out-of-line code for diverged warps, which is not counted
        jumps = match["opcode"].split(".")[0] == "BRA" and match["opcode"] != "BRA.DIV"
        target = TARGET.search(match["operands"].strip()) if jumps else None
        code.append(
            Instruction(
                int(match["address"], 16),
                match["opcode"],
                bool(match["predicate"]) or bool(re.match(r"\s*!?U?P\d,", match["operands"])),
                int(target[1], 16) if target else None,
            )
        )
    return functions


def kernels_of(library, arch, cuobjdump):
    beside = f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # nvdisasm

    def output(*options):
        command = [cuobjdump, "-arch", arch, *options, str(library)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PATH": beside}
        )
        if done.returncode:
            sys.exit(f"cuobjdump: {done.stderr.strip()}")
        return done.stdout

    resources = {m[1]: m for m in RESOURCES.finditer(output("-res-usage"))}
    functions = parse(output("-sass"))
    names = demangle(functions)
    kernels = {}
    for symbol, code in functions.items():
        used = resources.get(symbol)
        registers, stack = (int(used[2]), int(used[3]) + int(used[5])) if used else (0, 0)
        kernels[names[symbol]] = Kernel(names[symbol], registers, stack, code)
    return dict(sorted(kernels.items(), key=lambda item: natural(item[0])))


def natural(name):
    """A sort key by which numbers in names are compared as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# --- Ways through the code -----------------------------------------------------------------------


def blocks_of(code):
    """Basic blocks as lists of instructions, and for each the indices of its successors."""
    starts = {code[0].address} if code else set()
    for now, after in zip(code, code[1:], strict=False):
        if now.target is not None:
            starts.add(now.target)
        if now.target is not None or now.kind in ("EXIT", "RET", "BRA"):
            starts.add(after.address)
    blocks = []
    for instruction in code:
        if instruction.address in starts or not blocks:
            blocks.append([])
        blocks[-1].append(instruction)
    index = {block[0].address: i for i, block in enumerate(blocks)}
    following = []
    for i, block in enumerate(blocks):
        last, after = block[-1], []
        if last.target in index:
            after.append(index[last.target])
        ends = last.kind in ("EXIT", "RET", "BRA") and last.opcode != "BRA.DIV"
        ends = ends and not last.conditional
        if not ends and i + 1 < len(blocks):
            after.append(i + 1)
        following.append(after)
    return blocks, following


def way(blocks, following, head, tail, shortest, avoided):
    """The instructions of the shortest or longest forward way from block head to block tail."""
    sign = 1 if shortest else -1
    best = {head: (sign * len(blocks[head]), [head])}
    for i in range(head, tail):
        if i not in best:
            continue
        length, taken = best[i]
        for after in following[i]:
            if not i < after <= tail or after in avoided:
                continue
            other = (length + sign * len(blocks[after]), [*taken, after])
            if after not in best or other[0] < best[after][0]:
                best[after] = other
    return [x for i in best.get(tail, (0, []))[1] for x in blocks[i]]


def hot_loop(code):
    """The shortest and the longest way around the hot loop, or all code twice if there is none.

    A loop extends from the target of a backward branch to the branch. Slow ways around it contain
    inner loops over single entries; both results avoid these if they can.
    """
    blocks, following = blocks_of(code)
    loops = [(head, tail) for tail, after in enumerate(following) for head in after if head <= tail]
    ways = []
    for head, tail in loops:
        inner = {i for a, b in loops if head < a and b < tail for i in range(a, b + 1)}
        for avoided in (inner, set()):
            least, most = (way(blocks, following, head, tail, s, avoided) for s in (True, False))
            if least:
                ways.append((least, most))
                break
    return max(ways, key=lambda pair: len(pair[0]), default=(code, code))


def product_loop(code):
    """Instructions per HMMA, the tensor cores' instruction, in the shortest loop with any, or 0."""
    blocks, following = blocks_of(code)
    loops = [
        [x for block in blocks[head : tail + 1] for x in block]
        for tail, after in enumerate(following)
        for head in after
        if head <= tail
    ]
    products = [(len(x), sum(i.kind == "HMMA" for i in x)) for x in loops]
    size, count = min((pair for pair in products if pair[1]), default=(0, 1))
    return round(size / count, 1)


# --- Counting ------------------------------------------------------------------------------------


def bytes_of(opcode):
    for width, size in ((".128", 16), (".64", 8), (".U16", 2), (".U8", 1)):
        if width in opcode:
            return size
    return 4


def storage_sizes(name):
    """The bytes of an entry as the kernel loads it and as it stores it."""
    kinds = re.findall("|".join(SIZES), name)
    return (SIZES[kinds[0]], SIZES[kinds[-1]]) if kinds else (4, 4)


def entries_of(name, path):
    """How many entries a thread handles on a way: those it loads or those it stores, whichever are
    fewer, because it may also load a base or store in two branches. A kernel with tensor cores
    loads elsewhere, and shuffles once for each entry."""
    moved = Counter()
    for x in path:
        if x.kind in ("LDG", "STG"):
            moved[x.kind] += bytes_of(x.opcode)
    loaded, stored = storage_sizes(name)
    counts = [moved["LDG"] / loaded, moved["STG"] / stored]
    if name.startswith("tensor_kernel"):
        counts = [sum(x.kind == "SHFL" for x in path)]
    return min(filter(None, counts), default=0)


def flags_of(kernel):
    counts = Counter(x.kind for x in kernel.code)
    opcodes = {x.opcode for x in kernel.code}
    flags = []
    if kernel.stack or counts["LDL"] or counts["STL"]:
        flags.append("local memory")
    if counts["CALL"]:
        flags.append("calls")
    if "MUFU.RCP" in opcodes or any(x.startswith("I2F") for x in opcodes):
        flags.append("divides")
    if any(re.match(r"F2F\.B?F16", x) for x in opcodes):
        flags.append("single conversions")
    return flags


def measure(kernel):
    least, most = hot_loop(kernel.code)
    entries = entries_of(kernel.name, least) or 1
    kinds = defaultdict(int)
    for x in least:
        kinds[x.kind] += 1
    widths = sorted({bytes_of(x.opcode) for x in least if x.kind == "LDG"}, reverse=True)
    return {
        "registers": kernel.registers,
        "instructions": len(kernel.code),
        "entries": round(entries),
        "least": round(len(least) / entries, 1),
        "most": round(len(most) / entries, 1),
        "arithmetic": round(
            sum(kinds[k] for k in ("FADD", "FMUL", "FFMA", "DADD", "DMUL", "DFMA")) / entries, 1
        ),
        "shared": round((kinds["LDS"] + kinds["STS"] + kinds["SHFL"]) / entries, 1),
        "product": product_loop(kernel.code),
        "loads": widths,
        "flags": flags_of(kernel),
    }


COLUMNS = {
    "kernel": None,
    "registers": "registers",
    "instructions": "instructions",
    "entries a trip": "entries",
    "an entry: least": "least",
    "most": "most",
    "arithmetic": "arithmetic",
    "shared": "shared",
    "a product": "product",
    "loads, bytes": "loads",
    "flags": "flags",
}


def show(measured):
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, facts in measured.items():
        cells = [f"`{name}`"]
        for key in list(COLUMNS.values())[1:]:
            value = facts[key]
            cells.append(", ".join(map(str, value)) if isinstance(value, list) else str(value))
        print("| " + " | ".join(cells) + " |")


def faults(measured, recorded):
    """The faults of kernels that are shown, and what has grown since recorded, a line for each."""
    lines = [
        f"{name}: {', '.join(facts['flags'])}"
        for name, facts in measured.items()
        if facts["flags"] and name.startswith(SHOWN)
    ]
    for name, wanted in recorded.items():
        got = measured.get(name)
        if got is None:
            lines.append(f"{name}: it is missing")
            continue
        for key in ("registers", "instructions", "least", "most"):
            if got[key] > GROWTH * wanted[key]:
                lines.append(
                    f"{name}: {key}: wanted at most a fifth over {wanted[key]}, got {got[key]}"
                )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", default=str(LIBRARY))
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--all", action="store_true", help="show every kernel")
    parser.add_argument("--cuobjdump")
    parser.add_argument("--check", metavar="FILE")
    parser.add_argument("--record", metavar="FILE")
    arguments = parser.parse_args()
    cuobjdump = find_cuobjdump(arguments.cuobjdump)
    if not cuobjdump:
        sys.exit("cuobjdump: wanted it on PATH, in CUDA_HOME or from PyPI, got none")
    kernels = kernels_of(arguments.library, arguments.arch, cuobjdump)
    if not kernels:
        sys.exit(f"{arguments.library}: wanted code for {arguments.arch}, got none")
    measured = {name: measure(kernel) for name, kernel in kernels.items()}
    if arguments.record:
        lines = [f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in measured.items()]
        Path(arguments.record).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    shown = ("",) if arguments.all else SHOWN
    show({name: facts for name, facts in measured.items() if name.startswith(shown)})
    if arguments.check:
        lines = faults(measured, json.loads(Path(arguments.check).read_text()))
        if lines:
            sys.exit("\n".join(lines))
        print(f"{len(measured)} kernels: none has grown")


if __name__ == "__main__":
    main()
