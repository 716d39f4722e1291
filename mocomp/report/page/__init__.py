"""`report.html`: one page, without network or scripts from elsewhere, made from what an artifact's directory holds.

Each module makes the data of one section, each template of the same name shows it; `plots` has the geometry and
`templates/plots.html` draws it. Names that come from a checkpoint are escaped by jinja2.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mocomp import report as reports
from mocomp.errors import BadInput
from mocomp.report import results as files
from mocomp.report.page.accuracy import accuracy, bisection
from mocomp.report.page.findings import COMMANDS, Findings, collect, reading
from mocomp.report.page.flow import flow
from mocomp.report.page.quality import evaluation, quality
from mocomp.report.page.repeat import conditions, repeat
from mocomp.report.page.roofline import roofline
from mocomp.report.page.sizes import sizes
from mocomp.report.page.speed import speed
from mocomp.report.page.usage import usage
from mocomp.report.page.verdict import verdict
from mocomp.report.page.words import FILTERS
from mocomp.weights import disk

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
CHAPTERS = {
    "pipeline": "Pipeline",
    "parity": "Parity",
    "speed": "Speed",
    "experts": "Experts",
    "quality": "Quality",
    "sizes": "Sizes",
    "repeat": "Repeat",
}
"""Below the verdict, in this order: the template's name and what leads to it."""
MADE = {"verdict": verdict, "flow": flow, "accuracy": accuracy, "quality": quality, "sizes": sizes, "repeat": repeat}
"""Sections that every artifact has."""


def write(directory: Path, output: Path | None = None) -> Path:
    """Make the page of the artifact in `directory` and give its path, `report.html` there unless `output` says otherwise;
    an older page stays until the new one is whole. Raises BadInput, naming the file, for what is damaged or not writable."""
    page = render(collect(directory))
    path = output or directory / NAME
    try:
        disk.replace_text(path, page)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", where=str(path), fix="Name a file with -o FILE.") from error
    return path


def render(findings: Findings) -> str:
    """The page as text."""
    return environment().get_template("page.html").render(sections(findings), chapters=CHAPTERS, commands=COMMANDS)


@cache
def environment() -> Environment:
    """The templates; all that they show is escaped, and a name that they do not know is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= FILTERS
    return found


def sections(findings: Findings) -> dict[str, Any]:
    """The data of each section; None for what no command has found out yet."""
    directory, bench = findings.directory, findings.bench
    with reading(directory, reports.NAME if bench is None else files.BENCH):
        timed: dict[str, Any] = {"speed": speed(findings), "roofline": None, "conditions": None}
        if bench is not None:
            timed |= {"roofline": roofline(bench), "conditions": conditions(bench)}
    with reading(directory, files.USAGE):
        used = {"usage": None if findings.usage is None else usage(findings.usage)}
    with reading(directory, files.EVAL):
        judged = {"evaluation": None if findings.quality is None else evaluation(findings.quality)}
    with reading(directory, files.BISECT):
        found = {"bisection": None if findings.bisect is None else bisection(findings.bisect)}
    with reading(directory, reports.NAME):
        made = {name: section(findings) for name, section in MADE.items()}
    return made | timed | used | judged | found
