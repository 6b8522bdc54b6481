"""A whole page: one HTML file, no script, no other resource."""

from html import escape
from pathlib import Path
from string import Template

from .markup import facts as facts_html

HERE = Path(__file__).parent


def document(
    *, kind: str, title: str, heading: str, facts: list[tuple[str, str]], sections: list[str], footer: str
) -> str:
    """The page as text. heading and sections: HTML; the rest: plain text."""
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        kind=escape(kind),
        title=escape(title),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        heading=heading,
        facts=facts_html(facts),
        sections="\n".join(part for part in sections if part),
        footer=escape(footer),
    )
