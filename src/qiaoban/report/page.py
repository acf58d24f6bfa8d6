"""The report of a curation: one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qiaoban.bank.catalogue import load_catalogue
from qiaoban.conversation import EMOTION_FAMILIES, Category
from qiaoban.files import write_atomically
from qiaoban.formats.figures import UNLABELLED
from qiaoban.report import charts
from qiaoban.report.diversity import LONG, OPENING, SAMPLE_TURNS, SAMPLE_UNITS
from qiaoban.report.figures import Figures, gather
from qiaoban.report.plain import visible
from qiaoban.report.talks import BANDS, UNITS

BIGRAMS = 12


def write_report(folder: Path) -> Path:
    """Draw `folder/report.html`; returns its path. `DataError` where `qiaoban curate` did not write the folder."""
    target = folder / "report.html"
    page = render_page(gather(folder))
    with write_atomically(target) as file:
        file.write(page.encode())
    return target


def render_page(figures: Figures) -> str:
    """The page. Texts of dialogues stand in it as they are, escaped, with control characters made visible."""
    return (
        environment()
        .get_template("page.html")
        .render(
            f=figures,
            drawn=_charts(figures),
            coverage=_coverage(figures),
            bigrams=figures.talks.acts.bigrams.most_common(BIGRAMS),
            sizes={"turns": SAMPLE_TURNS, "units": SAMPLE_UNITS, "long": LONG, "opening": OPENING, "unit": UNITS},
            bands=_bands(figures),
            heat=_heat(figures),
        )
    )


@cache
def environment() -> Environment:
    """The templates, with the filters that they share. A name that they are not given is an error."""
    env = Environment(
        loader=PackageLoader("qiaoban.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"n": _count, "share": _share, "figure": _figure}
    return env


def _count(value: int) -> str:
    return f"{value:,}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none to count"


def _figure(value: float | None, places: int = 3) -> str:
    return "too little text" if value is None else f"{value:.{places}f}"


def _charts(figures: Figures) -> dict[str, Markup]:
    talks = figures.talks
    funnel = [("read", figures.read), *((f"after {stage.stage}", stage.kept) for stage in figures.stages)]
    rules = [(name, hits.dialogues) for name, _, _, hits in figures.hits.rows()]
    lengths = {
        unit: [(f"{row.who}, {row.band}", row.median, row.p95) for row in talks.lengths() if row.unit == unit]
        for unit in UNITS.values()
    }
    acts = [(str(act), count) for act, count in talks.acts.counts.most_common()]
    return {
        "funnel": charts.bars("Talks after each stage", funnel),
        "rules": charts.bars("Dialogues that each rule hits", rules[:12]),
        **{
            unit: charts.ranges(f"Length of turns in {unit}, median to 95th percentile", rows) for unit, rows in lengths.items()
        },
        "per_talk": charts.histogram("Turns in a talk", talks.per_talk),
        "acts": charts.bars("Acts of companion turns", acts),
        "heat": charts.heat("Emotions by age band", [row for _, row in _heat(figures)], _bands(figures), _by_name(figures)),
    }


def _bands(figures: Figures) -> list[str]:
    """Age bands that some talk with an emotion has."""
    return [band for band in BANDS if any(each == band for _, each in figures.talks.heat)]


def _heat(figures: Figures) -> list[tuple[str, str]]:
    """Emotions that come, with their families, in the order of the bank."""
    found = {emotion for emotion, _ in figures.talks.heat}
    return [(family, str(leaf)) for family, leaves in EMOTION_FAMILIES.items() for leaf in leaves if leaf in found]


def _by_name(figures: Figures) -> dict[tuple[str, str], int]:
    return {(str(emotion), band): count for (emotion, band), count in figures.talks.heat.items()}


def _coverage(figures: Figures) -> list[tuple[str, Markup, list[tuple[str, int]], list[str]]]:
    """Domains, outcomes and risks: heading, chart, counts, and which of the bank's do not come at all."""
    bank = load_catalogue()
    known = {
        "domain": [domain.id for domain in bank.domains],
        "outcome": [outcome.id for outcome in bank.people.outcomes],
        "risk": [category.value for category in Category],
    }
    found = []
    for name, all_ in known.items():
        counts = figures.talks.labels(name)
        rows = sorted(counts.items(), key=lambda row: (row[0] == UNLABELLED, -row[1], row[0]))
        absent = [each for each in all_ if each not in counts]
        found.append((f"{name}s".capitalize(), charts.bars(f"Talks by {name}", rows), rows, absent))
    return found
