"""`rlprune report`: tables, plots and one page over many runs."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.errors import UserError
from rlprune.skeleton import ReportConfig


@command("report")
def main(config: ReportConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Compare runs; print the table and write it with all else."""
    from rlprune.report.page import write_report
    from rlprune.report.report import Choices, make_report

    runs = config.runs if isinstance(config.runs, list) else [config.runs]
    if not runs or not all(isinstance(glob, str) and glob for glob in runs):
        raise UserError(f"runs={config.runs}: must be a glob over run folders, or a list of them, such as runs='outputs/prune/*'")
    if not isinstance(config.select, dict | type(None)):
        raise UserError(f"select={config.select}: must be a mapping, such as select={{agent: [mcq, uniform]}}")
    for key in ("rows", "average", "columns", "sort"):
        if not all(isinstance(name, str) for name in getattr(config, key)):
            raise UserError(f"{key}={getattr(config, key)}: must be a list of names, such as {key}=[a,b]")
    report = make_report(
        Choices(
            runs=runs,
            select=config.select or {},
            rows=config.rows,
            average=config.average,
            columns=config.columns,
            sort=config.sort,
            baseline=config.baseline,
            mixed=config.mixed,
            plots=config.plots,
        )
    )
    print(f"{write_report(report, run_dir)}\n\nwrote report.html, .md, .csv, .tex, runs.csv and {len(report.plots)} plots to {run_dir}")
