"""Builds the API reference and the guides' pages into build/docs, and fails on any warning and on
any link that leads nowhere.

The pages link to each other, to scripts and to files of the repository by relative paths, as GitHub
wants it. pdoc puts all pages into one, so the links are rewritten first, and the files that they
name are copied."""

import importlib
import re
import shutil
import sys
import tempfile
import typing
import warnings
from pathlib import Path

import pdoc

from fastfood import guides
from fastfood.peft import DidConfig, SaidConfig

MODULES = ["fastfood", "fastfood.peft", "fastfood.hub", "fastfood.sampler", "fastfood.guides"]
ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "fastfood" / "guides"
DOCS = Path("build/docs")
LINK = r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)"


def anchor(page: Path) -> str:
    """The link to the page's first heading, as pdoc and GitHub name headings."""
    heading = re.search(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)[1]
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link_in_docs(match: re.Match) -> str:
    image, words, path, part = match.groups()
    file = (PAGES / path).resolve()
    if not file.is_file():
        return match[0]
    if image:
        target = str(file)  # pdoc embeds it
    elif file.parent == PAGES and file.suffix == ".md":
        target = part or anchor(file)
    elif file.parent == PAGES:
        target = f"guides/{file.stem}.html"
    else:
        copied = DOCS / "repository" / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
        target = f"../repository/{file.relative_to(ROOT).as_posix()}"
    return f"{image}[{words}]({target})"


def broken_links(page: Path) -> list[str]:
    """The relative links of a built page that lead to no file or to no part of the page."""
    text = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    parts = set(re.findall(r'\bid="([^"]*)"', text))
    broken = []
    for link in re.findall(r'<a [^>]*?href="([^"]+)"', text):
        file, _, part = link.partition("#")
        exists = (page.parent / file).is_file() if file else part in parts
        if ":" not in link and not exists:
            broken.append(link)
    return broken


# PEFT's type hints name what only PEFT imports.
for config in (SaidConfig, DidConfig):
    config.__init__.__annotations__ = typing.get_type_hints(config)
for module in MODULES:
    importlib.import_module(module)  # warnings of other packages at their import are no errors

warnings.simplefilter("error")
pdoc.render.configure(docformat="google", math=True, search=True)
with tempfile.TemporaryDirectory() as folder:
    for page in PAGES.glob("*.md"):
        rewritten = Path(folder) / page.name
        text = re.sub(LINK, link_in_docs, page.read_text(encoding="utf-8"))
        rewritten.write_text(text, encoding="utf-8")
        guides.__doc__ = guides.__doc__.replace(f":: {page.name}\n", f":: {rewritten}\n")
    pdoc.pdoc(*MODULES, output_directory=DOCS)
broken = broken_links(DOCS / "fastfood" / "guides.html")
if broken:
    sys.exit(f"links of the pages: wanted targets that exist, got {', '.join(broken)}")
