"""A report as a list of blocks, and how it becomes Markdown and one self-contained HTML page: no
script, no font and no picture from elsewhere; figures are SVG inside the page. The page is made by
page.html.jinja and page.css, which stand beside this file."""

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jinja2


class Heading(NamedTuple):
    level: int
    text: str


class Text(NamedTuple):
    text: str
    lead: bool = False  # the words that a reader should see first


class Items(NamedTuple):
    texts: list[str]


class Table(NamedTuple):
    """`align` has a letter a column, l or r."""

    header: list[str]
    rows: list[list[str]]
    align: str


class Figure(NamedTuple):
    """The files STEM.svg and STEM.png of the report's folder; `wide` ones may be scrolled."""

    stem: str
    caption: str
    wide: bool = False


class Code(NamedTuple):
    text: str


class Folded(NamedTuple):
    """Blocks below a line that opens them; Markdown shows them as they are."""

    title: str
    blocks: list["Block"]
    opened: bool = False


Block = Heading | Text | Items | Table | Figure | Code | Folded


def to_html(title: str, blocks: list[Block], folder: Path, reload: int | None) -> str:
    """The whole page. Figures are read from `folder`; with `reload` the page loads itself anew
    after so many seconds."""

    def picture(stem: str) -> str:
        return base64.b64encode(Path(folder, f"{stem}.svg").read_bytes()).decode()

    return _template().render(title=title, blocks=blocks, reload=reload, picture=picture)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("page.html.jinja")


def to_markdown(blocks: list[Block]) -> str:
    """The same report in Markdown, with the PNG files of the folder as its figures."""
    return "\n\n".join(_MARKDOWN[type(block)](block) for block in blocks) + "\n"


def _plain(text: str) -> str:
    """A text in which nothing is taken for markup, on one line."""
    for sign in ("\\", "|", "<", "`", "*"):
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _table_markdown(table: Table) -> str:
    rows = [table.header, *table.rows]
    lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    rule = "".join("---:|" if side == "r" else "---|" for side in table.align)
    return "\n".join([lines[0], "|" + rule, *lines[1:]])


_MARKDOWN: dict[type, Callable] = {
    Heading: lambda b: "#" * b.level + " " + _plain(b.text),
    Text: lambda b: f"**{_plain(b.text)}**" if b.lead else _plain(b.text),
    Items: lambda b: "\n".join("- " + _plain(text) for text in b.texts),
    Table: _table_markdown,
    Figure: lambda b: f"![{_plain(b.caption)}]({b.stem}.png)\n\n{_plain(b.caption)}",
    Code: lambda b: "\n".join("    " + line for line in b.text.splitlines()),
    Folded: lambda b: f"### {_plain(b.title)}\n\n" + to_markdown(b.blocks).rstrip(),
}
