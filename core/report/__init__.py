"""Results that show themselves: tables, pictures, and one page that needs no network."""

from .alignment import Alignment as Alignment, align as align, auroc as auroc
from .decomposition import (
    DecompositionReport as DecompositionReport,
    Examples as Examples,
    decomposition_report as decomposition_report,
)
from .enrichment import Enrichment as Enrichment, Finding as Finding, enrich as enrich
from .features import Feature as Feature
from .figures import bars as bars, curves as curves, figure_svg as figure_svg, heatmap as heatmap
from .images import image_strip as image_strip, png as png
from .markup import Html as Html, join as join, tag as tag
from .page import Page as Page
from .show import (
    framed as framed,
    one_line as one_line,
    repr_html as repr_html,
    rich_panel as rich_panel,
)
from .tables import Column as Column, Table as Table
from .text_tokens import spans as spans
from .trace_picture import trace_svg as trace_svg
