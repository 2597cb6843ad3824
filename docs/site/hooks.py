"""Makes the docs site out of the repository's own pages: README.md is its front page, and links that leave docs/ for
files of the repository stand as names, since the site has no copy of them.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[([^]]+)\]\(([^)\s]+)\)")


def on_files(files, config):
    readme = LINK.sub(from_docs, (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=readme))
    return files


def from_docs(match: re.Match) -> str:
    """A link of README.md, seen from docs/."""
    image, text, target = match.groups()
    inside = target.removeprefix("docs/") if target.startswith("docs/") else target
    outside = inside == target and "://" not in target and not target.startswith("#")
    return f"{image}[{text}]({'../' if outside else ''}{inside})"


def on_page_markdown(markdown, page, config, files):
    return LINK.sub(without_links_outside, markdown)


def without_links_outside(match: re.Match) -> str:
    """``[text](../file)`` as the file's name; the file has to be there."""
    _, text, target = match.groups()
    if not target.startswith("../"):
        return match.group()
    path = target.removeprefix("../").partition("#")[0]
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"the pages link to {path}, which the repository lacks")
    return text if path in text else f"{text} (`{path}`)"
