"""The template of report.html: no script, no font, no address outside the page."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ suite.name }} – kdbench</title>
<style>
:root { --paper: #f7f8fa; --card: #fff; --ink: #1f2430; --faint: #5b6472; --line: #dfe3ea;
  --better: #12805c; --worse: #b53325; --equivalent: #2563a8; --undecided: #5b6472; --link: #1d5fa8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e6e9ef; --faint: #a3acba;
  --line: #333a45; --better: #4cc79a; --worse: #f08a7d; --equivalent: #7fb4ee; --undecided: #a3acba;
  --link: #8cbcf2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1rem; color: var(--faint); font-weight: 600; margin: 0; }
h2 { font-size: 1.05rem; margin: 36px 0 8px; }
.answer { font-size: 1.2rem; line-height: 1.45; margin: 0 0 10px; overflow-wrap: anywhere; }
.faint, footer { color: var(--faint); }
p, li { overflow-wrap: anywhere; max-width: 75ch; }
figure { margin: 20px 0 0; padding: 12px; background: #fff; border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; }
figure svg { display: block; width: min(var(--wide), 100%); height: auto; margin: 0 auto;
  min-width: min(var(--wide), max(560px, calc(.62 * var(--wide)))); }
.box { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.better, .worse, .equivalent, .undecided { font-weight: 600; }
{% for word in verdicts %}.{{ word }} { color: var(--{{ word }}); }
{% endfor %}
h3 { font-size: .95rem; margin: 20px 0 6px; }
.question { color: var(--faint); margin: 0 0 12px; }
details { margin: 16px 0; } summary { cursor: pointer; font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .9rem; margin: 16px 0; }
a { color: var(--link); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>{{ suite.name }}</h1>
{% if suite.question %}<p class="question">{{ suite.question }}</p>
{% endif %}
<p class="answer">{{ answer|join(" ") }}</p>
{% if suite.description %}<p class="faint">{{ suite.description }}</p>
{% endif %}
<details{% if summary|length <= 6 %} open{% endif %}><summary>In words, contrast by contrast</summary>
<ul>{% for sentence in summary %}<li>{{ sentence }}</li>
{% endfor %}</ul></details>
<nav aria-label="Contents">{% for section in sections %}<a href="#{{ section.name }}">{{ section.title }}</a>
{% endfor %}<a href="#method">Method</a></nav>
{% for section in sections %}
<h2 id="{{ section.name }}">{{ section.title }}</h2>
{% for sentence in section.text %}<p class="faint">{{ sentence }}</p>
{% endfor %}
{% if section.name in pictures %}
<figure style="--wide: {{ widths[section.name] }}px">{{ pictures[section.name] }}</figure>
{% endif %}
{% for title, head, rows in section.tables %}
{% set folded = rows|length > long %}
{% if folded %}<details><summary>{{ title or section.title }} ({{ rows|length }} rows)</summary>
{% elif title %}<h3>{{ title }}</h3>
{% endif %}
<div class="box" tabindex="0" role="region" aria-label="{{ title or section.title }}"><table>
<thead><tr>{% for name in head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for text in row %}<td{% if text in verdicts and head[loop.index0] == "verdict" %} class="{{ text }}"{% endif %}>
{%- if text in section.links %}<a href="{{ section.links[text] }}">{{ text }}</a>{% else %}{{ text }}{% endif %}</td>
{%- endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if folded %}</details>
{% endif %}
{% endfor %}
{% if section.verbatim %}<pre tabindex="0">{{ section.verbatim }}</pre>
{% endif %}
{% endfor %}
<h2 id="method">Method</h2>
{% for paragraph in method %}<p>{{ paragraph }}</p>
{% endfor %}
{% if notes %}<h2>Notes</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h2>Facts</h2>
<dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</main>
</body>
</html>
"""
