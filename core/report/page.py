"""One HTML page that carries everything it shows: no network, no script, any screen."""

from __future__ import annotations

from collections.abc import Mapping

from .markup import Content, Html, join, tag

STYLE = """
:root,:scope{--paper:#fdfdfc;--card:#fff;--ink:#1c1f24;--soft:#5b6470;--faint:#d4d8de;--c1:#2563eb;
--c2:#c2570c;--c3:#64748b;--c4:#047857;--c5:#a21caf;--heat:37 99 235;--warm:194 87 12;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root,:scope{--paper:#14161a;--card:#1c1f25;--ink:#e8eaed;
--soft:#a3abb7;--faint:#3a404a;--c1:#7aa5ff;--c2:#f2a35e;--c3:#94a3b8;--c4:#4ecb9c;--c5:#e58bf0;
--heat:96 146 255;--warm:242 163 94}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:66rem;margin:0 auto;padding:1.6rem 1.2rem 4rem}
h1{font-size:1.55rem;line-height:1.25;margin:.2rem 0 .3rem}
h2{font-size:1.2rem;margin:2.6rem 0 .5rem;padding-top:.9rem;border-top:1px solid var(--faint)}
h3{font-size:1rem;margin:0}
p,ul,ol{max-width:46rem;margin:.5rem 0}
.subtitle,.note,figcaption,caption{color:var(--soft)}
.note{font-size:.86rem}
.lead{font-size:1.13rem;line-height:1.5;max-width:52rem;margin:.7rem 0 1.1rem}
.scroll,.figure{overflow-x:auto;margin:.7rem 0}
.figure svg{width:100%;height:auto;min-width:20rem;display:block}
.figure text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",
sans-serif!important}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0;font-weight:600}
th,td{padding:.22rem .6rem;text-align:right;border-bottom:1px solid var(--faint);white-space:nowrap}
th{font-weight:600}
.left{text-align:left}
td.left{white-space:normal;min-width:7rem}
.heat td{background:rgb(var(--heat)/calc(var(--s,0)*.62));border:1px solid var(--paper);
padding:.16rem .45rem;text-align:center}
.heat th{border:0;font-weight:500;padding:.16rem .45rem;text-align:center}
.heat th.left{text-align:left;white-space:nowrap;position:sticky;left:0;background:var(--paper)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18.5rem),1fr));gap:.8rem;
margin:.8rem 0}
.card{background:var(--card);border:1px solid var(--faint);border-radius:.6rem;padding:.75rem .9rem}
.card p{margin:.25rem 0;font-size:.9rem}
.card h3{display:flex;justify-content:space-between;gap:.6rem;align-items:baseline}
.card h3 small{font-weight:500;color:var(--soft);white-space:nowrap}
.meter{height:.35rem;border-radius:.2rem;background:var(--faint);margin:.35rem 0 .5rem}
.meter i{display:block;height:100%;border-radius:.2rem;background:var(--c1)}
.tabled{display:flex;flex-wrap:wrap;gap:0 2.4rem;align-items:flex-start}
.tabled>div{min-width:0;max-width:100%}
.tabled ul{flex:1 1 17rem;padding-left:1.1rem}
.strip{display:flex;flex-wrap:wrap;gap:.3rem;margin:.3rem 0}
.strip figure{margin:0;text-align:center}
.strip span{display:block;border-radius:.2rem;outline:1px solid var(--faint);overflow:hidden}
.strip img{display:block;width:100%;image-rendering:pixelated}
.strip .marked span{outline:2px solid var(--c2)}
.strip figcaption{font-size:.72rem;line-height:1.3}
.strip .marked figcaption{color:var(--c2);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.6rem 1.4rem;
margin:1.1rem 0 .6rem;padding:0;list-style:none;max-width:none}
.facts b{display:block;font-size:1.3rem;line-height:1.25}
.facts li{color:var(--soft);font-size:.86rem;line-height:1.4}
.facts b{color:var(--ink)}
.card .strip{display:grid;grid-template-columns:repeat(6,1fr);gap:.35rem}
.card .strip span{width:100%!important}
.quotes{list-style:none;padding:0;margin:.35rem 0;font-size:.88rem;line-height:1.45}
.quotes li{padding:.18rem 0 .18rem .6rem;border-left:2px solid var(--faint);margin:.25rem 0;
overflow-wrap:anywhere}
.quotes li.marked{border-left-color:var(--c2)}
.quotes small{color:var(--soft)}
mark{background:rgb(var(--heat)/calc(var(--s,0)*.6));color:inherit;border-radius:.2rem;
padding:0 .08em}
mark.less{background:none;box-shadow:inset 0 -.14em 0 rgb(var(--warm)/calc(var(--s,0)*.9))}
.big{font-size:1.02rem;font-weight:600;line-height:1.3}
.stat{font-size:.84rem;color:var(--soft)}
.stat b{color:var(--ink)}
.stat .good{color:var(--c4)}
.chips{display:flex;flex-wrap:wrap;gap:.25rem;margin:.3rem 0;padding:0;list-style:none}
.chips li{font-size:.76rem;border:1px solid var(--faint);border-radius:1rem;padding:.03rem .5rem;
color:var(--soft)}
.plain{list-style:none;padding:0;font-size:.9rem;margin:.3rem 0}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--c1)}
code{font-size:.9em;overflow-wrap:anywhere}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--faint);color:var(--soft);
font-size:.84rem}
@media(prefers-color-scheme:dark){.strip img{filter:invert(.88)}}
@media(max-width:30rem){main{padding:1rem .8rem 3rem}h1{font-size:1.3rem}.lead{font-size:1.03rem}}
"""


