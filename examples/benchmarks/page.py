"""Pages that several scripts share: each writes only its own part."""

from __future__ import annotations

from pathlib import Path

#: title of a page -> its parts in their order; each stands between <!-- name --> and <!-- /name -->
PAGES = {
    "# Benchmarks": ("post_training", "inversion"),
    "# Benchmark of attribution methods": ("attribution", "activations"),
}


def write_part(page: Path, name: str, text: str) -> None:
    """Replace one part of the page, which is made if there is none; leave the rest as it is.

    Parameters
    ----------
    page : Path
        Markdown file.
    name : str
        One of the parts in ``PAGES``.
    text : str
        With headings of the second level and below.

    Raises
    ------
    ValueError
        If the page is there without the part's two comments.
    """
    before, after = _around(page.read_text() if page.exists() else _empty(name), name, page)
    page.write_text(f"{before}{_opening(name)}\n\n{text.strip()}\n\n{_closing(name)}{after}")


def _around(text: str, name: str, page: Path) -> tuple[str, str]:
    before, opening, rest = text.partition(_opening(name))
    _, closing, after = rest.partition(_closing(name))
    if not (opening and closing):
        raise ValueError(
            f"{page} must hold {_opening(name)} and, after it, {_closing(name)}: what stands "
            "between them is replaced. Add the two lines, or delete the file."
        )
    return before, after


def _empty(name: str) -> str:
    title, names = next((title, names) for title, names in PAGES.items() if name in names)
    parts = (f"{_opening(name)}\n\n{_closing(name)}" for name in names)
    return "\n\n".join([title, *parts]) + "\n"


def _opening(name: str) -> str:
    return f"<!-- {name} -->"


def _closing(name: str) -> str:
    return f"<!-- /{name} -->"
