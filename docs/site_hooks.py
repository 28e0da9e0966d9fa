"""For mkdocs: files of the repository that pages link to are not part of the site, so their links become paths."""

import re
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[text](../path)` to its text and the path."""
    return OUTSIDE.sub(lambda found: _path(*found.groups()), markdown)


def _path(text: str, path: str) -> str:
    return f"`{path}`" if text in path else f"{text} (`{path}`)"
