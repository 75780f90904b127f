"""The API reference: a page for each room of the package, with an entry for each of its public modules.

The pages are made from the tree when the site is built, so a new file is in them without an edit anywhere.
"""

from collections import defaultdict
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TOP = "mmllm"
"""The page of the files that lie in no room."""


def rooms(package: Path) -> dict[str, list[str]]:
    """Name of a page -> dotted names of the public modules on it, in the order of the alphabet."""
    pages: dict[str, list[str]] = defaultdict(list)
    for file in sorted(package.rglob("*.py")):
        *folders, stem = file.relative_to(package).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in (*folders, stem)):
            continue
        dotted = ".".join([package.name, *folders, *([] if stem == "__init__" else [stem])])
        pages[folders[0] if folders else TOP].append(dotted)
    return dict(sorted(pages.items(), key=lambda page: (page[0] != TOP, page[0])))


def page(title: str, modules: list[str]) -> str:
    """Markdown of one page."""
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages to the navigation."""
    names = rooms(_package(config))
    config.nav.append({"API": [{name: f"reference/{name}.md"} for name in names]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages themselves."""
    for name, modules in rooms(_package(config)).items():
        title = name if name == TOP else f"{TOP}.{name}"
        files.append(File.generated(config, f"reference/{name}.md", content=page(title, modules)))
    return files


def _package(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent / "mmllm"