class Page:
    """A self-contained page, built from the top down.

    Text is escaped; only :class:`~fishertope.core.report.Html` is taken as it is.

    Parameters
    ----------
    title : str
    subtitle : str

    Examples
    --------
    >>> page = Page("What was found", subtitle="An example")
    >>> page.lead("Nothing < anything.")
    >>> page.section("Details", "A paragraph.")
    >>> "Nothing &lt; anything." in page.render()
    True
    """

    def __init__(self, title: str, *, subtitle: str = "") -> None:
        self.title = title
        self._blocks: list[Content] = [tag("h1", title)]
        if subtitle:
            self._blocks.append(tag("p", subtitle, class_="subtitle"))
        self._footer: list[Content] = []

    def lead(self, *text: Content) -> None:
        """The finding, in a sentence or two, in larger letters."""
        self._blocks.append(tag("p", *text, class_="lead"))

    def add(self, *blocks: Content) -> None:
        """Blocks; text becomes a paragraph."""
        self._blocks += [_block(b) for b in blocks]

    def section(self, heading: str, *blocks: Content) -> None:
        """A heading with blocks under it."""
        self._blocks.append(tag("section", tag("h2", heading), *(_block(b) for b in blocks)))

    def footer(self, *blocks: Content) -> None:
        """What stands at the end: how the page was made."""
        self._footer += [_block(b) for b in blocks]

    def render(self) -> str:
        """The whole page as text."""
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("title", self.title),
            Html(f"<style>{STYLE}</style>"),
        )
        footer = tag("footer", *self._footer) if self._footer else None
        body = tag("body", tag("main", *self._blocks, footer))
        return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def paragraph(*text: Content) -> Html:
    """A paragraph."""
    return tag("p", *text)


def note(*text: Content) -> Html:
    """A paragraph in smaller, softer letters."""
    return tag("p", *text, class_="note")


def details(summary: str, *blocks: Content) -> Html:
    """Blocks that open on a click."""
    return tag("details", tag("summary", summary), *(_block(b) for b in blocks))


def grid(*cards: Content) -> Html:
    """Cards side by side, as many as the screen takes."""
    return tag("div", *cards, class_="grid")


def card(title: str, *blocks: Content, aside: str = "", meter: float | None = None) -> Html:
    """A framed block with a heading; ``meter`` draws a bar from 0 to 1 under it."""
    bar = None
    if meter is not None:
        width = 100 * min(max(meter, 0.0), 1.0)
        bar = tag("div", tag("i", style=f"width:{width:.1f}%"), class_="meter", aria_hidden="true")
    small = tag("small", aside) if aside else None
    heading = tag("h3", tag("span", title), small)
    return tag("article", heading, bar, *(_block(b) for b in blocks), class_="card")


def key_facts(facts: Mapping[str, str]) -> Html:
    """A few numbers in large letters, each with what it is."""
    return tag("ul", *(tag("li", tag("b", v), k) for k, v in facts.items()), class_="facts")


def bullets(*items: Content) -> Html:
    """A list."""
    return tag("ul", *(tag("li", i) for i in items))


def _block(block: Content) -> Content:
    return block if isinstance(block, Html) or block is None else join([tag("p", block)])
