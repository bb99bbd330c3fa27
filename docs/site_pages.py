"""Hook of MkDocs: make the site from the documents under their paths in the repository, so that their links work unchanged."""

import re
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import shufflenetv2

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#:]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the documents, the files of the repository that they link to, and a page with the public functions and classes."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]
    linked = {
        (document.parent / link).resolve()
        for document in documents
        for link in LINK.findall(document.read_text(encoding="utf-8"))
    }
    paths = sorted({*documents, *(path for path in linked if path.is_file())})
    theme = [file for file in files if not str(file.abs_src_path).startswith(config.docs_dir)]
    pages = [File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    return Files([*theme, *pages, File.generated(config, "docs/api.md", content=api_page())])


def api_page() -> str:
    """Return a page that names every public function and class, for mkdocstrings to replace by their documentation."""
    lines = ["# API", "", "## shufflenetv2", ""]
    names = [name for name in shufflenetv2.__all__ if name[0] != "_" and name not in shufflenetv2.PACKAGES]
    lines += [reference(getattr(shufflenetv2, name)) for name in names]
    for package in (getattr(shufflenetv2, name) for name in shufflenetv2.PACKAGES):
        lines += [f"## {package.__name__}", "", f"{package.__doc__}", ""]
        public = [value for name, value in vars(package).items() if name[0] != "_" and (isclass(value) or isfunction(value))]
        lines += [reference(value) for value in public if value.__module__.startswith("shufflenetv2.")]
    return "\n".join(lines)


def reference(value: Any) -> str:
    return f"::: {value.__module__}.{value.__qualname__}\n"
