"""The report as one HTML page: its style and its figures are in it, and it asks for nothing else."""

import base64
import html
from collections.abc import Mapping

from nxmiformer.report import content
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2733; --muted: #5a6672; --rule: #dfe4e9; --card: #f5f7f9;
  --accent: #0f6cab; }
@media (prefers-color-scheme: dark) { :root { --paper: #161b21; --ink: #e6eaee; --muted: #9aa6b2; --rule: #2d363f;
  --card: #1e252d; --accent: #4aa0df; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
.name { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
h1 { margin: .2rem 0 1.2rem; font-size: clamp(1.4rem, 4.5vw, 2rem); line-height: 1.2; text-wrap: balance;
  overflow-wrap: anywhere; }
h2 { margin: 2.8rem 0 .8rem; font-size: 1.15rem; }
p.note { color: var(--muted); font-size: .88rem; margin: .6rem 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; margin: 0 0 1.5rem; }
.facts div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.facts dt { color: var(--muted); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 500; text-align: left; }
th, td { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; padding: .4rem 0 .4rem .7rem; }
tr:last-child td { border-bottom: 0; }
figure { margin: 1.2rem 0; overflow-x: auto; }
img { display: block; width: 100%; min-width: 34rem; height: auto; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; }
""".strip()


def page(run: Run, figures: Mapping[str, tuple[str, str]]) -> str:
    """The whole page; `figures` are (title, SVG) by name."""
    measured = run.report.storage.bytes
    shares = [
        ("score kept", words.percent(run.report.retention)),
        (f"of the file, {words.size(measured.dense_model)} when dense", words.size(measured.packed_model)),
        ("of the layers", words.percent(run.report.storage.compression.all) + " smaller"),
        ("on the clock", words.duration(run.report.seconds)),
    ]
    sections = [
        _figure("size", figures),
        _section("Scores", _table(content.scores(run))),
        _section("Storage", _table(content.storage(run)), _figure("storage", figures), _advice(run)),
        _section("Layers", _figure("heatmap", figures), _folded("Every layer", content.layers(run))),
        _section(
            "Training", _table(content.phases(run)), _figure("training", figures), _figure("convergence", figures)
        ),
        _section("Layers left dense", _folded("Which, and why", content.skipped(run))),
        _section("How to reproduce", f"<pre>{_text(run.report.command)}</pre>", _table(content.facts(run))),
    ]
    facts = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in shares)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(run.report.name)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<main>
<p class="name">{_text(run.report.name)}: {_text(run.report.model.name)} on {_text(run.report.task.name)}</p>
<h1>{_text(words.headline(run))}</h1>
<dl class="facts">{facts}</dl>
{"".join(sections)}
</main>
</body>
</html>
"""


def _section(heading: str, *parts: str) -> str:
    if not any(parts):
        return ""
    note = f'<p class="note">{_text(content.NOTES[heading])}</p>' if heading in content.NOTES else ""
    return f"<section>\n<h2>{_text(heading)}</h2>\n{''.join(parts)}{note}</section>\n"


def _advice(run: Run) -> str:
    advice = words.advice(run)
    return f"<p>{_text(advice)}.</p>\n" if advice else ""


def _table(table: content.Table) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        kinds = ["" if column < table.named else ' class="number"' for column in range(len(row))]
        return "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    head = f"<thead><tr>{cells('th', table.header)}</tr></thead>\n" if any(table.header) else ""
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return f'<div class="wide"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>\n'


def _folded(summary: str, table: content.Table) -> str:
    if not table.rows:
        return ""
    return f"<details><summary>{_text(summary)} ({len(table.rows)})</summary>\n{_table(table)}</details>\n"


def _figure(name: str, figures: Mapping[str, tuple[str, str]]) -> str:
    if name not in figures:
        return ""
    title, svg = figures[name]
    # An image, not inline SVG: the names inside two figures would collide in one page.
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{_text(title)}"></figure>\n'


def _text(text: str) -> str:
    return html.escape(text, quote=True)
