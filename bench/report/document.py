"""A report as a list of blocks, written as Markdown or as one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2530; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #d5dbe3; padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f2f5f8; }
img { max-width: 100%; }
.note { color: #51606f; }
"""


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column is text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Image:
    """A PNG picture."""

    name: str
    """Of its file, without suffix."""
    alt: str
    png: bytes


Block = Heading | Paragraph | Table | Image


def to_markdown(blocks: Sequence[Block], images: str) -> str:
    """Return Markdown; pictures are linked as ``<images>/<name>.png``."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Paragraph():
                parts.append(block.text)
            case Image():
                parts.append(f"![{block.alt}]({images}/{block.name}.png)")
            case Table():
                lines = [block.header, ["---", *["---:"] * (len(block.header) - 1)], *block.rows]
                parts.append("\n".join(f"| {' | '.join(_cells(line))} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return one HTML page with its pictures inside."""
    body = []
    for block in blocks:
        match block:
            case Heading():
                body.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
            case Paragraph():
                body.append(f'<p class="note">{html.escape(block.text)}</p>')
            case Image():
                data = base64.b64encode(block.png).decode()
                alt = html.escape(block.alt)
                body.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
            case Table():
                body.append(_html_table(block))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.header, 'th')}</thead><tbody>{rows}</tbody></table>"


def _cells(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]
