"""Small pieces of HTML. Everything that is not HTML already is escaped here."""

from html import escape

from .figure import Drawing


def picture(drawing: Drawing) -> str:
    """A drawing that follows the reader's light or dark theme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{drawing.dark}">'
        f'<img src="{drawing.light}" alt="{escape(drawing.alt)}"></picture>'
    )


def image(uri: str, alt: str, caption: str, *, smooth: bool = False) -> str:
    kind = ' class="smooth"' if smooth else ""
    drawn = f'<img src="{uri}" alt="{escape(alt)}"{kind}>'
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def section(heading: str, introduction: str, body: str) -> str:
    """introduction: plain text, "" for none; body: HTML."""
    said = f'<p class="quiet">{escape(introduction)}</p>' if introduction else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{body}</section>"


def facts(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)


def table(pairs: list[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs)
    return f"<table>{rows}</table>"


def folded(heading: str, body: str, *, opened: bool = False) -> str:
    state = " open" if opened else ""
    return f'<details class="card"{state}><summary>{escape(heading)}</summary>{body}</details>'


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text) rows."""
    if isinstance(value, dict):
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, "none" if value is None else str(value))]
