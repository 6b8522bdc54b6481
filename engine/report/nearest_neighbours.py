"""The section that says what training gained: k-NN accuracy before and after."""

from html import escape

from .markup import section

ROWS = (("pixels", "raw pixels"), ("random", "random encoder, before"), ("trained", "trained encoder, after"))


def knn_section(summary: dict) -> str:
    """Bars of summary["knn"] with the chance level; "" where nothing was evaluated."""
    knn = summary.get("knn")
    given = {key: share(knn.get(key)) for key, _ in ROWS} if isinstance(knn, dict) else {}
    values = {key: value for key, value in given.items() if value is not None}
    if not values:
        return ""
    chance = share(summary.get("chance"))
    rows = "".join(_row(key, name, values[key], chance) for key, name in ROWS if key in values)
    body = f'<div class="card">{_verdict(values)}<div class="bars">{rows}</div>{_chance(chance)}</div>'
    k = f" of the {summary['knn_k']} nearest neighbours" if isinstance(summary.get("knn_k"), int) else ""
    said = f"Top-1 accuracy of a weighted vote{k}, by cosine similarity of frozen features."
    return section("k-NN before and after", said, body)


def share(value: object) -> float | None:
    """`value` where it is a number in [0, 1]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 <= value <= 1 else None


def _verdict(values: dict[str, float]) -> str:
    if "trained" not in values:
        return ""
    gains = [
        f"{100 * (values['trained'] - values[key]):+.1f} points over {name}"
        for key, name in (("random", "the random encoder"), ("pixels", "raw pixels"))
        if key in values
    ]
    text = f"{100 * values['trained']:.1f} %" + (f": {', '.join(gains)}" if gains else "")
    return f'<p class="verdict">{escape(text)}</p>'


def _row(key: str, name: str, value: float, chance: float | None) -> str:
    tick = "" if chance is None else f'<div class="tick" style="left: {100 * chance:.2f}%"></div>'
    return (
        f'<div class="row {key}"><span>{escape(name)}</span>'
        f'<div class="track"><div class="fill" style="width: {100 * value:.2f}%"></div>{tick}</div>'
        f'<span class="value">{100 * value:.1f} %</span></div>'
    )


def _chance(chance: float | None) -> str:
    if chance is None:
        return ""
    return f'<p class="quiet" style="margin: 1rem 0 0">Dashed line: chance, {100 * chance:.3g} %.</p>'
