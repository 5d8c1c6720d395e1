"""HTML that cannot be injected into: whatever is not :class:`Html` is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

VOID = frozenset({"img", "br", "hr", "meta", "input"})


@dataclass(frozen=True, slots=True)
class Html:
    """A piece of finished HTML.

    Only :func:`tag`, :func:`join` and the figures of this package make it; text from users stays
    ``str`` and is escaped where it meets HTML.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.text


Content = Html | str | int | float | None


def tag(name: str, /, *children: Content, **attributes: str | int | float | bool | None) -> Html:
    """One element; text children and attribute values are escaped.

    Parameters
    ----------
    name : str
        Element name; void elements ("img") take no children.
    *children : Html, str, number or None
        ``None`` is left out.
    **attributes
        ``class_`` stands for "class", other underscores for hyphens (``aria_label``); ``None`` and
        ``False`` are left out, ``True`` is written without a value.

    Examples
    --------
    >>> print(tag("p", "a < b & ", tag("b", "c"), class_="note"))
    <p class="note">a &lt; b &amp; <b>c</b></p>
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value), quote=True)}"')
    opening = f"<{' '.join(parts)}>"
    if name in VOID:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Content], separator: str = "") -> Html:
    """Pieces one after another; those that are not HTML are escaped."""
    return Html(escape(separator).join(_text(c) for c in children if c is not None))


def _text(content: Content) -> str:
    return content.text if isinstance(content, Html) else escape(str(content), quote=False)
