"""A page read as a browser would read it, strictly: every element closed where it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}
RAW = {"script", "style"}


@dataclass
class Element:
    """A tag, its attributes, and all the text inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: list[Element] = field(default_factory=list)

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Those inside with that tag and those attributes; a class is one of several."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = []
        for element in self.inside:
            matches = all(value in element.attributes.get(name, "").split() for name, value in wanted.items())
            found += [element] if matches and tag in ("", element.tag) else []
            found += element.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Element:
        """The only such."""
        (found,) = self.all(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}> at {self.getpos()}"
        self.open.pop()
        if tag not in RAW:
            self.handle_data(" ")

    def handle_data(self, data):
        for element in self.open:
            if self.open[-1].tag not in RAW or element is self.open[-1]:
                element.text += data


def read(page: str | Path) -> Element:
    """The whole page. AssertionError for one that is not well formed."""
    reader = _Reader()
    reader.feed(page.read_text() if isinstance(page, Path) else page)
    reader.close()
    assert [element.tag for element in reader.open] == ["page"]
    return reader.open[0]


def words(element: Element) -> str:
    """Its text with single spaces."""
    return " ".join(element.text.split())
