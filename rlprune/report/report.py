"""From runs to a report: collect, compare, and say what is worth saying."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlprune.config import suggestion
from rlprune.errors import UserError
from rlprune.report.collect import FINISHED, RUNNING, UNREADABLE, Run, find_runs
from rlprune.report.columns import Column, choose_columns
from rlprune.report.comparison import Line, make_lines
from rlprune.report.findings import averaged, confounded, findings, origins
from rlprune.report.gallery import Plot, plan_plots
from rlprune.report.networks import FINAL, Network, group_setting, networks_of, plain, value_of
from rlprune.report.paper_table import Paper
from rlprune.report.table import Table, make_table


@dataclass(frozen=True)
class Choices:
    """What a report shows, and how.

    Args:
        runs: globs over run folders.
        select: key → value, or values, that a run must have: a config group, a setting, or seed.
        rows: keys that get a column, and lines of their own, beside model, target and agent.
        average: settings that may differ within a line.
        columns: of the table, in their order.
        sort: columns to order rows by, -NAME for descending; empty: blocks of what may be compared.
        baseline: agent that the others are compared with.
        mixed: allow runs on different data or splits beside each other.
        plots: draw some.
    """

    runs: list[str]
    select: Mapping[str, Any]
    rows: list[str]
    average: list[str]
    columns: list[str]
    sort: list[str]
    baseline: str
    mixed: bool
    plots: bool


@dataclass
class Report:
    """What goes into the files."""

    title: str
    table: Table
    columns: list[Column]
    findings: list[str]
    notes: list[str]
    open_runs: list[Run]  # not finished, or not readable
    runs: list[Run]
    plots: list[Plot] = field(default_factory=list)
    paper: Paper | None = None  # the same runs in a paper's own table

    @property
    def nothing(self) -> str:
        """What stands in place of an empty table."""
        measured = any(run.state == FINISHED and run.command == "sensitivity" for run in self.runs)
        return "No run of prune or train is here; the plots show sensitivities." if measured else "No run is finished yet."


# -- from runs to a report -------------------------------------------------------------------------------------------------------------


def make_report(choices: Choices) -> Report:
    """Collect runs, compare them, and plan the plots.

    Raises:
        UserError: no run matches or has anything to show; runs on different data without `mixed`; a key that there is not.
    """
    columns = choose_columns(choices.columns, choices.rows, choices.baseline)
    pattern = ",".join(choices.runs)
    runs = _selected(find_runs(choices.runs), choices.select, pattern)
    finished = [run for run in runs if run.state == FINISHED]
    open_runs = [run for run in runs if run.state != FINISHED]
    if not finished and not any(len(run.table("metrics.csv")) or run.state == RUNNING for run in open_runs):
        raise UserError(f"runs={pattern}: none of {len(runs)} runs there is finished; {open_runs[0].folder}: {open_runs[0].why}")
    networks, damaged = _networks([run for run in finished if run.command != "sensitivity"])
    open_runs += damaged
    labels = list(dict.fromkeys(network.data for network in networks))
    if len(labels) > 1 and not choices.mixed:
        raise UserError(_different_data(pattern, networks, labels))
    for option, keys in (("rows", choices.rows), ("average", choices.average)):
        for key in keys:
            if networks and not any(value_of(network.run, key) for network in networks if network.kind == FINAL):
                raise UserError(f"{option}: {_no_such_key(runs, key)}")
    lines, notes = make_lines(networks, rows=choices.rows, average=choices.average, baseline=choices.baseline)
    notes += _no_baseline(lines, choices.baseline)
    constant = {"data": len(labels) < 2, "model": len({line.model for line in lines}) < 2}  # then the title says it
    shown = [column for column in columns if not constant.get(column.heading, False)]
    table = make_table(lines, shown, choices.sort, choices.baseline)
    report = Report(_title(labels, networks, runs), table, columns, findings(table.lines, choices.baseline), notes, open_runs, runs)
    report.notes += confounded(table.lines) + averaged(lines, choices.average) + origins(finished)
    if choices.plots:
        report.plots = plan_plots(table.lines, runs, choices.baseline)
    return report


def _selected(runs: list[Run], select: Mapping[str, Any], pattern: str) -> list[Run]:
    if not runs:
        raise UserError(f"runs={pattern}: no run of prune or train matches; name run folders, such as runs='outputs/prune/*'")
    unknown = [run for run in runs if run.state != FINISHED and not run.settings]  # listed, as nothing says that they are not meant
    for key, wanted in select.items():
        values = {text for value in (wanted if isinstance(wanted, list) else [wanted]) for text in (plain(value), str(value))}
        there = list(dict.fromkeys(filter(None, (value_of(run, str(key)) for run in runs))))
        if not there:
            raise UserError(f"select.{key}={plain(wanted)}: {_no_such_key(runs, str(key))}")
        runs = [run for run in runs if value_of(run, str(key)) in values]
        if not runs:
            raise UserError(f"select.{key}={plain(wanted)}: no run has it; there are {', '.join(there[:12])}")
    return [*runs, *(run for run in unknown if run not in runs)]


def _no_such_key(runs: Sequence[Run], key: str) -> str:
    setting = group_setting(runs, key)
    if setting is not None:
        return f"{key} is a group of settings; name one of them, such as {setting}"
    known = dict.fromkeys(name for run in runs for name in (*run.choices, *run.settings))
    return f"no run has {key}{suggestion(key, known)}; name a config group, seed, or a setting as in config.yaml, such as agent.noise_std"


def _no_baseline(lines: Sequence[Line], baseline: str) -> list[str]:
    """A word on differences that are missing because nobody is there to compare with."""
    names = dict.fromkeys(line.name for line in lines if line.kind == FINAL)
    return (
        [f"no run of {baseline} here, so no differences to it{suggestion(baseline, names)}"]
        if len(names) > 1 and baseline not in names
        else []
    )


def _networks(finished: Sequence[Run]) -> tuple[list[Network], list[Run]]:
    """Networks of all runs, and the runs whose files turn out to be damaged."""
    networks, damaged = [], []
    for run in finished:
        try:
            networks += networks_of(run)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f"result.json lacks or garbles {error}; the file is damaged"
            damaged.append(Run(run.folder, run.command, UNREADABLE, why, run.choices, run.settings))
    return networks, damaged


def _different_data(pattern: str, networks: Sequence[Network], labels: Sequence[str]) -> str:
    counts = {label: len({network.run.folder for network in networks if network.data == label}) for label in labels}
    found = "; ".join(f"{number} on {label}" for label, number in counts.items())
    named = {network.run.choices["dataset"] for network in networks}
    one = f"one data set with select={{dataset: {sorted(named)[0]}}}" if len(named) > 1 else "the runs of one of them"
    return f"runs={pattern}: runs on different data or splits ({found}); name {one}, or show them beside each other with mixed=true"


def _title(labels: Sequence[str], networks: Sequence[Network], runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(network.model for network in networks)) or sorted({run.choices.get("model", "") for run in runs})
    return f"{', '.join(models)} on {'; '.join(labels)}" if labels else ", ".join(filter(None, models)) or "Runs"
