"""The drift report as one page to read, without script, network or other file."""

from __future__ import annotations

from synthorax.evaluation.monitoring.drift import Drift
from synthorax.evaluation.report.page import show

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Synthorax drift report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.alarm { font-weight: 700; }
</style>
</head>
<body>
<h1>{{ "The newer images differ from the older ones" if drift.alarm else "No difference beyond chance" }}</h1>
<p>{{ drift.num_old|show }} older and {{ drift.num_new|show }} newer images, described by {{ drift.features.name }}. Of sets that do not
differ, {{ "%.0f"|format(100 * drift.level) }}&nbsp;% raise the alarm. No alarm is no proof that nothing changed: few images show only large
changes.</p>
<table>
<caption>What was compared, the alarms first</caption>
<thead><tr><th scope="col">What</th><th scope="col" class="n">Difference</th><th scope="col" class="n">By chance up to</th>
<th scope="col" class="n">p</th>
<th scope="col" class="n">Older</th><th scope="col" class="n">Newer</th><th scope="col">Alarm</th></tr></thead>
<tbody>
{% for shift in shifts %}
<tr{% if shift.alarm %} class="alarm"{% endif %}><th scope="row">{{ shift.name }}</th><td class="n">{{ shift.value|show }}</td>
<td class="n">{{ shift.usual|show }}</td><td class="n">{{ shift.p|show }}</td><td class="n">{{ shift.old }}</td>
<td class="n">{{ shift.new }}</td><td>{{ "yes" if shift.alarm else "no" }}</td></tr>
{% endfor %}
</tbody>
</table>
{% if drift.not_compared %}<p>Not compared: {{ drift.not_compared|join("; ") }}.</p>{% endif %}
</body>
</html>
"""


def drift_page(drift: Drift) -> str:
    """The page as HTML; every text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(show=show)
    return environment.from_string(PAGE).render(drift=drift, shifts=sorted(drift.shifts, key=lambda shift: (not shift.alarm, shift.p)))
