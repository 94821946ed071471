"""The repository keeps what it says of itself: the README is a front page, CONTRIBUTING's tree
names every file, imports and includes point down as it draws them, public functions are typed, no
file or function is longer than one reads at once, and tests do not import one another."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / ".git").exists():
    pytest.skip("needs the repository, not its copy", allow_module_level=True)
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
REFERENCE = {"reference", "reference_orders"}  # apart from all else
# what every repository has, and the settings of its tools
UNNAMED = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"}

MOST_LINES = {"of a file": 450, "of a function": 60}


def block_after(file, words):
    """The first indented block after a line of a Markdown file."""
    text = (ROOT / file).read_text()
    lines = text[text.index(words) :].split("\n\n    ", 1)[1].split("\n\n", 1)[0]
    return [line.strip() for line in lines.splitlines()]


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    named = [re.split(r"\s{2,}", line)[0] for line in block_after("README.md", "## Folders")]
    folders = {file.split("/")[0] + "/" for file in TRACKED if "/" in file}
    assert folders == {path for line in named for path in line.split() if path.count("/") == 1}
    assert all((ROOT / path).is_dir() for line in named for path in line.split())


def test_the_tree_of_contributing_is_that_of_the_repository():
    named = []
    for line in block_after("CONTRIBUTING.md", "## What is where"):
        paths, _, role = re.split(r"(\s{2,})", line, maxsplit=1)
        assert role, line
        folder = ""
        for path in paths.split():
            # further files of a line are in the folder of its first
            named.append(path if (ROOT / path).exists() else folder + path)
            folder = folder or f"{Path(path).parent}/"
    assert len(set(named)) == len(named)
    for name in named:
        there = name in TRACKED or any(file.startswith(name) for file in TRACKED if name[-1] == "/")
        assert there, f"{name} is named but not there"
    folders = tuple(name for name in named if name.endswith("/"))
    missing = [
        file
        for file in TRACKED
        if file not in named and not file.startswith((".", *folders)) and file not in UNNAMED
    ]
    assert missing == ["fastfood/__init__.py", "fastfood/py.typed"]


def drawn(name):
    """{file: level} of a diagram in CONTRIBUTING."""
    text = " ".join(block_after("CONTRIBUTING.md", "A file includes or imports"))
    chain = re.search(rf"\b{name}: (.*?)(?= \w+: |$)", text)[1]
    return {
        file.strip(): level
        for level, files in enumerate(chain.split("->"))
        for file in files.split(",")
    }


def imports(path):
    """The modules of this package that a file imports anywhere, also within functions and under
    TYPE_CHECKING, as ("fastfood", "X", ...); a package stands for its __init__.py."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [tuple(name.name.split(".")) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*base, *filter(None, (node.module or "").split(".")))
            inner = [(*base, name.name) for name in node.names]
            modules = [module if is_module(module) else base for module in inner]
        else:
            continue
        yield from (module for module in modules if module[0] == "fastfood")


def is_module(parts):
    inner = ROOT.joinpath(*parts)
    return (inner / "__init__.py").exists() or inner.with_suffix(".py").exists()


def modules():
    """{module: its file} of the whole package."""
    found = {}
    for file in (ROOT / "fastfood").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[parts[:-1] if parts[-1] == "__init__" else parts] = file
    return found


def circles(arrows):
    """The strongly connected components of more than one node, and the nodes that point to
    themselves: sets of nodes each of which is reached from each."""

    def reached(node):
        found, left = set(), [node]
        while left:
            for after in arrows[left.pop()] - found:
                found.add(after)
                left.append(after)
        return found

    whole = {node: reached(node) for node in arrows}
    return {
        frozenset(other for other in whole[node] if node in whole[other])
        for node in arrows
        if node in whole[node]
    }


def test_a_circle_is_seen():
    assert circles({1: {2, 3}, 2: {3}, 3: set()}) == set()
    found = circles({1: {2}, 2: {3}, 3: {2, 4}, 4: {4}})
    assert found == {frozenset({2, 3}), frozenset({4})}


def test_no_modules_import_each_other_in_a_circle():
    arrows = {module: set(imports(file)) for module, file in modules().items()}
    found = [sorted(map(".".join, circle)) for circle in circles(arrows)]
    assert not found, f"circles of imports: {found}"


def test_native_includes_point_down():
    levels = drawn("csrc")
    for file in (ROOT / "csrc").rglob("*.*"):
        inner = file.relative_to(ROOT / "csrc")
        for kind, name in re.findall(r'#include ([<"])(.+)[>"]', file.read_text()):
            if kind == "<":
                assert not name.startswith("torch/") or "torch_" in file.name, (file, name)
                continue
            found = (file.parent / name).resolve().relative_to(ROOT / "csrc")
            same = found.parts[0] == inner.parts[0]
            assert same or levels[found.parts[0]] < levels[inner.parts[0]], (file, name)


