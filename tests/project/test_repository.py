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
    text = " ".join(block_after("CONTRIBUTING.md", "Arrows point"))
    chain = re.search(rf"\b{name}: (.*?)(?= \w+: |$)", text)[1]
    return {
        file.strip(): level
        for level, files in enumerate(chain.split("->"))
        for file in files.split(",")
    }


def module_imports(path):
    """The modules of this package that a file imports when it is loaded, as fastfood.X[.Y]."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level] + tuple((node.module or "").split("."))
            base = tuple(part for part in base if part)
            for name in node.names:
                inner = ROOT.joinpath(*base, name.name)
                whole = inner.is_dir() or inner.with_suffix(".py").exists()
                yield (*base, name.name) if whole else base


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
    for file in (ROOT / "fastfood").glob("*.py"):
        imported = {module[1] for module in module_imports(file)}
        if file.stem.startswith("reference"):
            assert imported == ({"reference_orders"} if file.stem == "reference" else set())
        elif file.stem != "__init__":
            high = [name for name in imported if levels[name] >= levels[file.stem]]
            assert not high, f"{file.stem} imports {high}"


def test_imports_of_experiments_point_down():
    folder = ROOT / "fastfood" / "experiments"
    bullets = re.findall(r"^- (.*(?:\n  .*)*)", (folder / "__init__.py").read_text(), re.M)
    levels = {name: i for i, text in enumerate(bullets) for name in re.findall(r"`(\w+)`", text)}
    for file in folder.rglob("*.py"):
        own = file.relative_to(folder).with_suffix("").parts[0]
        for module in module_imports(file):
            if own != "__init__" and module[1] == "experiments":
                assert levels[module[2]] <= levels[own], f"{own} imports {module[2]}"


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
