"""Pages as a browser reads them: tags, ids, links, text, and whether all of it is closed and leads somewhere."""

import posixpath
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input", "col"}


class Page(HTMLParser):
    """Collects tags with their attributes, and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.parts = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.parts).split())

    @property
    def ids(self):
        return [attrs["id"] for _, attrs in self.found if attrs.get("id")]

    @property
    def links(self):
        return [attrs["href"] for _, attrs in self.found if attrs.get("href")]


def check(pages):
    """Assert that pages are well formed, load nothing, run nothing, and lead to each other; return them parsed."""
    parsed = {name: Page(html) for name, html in pages.items()}
    for name, page in parsed.items():
        assert page.open == [], name
        assert len(set(page.ids)) == len(page.ids), name
        for tag, attrs in page.found:
            assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}, (name, tag)
            assert not [a for a in attrs if a.startswith("on") or a in ("src", "srcset", "action")], (name, attrs)
        for link in page.links:
            file, _, place = link.partition("#")
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            assert ":" not in file, (name, link)
            assert goal in parsed, (name, link)
            assert not place or place in parsed[goal].ids, (name, link)
    return parsed