def test_imports_point_down():
    levels = drawn("fastfood")
    files = {file.stem: file for file in (ROOT / "fastfood").glob("*.py")}
    assert levels.keys() - {"experiments"} == files.keys() - REFERENCE - {"__init__"}
    for name, file in files.items():
        imported = {module[-1] for module in imports(file)}
        if name in REFERENCE:
            assert imported == ({"reference_orders"} if name == "reference" else set())
        elif name != "__init__":
            high = [other for other in imported if levels.get(other, 99) >= levels[name]]
            assert not high, f"{name} imports {high}"


def test_imports_of_experiments_point_down():
    folder = ROOT / "fastfood" / "experiments"
    bullets = re.findall(r"^- (.*(?:\n  .*)*)", (folder / "__init__.py").read_text(), re.M)
    levels = {name: i for i, text in enumerate(bullets) for name in re.findall(r"`(\w+)`", text)}
    for file in folder.rglob("*.py"):
        own = file.relative_to(folder).with_suffix("").parts[0]
        for module in imports(file):
            if own != "__init__" and module[1:2] == ("experiments",) and len(module) > 2:
                assert levels[module[2]] <= levels[own], f"{own} imports {module[2]}"


def private_names_of_torch(tree):
    """(line, name) of what a file imports from torch, or reads of it, under a name of torch's own
    with an underscore."""
    roots = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            roots |= {name.asname or name.name for name in node.names}
            words = [*node.module.split("."), *(name.name for name in node.names)]
            yield from ((node.lineno, word) for word in words if is_private(word))
        elif isinstance(node, ast.Import):
            words = [word for name in node.names for word in name.name.split(".")]
            if words[0] == "torch":
                yield from ((node.lineno, word) for word in words if is_private(word))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value).split(".")[0] in roots:
                yield node.lineno, node.attr


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_torch_are_in_one_file():
    home = ROOT / "fastfood" / "torch_internals.py"
    tree = ast.parse(home.read_text())
    reached = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = {name for name in reached if is_private(name)}  # of objects of torch's, too
    assert {"_active_ddp_module", "_flat_weights"} <= known
    found = list(private_names_of_torch(tree))
    assert "_C" in [name for _, name in found] and "_pytree" in [name for _, name in found]
    for file in (ROOT / "fastfood").rglob("*.py"):
        if file == home:
            continue
        tree = ast.parse(file.read_text())
        found = list(private_names_of_torch(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in known:
                if ast.unparse(node.value) not in ("self", "super()"):
                    found.append((node.lineno, node.attr))
        assert not found, f"{file.name}: {found}: wanted in torch_internals.py"


def public_functions(body, method=False):
    for node in body:
        public = not node.name.startswith("_") if hasattr(node, "name") else False
        if isinstance(node, ast.ClassDef) and public:
            yield from public_functions(node.body, True)
        elif isinstance(node, ast.FunctionDef) and (public or node.name == "__call__"):
            static = any(getattr(mark, "id", "") == "staticmethod" for mark in node.decorator_list)
            yield node, int(method and not static)


def test_public_functions_are_typed():
    for file in (ROOT / "fastfood").glob("*.py"):
        for node, skipped in public_functions(ast.parse(file.read_text()).body):
            arguments = [*node.args.posonlyargs, *node.args.args][skipped:] + node.args.kwonlyargs
            arguments += [star for star in (node.args.vararg, node.args.kwarg) if star]
            untyped = [argument.arg for argument in arguments if argument.annotation is None]
            assert not untyped and node.returns, f"{file.name}: {node.name} {untyped}"


def test_no_source_file_is_long():
    sources = (".py", ".cpp", ".h", ".cu", ".cuh")
    for file in filter(lambda name: name.endswith(sources), TRACKED):
        count = len((ROOT / file).read_text().splitlines())
        assert count <= MOST_LINES["of a file"], f"{file} has {count} lines"


def test_no_function_is_long():
    for file in filter(lambda name: name.endswith(".py"), TRACKED):
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = node.end_lineno - node.lineno + 1
                assert count <= MOST_LINES["of a function"], f"{file}: {node.name}, {count} lines"


def test_tests_import_no_tests():
    """What test modules share is in modules of its own."""
    for file in filter(re.compile(r"tests/.*\.py$").match, TRACKED):
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not (module or "").startswith("test_"), f"{file} imports {module}"
