"""The style of a report's page: light, dark and printed, wide and narrow."""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "style"]

LIGHT = {
    "page": "#ffffff", "panel": "#f5f6f8", "ink": "#1b1f24", "muted": "#57606a", "line": "#c3c9d0", "link": "#0a58a8",
    "series-1": "#0a62a9", "series-2": "#b04a00", "series-3": "#00724f", "series-4": "#8a3a8f", "warn": "#8a5a00",
    "warn-panel": "#fdf6e3",
}  # fmt: skip
DARK = {
    "page": "#14171b", "panel": "#1d2126", "ink": "#e8eaed", "muted": "#a3abb5", "line": "#4a525c", "link": "#7db8f2",
    "series-1": "#6cb2f0", "series-2": "#f0995f", "series-3": "#4fc79c", "series-4": "#d7a0dc", "warn": "#e6b450",
    "warn-panel": "#2a2417",
}  # fmt: skip
_RULES = """
*, *::before, *::after { box-sizing: border-box }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 2rem }
p, ul, ol, dl { max-width: 44rem; margin: .6rem 0 }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; text-wrap: balance }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .3rem }
a { color: var(--link) }
small, .small { font-size: .8125rem }
.small, .notes, figcaption, caption { color: var(--muted) }
.lead { font-size: 1.06rem }
.main { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.2rem 0; padding: 0; max-width: none }
.main div { flex: 1 1 9.5rem; padding: .6rem .9rem; background: var(--panel); border-radius: 6px }
.main dt { font-size: .8125rem; color: var(--muted) }
.main dd { margin: 0; font-size: 1.35rem; font-weight: 600; line-height: 1.3 }
.main dd small { display: block; font-weight: 400; color: var(--muted) }
.warnings { border-left: 3px solid var(--warn); background: var(--warn-panel); padding: .6rem 1rem; margin: 1.2rem 0;
  max-width: 46rem; border-radius: 0 6px 6px 0 }
.warnings h2 { all: unset; display: block; font-weight: 600; color: var(--warn) }
.warnings ul { margin: .2rem 0; padding-left: 1.1rem }
nav ol { columns: 15rem; column-gap: 2rem; padding-left: 1.6rem; max-width: none; margin: .4rem 0 }
nav h2 { font-size: 1rem; margin: 1.6rem 0 0; border: 0; padding: 0 }
.scroll { position: relative; overflow-x: auto; margin: 1rem 0 .4rem; max-width: 100% }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; line-height: 1.35 }
caption { text-align: left; padding: 0 0 .35rem; font-size: .8125rem; caption-side: top }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2.5rem) }
th, td { padding: .32rem .7rem .32rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th:last-child, td:last-child { padding-right: 0 }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid var(--muted); min-width: 4.2rem }
tbody th { font-weight: 500; max-width: 19rem; min-width: 6.5rem;
  position: sticky; left: 0; background: var(--page); z-index: 1 }
.part th { padding-top: 1rem; font-weight: 600; color: var(--muted) }
td.n { white-space: nowrap }
td.n .v { font-weight: 600 }
td.n small { display: block; color: var(--muted); font-weight: 400; font-size: .75rem }
.none, .few th, .few td, th.few { color: var(--muted) }
.few .v { font-weight: 400 !important }
sup { font-size: .7em; line-height: 0; color: var(--muted); padding-left: .1em }
.notes { list-style: none; padding: 0; font-size: .8125rem; margin: .2rem 0 1rem }
.confusion td.n { background: color-mix(in srgb, var(--series-1) calc(var(--share, 0) * 42%), transparent);
  padding: .45rem .7rem; border: 1px solid var(--page) }
.confusion td.n small { color: inherit }
.confusion thead th + th { padding-left: .7rem; max-width: 9rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15.5rem, 100%), 1fr)); gap: 1.1rem 1.2rem;
  margin: 1rem 0; align-items: end }
.plots.single { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 25rem)) }
.plots.tables { align-items: start }
.plots.tables table { width: 100% }
figure { margin: 0 }
figcaption { font-size: .8125rem; line-height: 1.35; margin: 0 0 .15rem; min-height: 2.7em; display: flex;
  flex-direction: column; justify-content: flex-end }
figcaption b { display: block; color: var(--ink); font-weight: 600 }
figure svg, svg.flow { display: block; width: 100%; height: auto }
figure svg * { stroke-linejoin: round; stroke-linecap: butt }
svg text { font-family: inherit; fill: var(--ink) }
svg.flow { max-width: 34rem; font-size: 12.5px; margin: .8rem 0 }
.flow rect { fill: none; stroke: var(--muted) }
.flow .aside rect { stroke: var(--line); fill: var(--panel) }
.flow .step text tspan:last-child { font-weight: 600 }
.flow .aside text tspan:first-child { font-weight: 600 }
.flow .arrow { stroke: var(--muted); fill: none }
.flow .head { fill: var(--muted); stroke: none }
.forest { min-width: 8.5rem; width: 12rem }
.forest svg { display: block; width: 100%; height: auto; min-width: 8rem; overflow: visible }
.forest .whisker { stroke: var(--series-1); fill: none; stroke-width: 1.6 }
.forest .reference { stroke: var(--muted); stroke-dasharray: 3 3; fill: none }
.forest .point { fill: var(--series-1); stroke: var(--series-1); stroke-width: 1.5 }
.forest .point.open { fill: var(--page) }
.axis { display: flex; justify-content: space-between; font-weight: 400; color: var(--muted) }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; font-size: .8125rem;
  color: var(--muted); max-width: none }
.legend svg { width: 1.8em; height: .8em; vertical-align: baseline; display: inline-block }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); gap: .9rem;
  margin: .8rem 0 }
.examples.maps { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)) }
.examples > div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; font-size: .875rem }
.examples img { display: block; width: 100%; height: auto; border-radius: 3px; margin: 0 0 .5rem; background: #000 }
.examples .wrong { border-left: 3px solid var(--series-2) }
.examples .correct { border-left: 3px solid var(--series-3) }
.examples p { margin: 0 }
dl.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.2rem;
  font-size: .9375rem }
dl.facts dt { color: var(--muted) }
dl.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere }
.checklist td, .checklist th { font-size: .8125rem }
.checklist td:first-child, .checklist th:first-child { white-space: nowrap; min-width: 2.6rem }
.blank { color: var(--muted); font-style: italic }
footer { color: var(--muted); font-size: .8125rem; padding-bottom: 3rem; margin-top: 3rem }
@media (max-width: 30rem) {
  body { font-size: 15px }
  main, header, footer { padding-left: 1rem; padding-right: 1rem }
  dl.facts { grid-template-columns: 1fr; gap: 0 }
  dl.facts dd { margin-bottom: .5rem }
  tbody th { min-width: 5.5rem; max-width: 8.5rem }
}
"""
_PRINT = """
@page { margin: 16mm 14mm }
html { color-scheme: light }
body { font-size: 9.5pt; background: #fff; color: #000 }
main, header, footer { max-width: none; padding: 0 }
header { padding-top: 0 }
a { color: inherit; text-decoration: none }
h1, h2, h3, caption, figcaption { break-after: avoid }
section { break-before: page }
section.short { break-before: auto }
h2 { margin-top: 1.2rem }
.warnings, .main div, .examples > div { background: none; border: 1px solid var(--line); break-inside: avoid }
.scroll { overflow: visible }
table { font-size: 7.6pt; width: 100% }
thead { display: table-header-group }
tr, figure, .flow { break-inside: avoid }
thead th { min-width: 0 }
tbody th { min-width: 0; position: static; background: none }
th, td { padding-right: .4rem }
td.n small { font-size: 6.4pt }
.forest, .forest svg { min-width: 5rem; width: 7rem }
.plots, .plots.single { grid-template-columns: repeat(3, 1fr); gap: .8rem }
.confusion td.n, .examples img { print-color-adjust: exact; -webkit-print-color-adjust: exact }
p, ul, ol, dl { orphans: 3; widows: 3 }
"""


def style() -> str:
    """Return the style sheet."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    printed = light.replace(LIGHT["ink"], "#000000").replace(LIGHT["muted"], "#3a3f45")
    return (
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ {printed} }} }}{_RULES}@media print {{{_PRINT}}}\n"
    )
