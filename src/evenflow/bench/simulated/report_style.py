"""The look of a report: one style sheet, light and dark by what the reader's system prefers."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: light-dark(#f4f5f7, #0d1117);
  --surface: light-dark(#ffffff, #151b23);
  --rule: light-dark(#e3e6ea, #262e39);
  --text: light-dark(#14181f, #eef2f7);
  --soft: light-dark(#4d5766, #a3afbf);
  --good: light-dark(#127a53, #45cf9b);
  --bad: light-dark(#b3261e, #ff8a80);
  font: 14px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums;
}
.c0 { --color: light-dark(#1d7fc4, #5fb4f2); }
.c1 { --color: light-dark(#b07c00, #e9c349); }
.c2 { --color: light-dark(#a2489e, #d98cd4); }
.c3 { --color: light-dark(#0e9273, #4be3b0); }
.c4 { --color: light-dark(#c2502e, #f0897a); stroke-dasharray: 6 3; }
.c5 { --color: light-dark(#5b51c9, #a493f5); stroke-dasharray: 6 3; }
.c6 { --color: light-dark(#6c7686, #a3afbf); stroke-dasharray: 2 3; }
.c7 { --color: light-dark(#14181f, #eef2f7); stroke-dasharray: 2 3; }
* { box-sizing: border-box; }
body { max-width: 1400px; margin: 0 auto; padding: 20px 16px 40px; background: var(--page); color: var(--text); }
h1 { margin: 0; font-size: 22px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 28px 0 10px; font-size: 16px; }
p, ul { margin: 0; padding: 0; }
.soft, figcaption span, caption, th { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 10px; margin-top: 18px; }
.tiles div, .card, figure { border: 1px solid var(--rule); border-radius: 10px; background: var(--surface); }
.tiles div { padding: 10px 14px; }
.tiles b { display: block; font-size: 22px; letter-spacing: -0.02em; }
.card { padding: 6px 16px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); text-align: left; font-weight: 400; vertical-align: top; }
tr:last-child > :is(td, th) { border-bottom: 0; }
.overview td:first-child { min-width: 130px; }
.number { text-align: right; white-space: nowrap; }
td small { display: block; }
.better { color: var(--good); }
.same { color: var(--soft); }
.worse { color: var(--bad); }
.settings td { overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 12px 14px; }
svg { display: block; width: 100%; margin-top: 6px; }
.tick { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--rule); fill: none; }
.line { stroke: var(--color); stroke-width: 1.6; stroke-linejoin: round; fill: none; }
.faint { stroke: var(--soft); stroke-width: 1; fill: none; }
circle { fill: var(--color); }
figure ul { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; font-size: 12px; }
figure li { overflow-wrap: anywhere; }
figure i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 3px; background: var(--color); }
details { margin-top: 10px; }
summary { cursor: pointer; padding: 6px 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { padding: 14px 10px 30px; } }
"""  # noqa: E501
