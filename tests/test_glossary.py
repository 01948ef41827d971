"""docs/glossary.md's words are each explained once, in order, and its links lead to headings that exist."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "glossary.md").read_text()
SECTIONS = [section.split("\n", 1) for section in TEXT.split("\n## ")[1:]]
# The page goes by the first letters; Greek ones stand where their names would.
SPELT = {"τ": "tau", "1:1": "0"}


def _words(section: str) -> list[str]:
    """The words that the section's entries begin with."""
    firsts = [match[1] for entry in section.split("\n\n") if (match := re.match(r"\n?\*\*([^*]+)\*\*", entry))]
    return [SPELT.get(first.split(",")[0], first.split(",")[0]).lower() for first in firsts]


@pytest.mark.parametrize(("title", "section"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_words_stand_in_order_and_once(title, section):
    words = _words(section)
    assert len(words) > 4
    assert words == sorted(set(words))


def _anchors(page: Path) -> set[str]:
    """The names by which headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["glossary", "migrating", "recipes"])
def test_links_into_pages_find_their_heading(page):
    links = re.findall(r"\]\((\w+\.md)#([^)]+)\)", (DOCS / f"{page}.md").read_text())
    for target, anchor in links:
        assert anchor in _anchors(DOCS / target), f"{target}#{anchor}"
    assert links or page != "glossary"
