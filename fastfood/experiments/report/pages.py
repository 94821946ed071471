"""A report as a list of blocks, and how it becomes Markdown and one self-contained HTML page: no
script, no font and no picture from elsewhere; figures are SVG inside the page."""

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple


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
    blocks: list
    opened: bool = False


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Liberation Sans", sans-serif; color: #1b1b1b;
  background: #fff; max-width: 58rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; font-weight: 600; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums;
  margin: .4rem 0 .8rem; }
th, td { text-align: left; vertical-align: top; padding: .22rem .7rem .22rem 0;
  border-bottom: 1px solid #e6e6e6; }
td { min-width: 2.5rem; max-width: 24rem; overflow-wrap: break-word; }
td:first-child { white-space: nowrap; }
th { font-weight: 600; border-bottom: 1.5px solid #888; }
.r { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0 1.6rem; }
img { display: block; width: 100%; height: auto; max-width: 44rem; }
img.wide { max-width: none; }
figcaption { font-size: .86rem; color: #444; max-width: 46rem; margin-top: .4rem; }
pre { font-size: .82rem; background: #f5f5f5; padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; margin: .5rem 0; }
@media (max-width: 40rem) { img.wide { min-width: 44rem; } }
@media print { body { font-size: 10pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; } figure, tr, pre { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""


def to_html(title: str, blocks: list, folder: Path, reload: int | None) -> str:
    """The whole page. Figures are read from `folder`; with `reload` the page loads itself anew
    after so many seconds."""
    refresh = f'<meta http-equiv="refresh" content="{reload}">\n' if reload else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{refresh}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(_html(block, folder) for block in blocks)
        + "\n</body>\n</html>\n"
    )


def _html(block, folder: Path) -> str:
    return _HTML[type(block)](block, folder)


def _table_html(table: Table, folder: Path) -> str:
    def row(tag: str, cells: list[str]) -> str:
        marked = [
            f"<{tag}{' class=r' if side == 'r' else ''}>{escape(cell)}</{tag}>"
            for side, cell in zip(table.align, cells, strict=True)
        ]
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(row("td", cells) for cells in table.rows)
    head = row("th", table.header)
    return (
        f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _figure_html(figure: Figure, folder: Path) -> str:
    picture = base64.b64encode(Path(folder, f"{figure.stem}.svg").read_bytes()).decode()
    look = " class=wide" if figure.wide else ""
    caption = escape(figure.caption)
    return (
        f'<figure><div class="scroll"><img{look} alt="{caption}" '
        f'src="data:image/svg+xml;base64,{picture}"></div>\n'
        f"<figcaption>{caption} Files: {figure.stem}.png, {figure.stem}.svg.</figcaption></figure>"
    )


def _folded_html(folded: Folded, folder: Path) -> str:
    inner = "\n".join(_html(block, folder) for block in folded.blocks)
    opened = " open" if folded.opened else ""
    return f"<details{opened}><summary>{escape(folded.title)}</summary>\n{inner}\n</details>"


_HTML: dict[type, Callable] = {
    Heading: lambda b, _: f"<h{b.level}>{escape(b.text)}</h{b.level}>",
    Text: lambda b, _: f"<p{' class=lead' if b.lead else ''}>{escape(b.text)}</p>",
    Items: lambda b, _: "<ul>\n" + "".join(f"<li>{escape(t)}</li>\n" for t in b.texts) + "</ul>",
    Table: _table_html,
    Figure: _figure_html,
    Code: lambda b, _: f"<pre>{escape(b.text)}</pre>",
    Folded: _folded_html,
}


def to_markdown(blocks: list) -> str:
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
