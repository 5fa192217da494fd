"""A report as files: Markdown, CSV, LaTeX, plots, and one page that holds all of it."""

import base64
import io
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from rlprune.files import write_atomically, write_text
from rlprune.report.comparison import Line
from rlprune.report.gallery import Plot
from rlprune.report.networks import DENSE
from rlprune.report.paper_table import Paper
from rlprune.report.report import Report
from rlprune.report.table import latex, markdown, numbers

log = logging.getLogger(__name__)
DESKTOP, PHONE = 9.5, 3.8  # inches


def write_report(report: Report, folder: Path) -> str:
    """Write report.md, report.csv, report.tex, report.html, runs.csv and plots/; returns what people read in a terminal."""
    pictures: list[tuple[Plot, bytes, bytes]] = []
    for plot in tqdm(report.plots, desc="plots", unit="plot", leave=False, disable=not report.plots):
        try:
            pictures.append((plot, _png(plot.draw(DESKTOP), 150), _png(plot.draw(PHONE), 190)))
        except (
            KeyError,
            ValueError,
            IndexError,
            TypeError,
            AttributeError,
            ArithmeticError,
        ) as error:  # a file of one run that is damaged or half written
            log.warning("plot %s left out: %s", plot.name, error)
            report.notes.append(f"the plot {plot.name} could not be drawn ({error})")
    for plot, wide, _ in pictures:
        write_atomically(folder / "plots" / f"{plot.name}.png", lambda temporary, wide=wide: temporary.write_bytes(wide))  # type: ignore[misc]
    text = text_of(report) if report.paper is None else write_paper(report.paper, folder, report.findings)
    shown = "".join(f"\n## {_heading(plot)}\n\n![{plot.title}](plots/{plot.name}.png)\n\n{plot.caption}\n" for plot, _, _ in pictures)
    write_text(folder / "report.md", f"# {report.title}\n\n{text_of(report)}\n{shown}")
    write_text(folder / "report.csv", numbers(report.table, report.columns).to_csv(index=False))
    write_text(folder / "runs.csv", networks_table(report.table.lines).to_csv(index=False))
    write_text(folder / "report.tex", latex(report.table, report.title))
    write_text(folder / "report.html", page(report, pictures))
    return text


def write_paper(paper: Paper, folder: Path, findings: Sequence[str] = ()) -> str:
    """Write paper.md and paper.csv, a paper's own table with the runs in it; returns what people read in a terminal."""
    said = "".join(f"\n- {line}" for line in findings)
    text = f"# {paper.title}\n\n{paper.text}{said}"
    write_text(folder / "paper.md", f"{text}\n")
    write_text(folder / "paper.csv", paper.numbers.to_csv(index=False))
    return text


def _heading(plot: Plot) -> str:
    return f"{plot.section}: {plot.title}" if plot.section else plot.title


def text_of(report: Report) -> str:
    """The table, what it says, what to know, and what is not in it."""
    parts = [markdown(report.table)] if report.table.rows else [report.nothing]
    parts += ["\n".join(f"- {line}" for line in lines) for lines in (report.findings, report.notes) if lines]
    if report.open_runs:
        parts.append("Not in the table:\n\n" + "\n".join(f"- {run.folder}: {run.why or run.state}" for run in report.open_runs))
    return "\n\n".join(parts)


def networks_table(lines: Sequence[Line]) -> pd.DataFrame:
    """A row for every network of every run in the table."""
    return pd.DataFrame(
        ({
            "data": line.data, "model": line.model, "target": line.target, "network": line.name, "kind": line.kind,
            "settings": ", ".join(f"{key}={value}" for key, value in line.settings.items()), **line.keys,
            "seed": network.run.seed, "dense_seed": network.run.dense_seed, "before": network.before, **network.sizes,
            **(network.cost if line.kind != DENSE else {}), "run": str(network.run.folder),
        }
        for line in lines
        for network in line.networks),
        columns=None if lines else ["data", "model", "target", "network", "kind"],
    )  # fmt: skip


def _png(figure: Any, dpi: int) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=dpi, format="png")
    return stream.getvalue()


def page(report: Report, pictures: Sequence[tuple[Plot, bytes, bytes]]) -> str:
    """One HTML page with everything in it; nothing is loaded from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rlprune.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    encode: Callable[[bytes], str] = lambda data: base64.b64encode(data).decode("ascii")  # noqa: E731
    sections: dict[str, list[Plot]] = {}
    for plot, _, _ in pictures:
        sections.setdefault(plot.section, []).append(plot)
    return environment.get_template("page.html.j2").render(
        report=report,
        table=report.table,
        settings=[", ".join(f"{key}={value}" for key, value in line.settings.items()) for line in report.table.lines],
        pictures=[(plot, encode(wide), encode(narrow)) for plot, wide, narrow in pictures],
        networks=networks_table(report.table.lines).astype(object).where(lambda frame: frame.notna(), "").to_dict("records"),
        sections=sections,
        version=version("rlprune"),
    )
