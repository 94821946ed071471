"""Every relative link of the Markdown files leads to a file, and to a heading of it where it names
one, as GitHub shows them; and the README leads to every page."""

import re
from pathlib import Path

import pytest

from fastfood import guides

PAGES = sorted(Path(guides.__file__).parent.glob("*.md"))
ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
if not FILES[0].exists():
    pytest.skip("needs the repository, not its copy", allow_module_level=True)


def prose(file):
    """A file's text without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def headings(file):
    """The anchors that GitHub gives the headings of a file."""
    found = re.findall(r"^#+ (.*)$", prose(file), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]


def links(file):
    """(file, anchor) of each relative link."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(file)):
        if ":" not in target:
            path, _, anchor = target.partition("#")
            yield (file.parent / path).resolve() if path else file, anchor


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_relative_link_leads_somewhere(file):
    for target, anchor in links(file):
        assert target.is_file(), target
        assert not anchor or anchor in headings(target), f"{target.name}#{anchor}"


def test_the_readme_and_the_gallery_link_to_every_page():
    assert {target for target, _ in links(ROOT / "README.md")} >= set(PAGES)
    gallery = ROOT / "fastfood" / "guides" / "gallery.md"
    assert {target for target, _ in links(gallery)} >= {*PAGES} - {gallery}


def test_no_two_pages_share_a_heading():
    """The docs put all pages into one, where a link names nothing but a heading."""
    found = [heading for page in PAGES for heading in headings(page)]
    assert [heading for heading in found if found.count(heading) > 1] == []
    assert all(headings(page) for page in PAGES)
