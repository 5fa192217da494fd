"""The table of a report: a row for every line of a comparison, and the same table as Markdown, CSV, LaTeX and HTML cells."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlprune.errors import UserError
from rlprune.report.columns import Column, known_columns
from rlprune.report.comparison import Line, rivals
from rlprune.report.networks import FINAL
from rlprune.results.tables import CONTROL, JOINT, to_markdown


@dataclass(frozen=True)
class Cell:
    """What stands in a table for people, and whether it is the best of its block."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, rows of cells, and the rows with which a new block begins, by what they have in common; none where rows were sorted."""

    columns: list[Column]
    lines: list[Line]
    rows: list[list[Cell]]
    heads: dict[int, str]


def make_table(lines: Sequence[Line], columns: Sequence[Column], sort: Sequence[str], baseline: str) -> Table:
    """Rows in order, the best top-1 of every block marked, columns that say nothing left out.

    Raises:
        UserError: `sort` names what is no column.
    """
    ordered = _sorted(lines, sort, baseline)
    best = {id(line) for line in _best(ordered)}
    texts = [[column.text(line) for column in columns] for line in ordered]
    shown = [place for place, column in enumerate(columns) if any(row[place] for row in texts)]
    kept = [columns[place] for place in shown]
    rows = [
        [Cell(row[place], best=id(line) in best and columns[place].heading == "top-1 %") for place in shown]
        for line, row in zip(ordered, texts, strict=True)
    ]
    return Table(kept, ordered, rows, {} if sort else _heads(ordered))


def _heads(lines: Sequence[Line]) -> dict[int, str]:
    """The first row of every block, and what its rows have in common."""
    several = len({line.data for line in lines}) > 1
    heads = {}
    for index, line in enumerate(lines):
        if not index or line.block != lines[index - 1].block:
            heads[index] = ", ".join([line.model, *([line.target] if line.target else []), *([line.data] if several else [])])
    return heads


def _best(lines: Sequence[Line]) -> list[Line]:
    """Of every block those that print the highest top-1."""
    found = []
    for block in rivals(lines):
        highest = max(round(line.mean("top1"), 4) for line in block)
        found += [line for line in block if round(line.mean("top1"), 4) == highest]
    return found


def _sorted(lines: Sequence[Line], sort: Sequence[str], baseline: str) -> list[Line]:
    """By data, model, dense networks, target (the largest network first), baseline, name; or as asked for."""
    kinds = ("dense", CONTROL, JOINT, FINAL)

    def order(line: Line) -> tuple[Any, ...]:
        size = min((other.mean("sparsity") for other in lines if other.block == line.block and other.kind == FINAL), default=0.0)
        return (
            line.data,
            line.model,
            kinds.index(line.kind),
            size,
            line.target,
            line.name != baseline,
            line.name,
            natural(str(line.keys)),
            natural(str(line.settings)),
        )

    ordered = sorted(lines, key=order)
    for name in reversed(sort):
        column = known_columns(baseline).get(name.lstrip("-"))
        if column is None:
            raise UserError(f"sort: {name} is no column; there are {', '.join(known_columns(baseline))}, and -NAME for descending order")
        values = [(next(iter(column.numbers(line).values()), math.nan), line) for line in ordered]
        known = [(natural(value) if isinstance(value, str) else value, line) for value, line in values if value == value]
        known.sort(key=lambda pair: pair[0], reverse=name.startswith("-"))
        ordered = [line for _, line in known] + [line for value, line in values if value != value]  # what lacks the number comes last
    return ordered


def natural(text: str) -> list[tuple[int, float, str]]:
    """Sorts 9 before 10, and 0.05 before 0.1."""
    pieces = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(1, float(piece), "") if place % 2 else (2, 0.0, piece) for place, piece in enumerate(pieces) if piece]


# -- renderings ------------------------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A Markdown table; the best in bold."""
    cells = [[f"**{cell.text}**" if cell.best else cell.text.replace("|", "\\|") for cell in row] for row in table.rows]
    return to_markdown(pd.DataFrame(cells, columns=[column.heading for column in table.columns]))


def numbers(table: Table, columns: Sequence[Column]) -> pd.DataFrame:
    """The numbers behind all columns, shown or not: accuracies and shares as fractions, differences in points."""
    lines = [
        {"kind": line.kind} | {key: value for column in columns for key, value in column.numbers(line).items()} for line in table.lines
    ]
    return pd.DataFrame(lines, columns=None if lines else ["kind"])  # a file without a heading cannot be read


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": "",
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "≤": r"$\leq$", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "–": "--",
}  # fmt: skip


def latex(table: Table, caption: str) -> str:
    """A table environment as wide as the text, with the rules of booktabs; it needs the packages booktabs and graphicx."""
    if not table.rows:
        return "% no run in the table\n"
    spec = "".join("l" if column.words else "r" for column in table.columns)
    lines = [" & ".join(escape_latex(column.heading) for column in table.columns) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if index and index in table.heads:
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{escape_latex(cell.text)}}}" if cell.best else escape_latex(cell.text) for cell in row]
        start = "{}" if cells[0].startswith(("[", "*")) else ""  # which the end of the row before would take for its own
        lines.append(start + " & ".join(cells) + r" \\")
    head = [r"% \usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(caption)}}}"]
    head += [r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands; what it has no letter for as a question mark."""
    return "".join(LATEX.get(letter, letter if letter.isascii() and letter.isprintable() else "?") for letter in text)
