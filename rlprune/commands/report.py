"""`rlprune report`: tables, plots and one page over many runs."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.errors import UserError, printable
from rlprune.skeleton import ReportConfig


@command("report")
def main(config: ReportConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Compare runs; print the table and write it with all else."""
    from rlprune.commands.grids import read_grids
    from rlprune.report.layouts import read_layout
    from rlprune.report.page import write_paper, write_report
    from rlprune.report.paper_table import make_paper
    from rlprune.report.report import Choices, make_report

    runs = None if config.runs is None else config.runs if isinstance(config.runs, list) else [config.runs]
    if runs is not None and (not runs or not all(isinstance(glob, str) and glob for glob in runs)):
        raise UserError(f"runs={config.runs}: must be a glob over run folders, or a list of them, such as runs='outputs/prune/*'")
    if not isinstance(config.select, dict | type(None)):
        raise UserError(f"select={config.select}: must be a mapping, such as select={{agent: [mcq, uniform]}}")
    for key in ("rows", "average", "columns", "sort"):
        if not all(isinstance(name, str) for name in getattr(config, key)):
            raise UserError(f"{key}={getattr(config, key)}: must be a list of names, such as {key}=[a,b]")
    paper, everything = None, [f"{config.paths.outputs}/**"]
    if config.table is not None:
        if config.select:
            raise UserError(f"select={config.select}: goes not with table; name the runs, runs=GLOB")
        layout = read_layout(config.table)
        grids = read_grids(layout.runs, config.paths.outputs)
        paper, everything = make_paper(layout, grids, runs), [str(grid.folder) for grid in grids]
        if not paper.finished:
            print(f"{printable(write_paper(paper, run_dir))}\n\nwrote paper.md and paper.csv to {run_dir}; no run of it is finished")
            return
    report = make_report(
        Choices(
            runs=runs or everything,
            select=config.select or {},
            rows=config.rows,
            average=config.average,
            columns=config.columns,
            sort=config.sort,
            baseline=config.baseline,
            mixed=config.mixed or paper is not None,
            plots=config.plots,
        )
    )
    report.paper = paper
    files = "paper.md, paper.csv, report.html" if paper is not None else "report.html"
    text = printable(write_report(report, run_dir))
    print(f"{text}\n\nwrote {files}, .md, .csv, .tex, runs.csv and {len(report.plots)} plots to {run_dir}")
