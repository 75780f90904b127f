"""Pages whose text lies elsewhere in the repository, and links to files that are no pages.

A link in the docs is one that works in the repository. Here it is turned into one that works on the site: to the page
that shows the file, or, for code and other files, to plain text.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "mmllm/default_model/README.md": "default-model.md",
    "mmllm/default_model_speaks/README.md": "default-model-speaks.md",
}
"""File of the repository -> page of the site."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds pages of the docs that the navigation does not name to its end, so that each can be reached."""
    listed = str(config.nav)
    pages = sorted(page.name for page in Path(config.docs_dir).glob("*.md"))
    if more := [page for page in pages if f"'{page}'" not in listed]:
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    root = Path(config.config_file_path).parent
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of one page."""
    shown = page.file.src_uri
    sources = {to: source for source, to in OUTSIDE.items()}
    return rewritten(markdown, sources.get(shown, f"docs/{shown}"), shown)


def rewritten(markdown: str, source: str, page: str) -> str:
    """Text in which links from `source`, a path in the repository, lead from `page` to pages of the site.

    A link to a file that the site does not have keeps its words and loses its target.
    """

    def replace(link: re.Match[str]) -> str:
        picture, words, path, anchor = link.groups(default="")
        target = os.path.normpath(PurePosixPath(source).parent / path).replace(os.sep, "/")
        if target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif target in OUTSIDE:
            place = OUTSIDE[target]
        elif target == "README.md":
            place = "index.md"
        else:
            return words
        return f"{picture}[{words}]({os.path.relpath(place, PurePosixPath(page).parent).replace(os.sep, '/')}{anchor})"

    return LINK.sub(replace, markdown)
