"""Tables, pictures and pages: right numbers, escaped text, nothing from the network."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import InvalidInputError
from fishertope.core.report import (
    Column,
    Html,
    Page,
    Table,
    bars,
    curves,
    heatmap,
    image_strip,
    one_line,
    png,
    repr_html,
    rich_panel,
    tag,
)
from fishertope.core.report.figures import figure_svg, log_scale
from fishertope.core.report.page import card, details, grid, key_facts

EVIL = "<script>alert('x')</script>&\"[red]"


class Strict(HTMLParser):
    """Every element is closed in order; collects names, attributes and text."""

    VOID = ("img", "br", "hr", "meta", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def terminal(item: object, width: int = 100) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(item)
    return stream.getvalue()


@pytest.fixture
def table() -> Table:
    return Table(
        title="Title " + EVIL,
        note="Note " + EVIL,
        columns=[
            Column(name="name " + EVIL, left=True),
            Column(name="share", format=".1%", help="of the mass " + EVIL),
            Column(name="ok"),
        ],
        rows=[[EVIL, 0.1234, True], ["b", None, False]],
    )


def test_a_table_says_the_same_everywhere(table: Table) -> None:
    seen = Strict(table.html().text)
    shown = terminal(table)
    for text in ("12.3%", "yes", "no", "–", "Title " + EVIL, "Note " + EVIL, "name " + EVIL):
        assert any(text in word for word in seen.words)
        assert text in shown
    assert "script" not in seen.names
    assert table._repr_html_() == table.html().text


def test_a_row_of_the_wrong_length() -> None:
    with pytest.raises(InvalidInputError, match="Row 1 has 2 cells; there are 1 columns"):
        Table(columns=[Column(name="a")], rows=[[1], [1, 2]])


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_text_never_becomes_markup(text: str, attribute: str) -> None:
    seen = Strict(tag("p", text, title=attribute).text)
    assert seen.names == ["p"]
    assert [k for k, _ in seen.attributes] == ["title"]
    # Parsers read carriage returns and NUL their own way; everything else comes back.
    plain = text.replace("\r", "").replace("\0", "")
    if plain == text:
        assert "".join(seen.words) == text


def test_attributes() -> None:
    made = tag("div", None, "x", class_="a", aria_label="b", hidden=True, id=None, lang=False)
    assert made.text == '<div class="a" aria-label="b" hidden>x</div>'


def test_a_page_escapes_text_and_loads_nothing(table: Table) -> None:
    page = Page(EVIL, subtitle=EVIL)
    page.lead(EVIL, tag("b", EVIL))
    page.add(
        EVIL,
        table.html(),
        grid(card(EVIL, EVIL, aside=EVIL, meter=2.0)),
        details(EVIL, EVIL),
        key_facts({EVIL: EVIL}),
        image_strip([np.zeros((2, 2))], [EVIL], alt=[EVIL], marked=[True]),
        heatmap(np.eye(2), [EVIL, "b"], ["c", EVIL], label=EVIL, low=0, high=1, corner=EVIL),
        bars(np.array([1.0, 2.0]), [EVIL, "b"], label=EVIL, axis=EVIL, percent=True),
        curves(
            {EVIL: (np.arange(1.0, 4), np.arange(1.0, 4))},
            label=EVIL,
            x_label=EVIL,
            y_label=EVIL,
        ),
    )
    page.section(EVIL, EVIL)
    page.footer(EVIL)
    text = page.render()
    seen = Strict(text)
    assert "script" not in seen.names
    assert {"link", "iframe", "object", "base"}.isdisjoint(seen.names)
    assert sum(EVIL in word for word in seen.words) >= 15
    for name, value in seen.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value is not None
            assert value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in text
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.startswith("#")
    assert re.search(r'<meta name="viewport" content="width=device-width', text)
    assert "prefers-color-scheme:dark" in text


def test_ids_do_not_collide_and_are_found() -> None:
    x = np.arange(1.0, 4)
    one, two = (
        curves({"a": (x, x)}, label=label, x_label="x", y_label="y").text for label in ("1", "2")
    )
    ids = [re.findall(r'\bid="([^"]+)"', t) for t in (one, two)]
    assert ids[0]
    assert set(ids[0]).isdisjoint(ids[1])
    for text, known in zip((one, two), ids, strict=True):
        used = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
        assert used
        assert set(used) <= set(known)


def test_figures_repeat_and_follow_the_theme() -> None:
    x = np.array([0.1, 1.0, 10.0])

    def make() -> str:
        return curves(
            {"one": (x, x), "two": (x, 2 * x)},
            label="a label",
            x_label="x",
            y_label="y",
            log_x=True,
            log_y=True,
            bands={"one": (x / 2, x * 2)},
            dashed=["two"],
        ).text

    text = make()
    assert make() == text
    assert "var(--c1" in text
    assert "var(--ink" in text
    assert not re.search("#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text)
    assert ">one<" in text  # words stay words
    Strict(text)


def test_figures_leave_matplotlib_as_it_was() -> None:
    code = (
        "import sys, numpy as np\n"
        "import fishertope.core.report as r\n"
        "assert not {'matplotlib', 'rich', 'scipy'} & set(sys.modules), 'imported too early'\n"
        "import matplotlib as mpl\n"
        "before = mpl.rcParams.copy()\n"
        "r.bars(np.ones(2), ['a', 'b'], label='l')\n"
        "assert dict.__eq__(mpl.rcParams, before)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_heatmap_shades() -> None:
    values = np.array([[0.5, 1.5], [np.nan, -1.0]])
    text = heatmap(values, ["a", "b"], ["c", "d"], label="h", low=0.0, high=1.0).text
    assert re.findall(r"--s:([\d.]+)", text) == ["0.500", "1.000", "0.000"]
    assert "nan" not in text
    with pytest.raises(InvalidInputError, match="2 rows and 1 columns"):
        heatmap(values, ["a", "b"], ["c"], label="h", low=0.0, high=1.0)


def test_what_cannot_be_drawn() -> None:
    x = np.array([0.0, np.nan])
    with pytest.raises(InvalidInputError, match="NaN"):
        curves({"a": (x, x)}, label="", x_label="", y_label="")
    with pytest.raises(InvalidInputError, match="NaN"):
        bars(x, ["a", "b"], label="")
    with pytest.raises(InvalidInputError, match="at most 5"):
        curves({str(i): (x, x) for i in range(6)}, label="", x_label="", y_label="")


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3)])
def test_png_is_read_back_by_another_program(shape: tuple[int, ...]) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    read = np.asarray(image_module.open(io.BytesIO(png(image))))
    np.testing.assert_array_equal(read, image)
    floats = np.asarray(image_module.open(io.BytesIO(png(image / 255.0))))
    np.testing.assert_array_equal(floats, image)


@pytest.mark.parametrize(
    "image", [np.zeros(3), np.zeros((2, 2, 4)), np.zeros((0, 2)), np.full((2, 2), np.nan)]
)
def test_png_refuses(image: np.ndarray) -> None:
    with pytest.raises(InvalidInputError):
        png(image)


def test_image_strip_embeds_the_images() -> None:
    images = [np.zeros((2, 2)), np.ones((2, 2))]
    text = image_strip(images, ["a", "b"], alt=["one", "two"], marked=[False, True]).text
    found = re.findall(r"base64,([^\"]+)", text)
    assert [base64.b64decode(f) for f in found] == [png(i) for i in images]
    assert text.count('class="marked"') == 1


def test_show() -> None:
    facts = {"n": 3, "loss": 0.123456, "status": "converged", "ok": True}
    assert one_line("Fit", facts) == "Fit(n=3, loss=0.1235, status='converged', ok=True)"
    table = Table(columns=[Column(name="a")], rows=[[1]])
    text = repr_html("Fit " + EVIL, facts, table.html())
    assert "script" not in Strict(text).names
    assert "0.1235" in text
    shown = terminal(rich_panel("Fit", facts, table))
    assert "0.1235" in shown
    assert "converged" in shown


def test_html_shows_itself() -> None:
    assert str(Html("<b>x</b>")) == Html("<b>x</b>")._repr_html_() == "<b>x</b>"


def test_results_show_themselves_in_notebooks_and_terminals():
    from io import StringIO

    from rich.console import Console

    from fishertope.core.factorization import LowRankNPEFF, factorize, perturbation_report
    from fishertope.core.fisher import per_example_fishers
    from fishertope.core.model import DenseNetwork

    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    x = rng.normal(size=(30, 4))
    fishers = per_example_fishers(net, x)
    found = factorize(fishers, LowRankNPEFF(2), on_failure="return")
    report = perturbation_report(net, found, x, magnitude=0.1, n_top=5)
    diagonal = per_example_fishers(net, x, kind="diagonal")
    for result, words in (
        (fishers, "rows an example"),
        (diagonal, "median trace"),
        (found, "share of Fisher mass"),
        (report, "KL-ratio"),
    ):
        assert "\n" not in repr(result)
        page = result._repr_html_()
        assert words in page
        assert "<script" not in page
        shown = StringIO()
        Console(width=120, file=shown).print(result)
        assert words in shown.getvalue()
    assert "<svg" in found._repr_html_()


@pytest.mark.parametrize(("high", "plain"), [(3.0, True), (3e4, False)])
def test_log_axes_show_few_plain_numbers_over_short_ranges(high, plain):
    def draw(axes):
        axes.plot([0.2, high], [0.2, high])
        log_scale(axes, "x", "y")

    text = str(figure_svg(draw, label="a line"))
    assert (">0.5<" in text) == plain
    assert len(re.findall(r"<text", text)) <= 20
