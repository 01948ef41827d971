"""The report's page: HTML and CSS of one file that needs nothing else.

Owns how things look; what they say comes from the sections. Every function returns HTML; text that came from outside
goes through `escape` here, so that callers hand over plain text except where an argument is called `html`.
Proven by tests/eval/test_report.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from eval import plots

STYLE = """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--surface); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
main, header, footer { max-width: 1264px; margin: 0 auto; padding: 0 16px }
header { padding-top: 28px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere }
h2 { font-size: 20px; margin: 40px 0 4px; padding-top: 14px; border-top: 1px solid var(--grid) }
h3 { font-size: 16px; margin: 26px 0 6px; overflow-wrap: anywhere }
p { margin: 6px 0 10px; max-width: 78ch; overflow-wrap: anywhere }
.muted, figcaption, footer { color: var(--muted); font-size: 13px }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 0 }
a { color: var(--c0) }
nav a { text-decoration: none }
nav a:hover { text-decoration: underline }
footer { margin-top: 48px; padding-bottom: 40px; overflow-wrap: anywhere }
.models { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0; list-style: none }
.model { display: inline-flex; align-items: baseline; gap: 7px; overflow-wrap: anywhere }
.model::before { content: ""; flex: none; width: 11px; height: 11px; border-radius: 3px; background: var(--model) }
.scroll { overflow-x: auto; margin: 8px 0 14px; border: 1px solid var(--grid); border-radius: 8px;
  max-width: max-content }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--grid) }
thead th { border-top: 0; color: var(--muted); font-weight: 600; font-size: 13px; vertical-align: bottom }
tr.first > * { border-top: 1px solid var(--axis) }
th[scope="row"] { font-weight: 500 }
.text { text-align: left }
td.wrap, th.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 14em; max-width: 26em }
th.pin { position: sticky; left: 0; z-index: 1; background: var(--surface) }
.best { font-weight: 700 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 356px), 1fr)); gap: 18px 20px;
  margin: 12px 0 }
.plots svg.plot { width: 100%; max-width: 460px; height: auto; display: block }
details { margin: 8px 0; border: 1px solid var(--grid); border-radius: 8px; padding: 0 14px }
details[open] { padding-bottom: 10px }
summary { cursor: pointer; padding: 8px 0; font-weight: 600; overflow-wrap: anywhere }
.sheet { display: flex; flex-wrap: wrap; gap: 12px; margin: 10px 0 16px }
.sheet figure { margin: 0; width: max-content; max-width: 100% }
.sheet img { width: 76px; height: 76px; border-radius: 4px; display: inline-block; vertical-align: top;
  background: var(--grid) }
.sheet img + img { margin-left: 3px }
.sheet figcaption { font-variant-numeric: tabular-nums }
ul.notes { padding-left: 20px; max-width: 90ch; overflow-wrap: anywhere }
@media (max-width: 600px) {
  body { font-size: 16px }
  h1 { font-size: 22px }
  th, td { padding: 6px 9px }
  th.pin { min-width: 36vw; max-width: 44vw; white-space: normal; overflow-wrap: anywhere }
  nav a { padding: 5px 0 }
  .sheet { gap: 10px }
}
@media print { details > * { display: block } .plots { break-inside: avoid } }
""".strip()


@dataclass(frozen=True)
class Cell:
    """A table's cell. row: it heads its row.  pin: it stays when the table scrolls.  model: number of its colour."""

    text: str
    row: bool = False
    text_left: bool = False
    best: bool = False
    pin: bool = False
    wrap: bool = False
    model: int | None = None

    def html(self) -> str:
        """The cell as `<td>` or `<th>`."""
        names = [("text", self.text_left or self.row), ("best", self.best), ("pin", self.pin), ("wrap", self.wrap)]
        classes = " ".join(name for name, wanted in names if wanted)
        attributes = (' scope="row"' if self.row else "") + (f' class="{classes}"' if classes else "")
        inner = breakable(self.text) if self.row else escape(self.text)
        if self.model is not None:
            inner = chip(self.text, self.model, breaks=self.row)
        tag = "th" if self.row else "td"
        return f"<{tag}{attributes}>{inner}</{tag}>"


def breakable(name: str) -> str:
    """A name that may be broken where a reader would: behind its underscores, dots, slashes and hyphens."""
    return re.sub(r"([_./\-])(?=\w)", r"\1<wbr>", escape(name))


def color(model: int) -> str:
    """Name of a model's colour, the same in every plot."""
    return f"c{model % plots.SERIES_COLORS}"


def chip(name: str, model: int, breaks: bool = False) -> str:
    """A model's name behind its colour."""
    inner = breakable(name) if breaks else escape(name)
    return f'<span class="model" style="--model: var(--{color(model)})"><span>{inner}</span></span>'


def model_list(names: Sequence[str]) -> str:
    """All models and their colours."""
    return f'<ul class="models">{"".join(f"<li>{chip(name, number)}</li>" for number, name in enumerate(names))}</ul>'


def table(columns: Sequence[Cell | str], groups: Sequence[Sequence[Sequence[Cell]]]) -> str:
    """A table in a box that scrolls by itself. groups: rows that belong together, a stronger line between groups."""
    heads = [Cell(column) if isinstance(column, str) else column for column in columns]
    head = "".join(_head(cell) for cell in heads)
    body = []
    for rows in groups:
        for number, row in enumerate(rows):
            first = ' class="first"' if number == 0 and len(groups) > 1 and len(rows) > 1 else ""
            body.append(f"<tr{first}>{''.join(cell.html() for cell in row)}</tr>")
    # Focusable, so that it scrolls by the keyboard too.
    return (f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>")


def _head(cell: Cell) -> str:
    classes = " ".join(name for name, wanted in (("text", cell.text_left), ("pin", cell.pin)) if wanted)
    inner = escape(cell.text) if cell.model is None else chip(cell.text, cell.model)
    return f'<th scope="col"{f" class={chr(34)}{classes}{chr(34)}" if classes else ""}>{inner}</th>'


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, muted: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=' + chr(34) + 'muted' + chr(34) if muted else ''}>{escape(text)}</p>"


def details(summary: str, html: str, is_open: bool = False) -> str:
    """A part that is folded up."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"


def plot_grid(drawn: Sequence[str]) -> str:
    """Plots side by side as far as the width allows."""
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""


def contact_sheet(items: Sequence[tuple[Sequence[str], str, str]]) -> str:
    """Small pictures. items: data URIs of one to a few pictures, what they show in words, and a caption."""
    figures = []
    for uris, meaning, caption in items:
        pictures = "".join(f'<img src="{escape(uri)}" alt="{escape(meaning)}" width="76" height="76">' for uri in uris)
        figures.append(f"<figure>{pictures}<figcaption>{escape(caption)}</figcaption></figure>")
    return f'<div class="sheet">{"".join(figures)}</div>'


def notes(texts: Sequence[str]) -> str:
    """A list of remarks."""
    return f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def page(title: str, lead_html: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole file. sections: (anchor, title, HTML)."""
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{html}</section>' for anchor, name, html in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{plots.variables()}\n{plots.STYLE}\n{STYLE}\n</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{lead_html}<nav>{links}</nav></header>\n"
        f"<main>{body}</main>\n<footer>{escape(footer)}</footer></body></html>\n"
    )
