"""A picture of a channel graph: what is tied to what, what each layer costs, and what a plan removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlprune.errors import UserError
from rlprune.files import write_atomically
from rlprune.graph import ChannelGraph
from rlprune.graph.channel_graph import Keep
from rlprune.results.diagram import Diagram, Lane, Row, diagram
from rlprune.results.plots import COLOURS
from rlprune.results.tables import change, count

FORMATS = ("png", "svg", "pdf")
LAYER, CHANNELS, MACS, UNITS = "layer", "channels", "MACs", "units of the group that begins here"
ALONE, KEPT = COLOURS[0], "0.62"  # bars of layers that are tied to no other, and of those that are left alone
INK, PALE_INK, THIN = "0.1", "0.45", "0.35"  # texts, those of what is left alone, and lanes of a single layer
TIED = tuple(colour for colour in COLOURS if colour not in (ALONE, "#000000"))  # TIED_COLOURS of them
FONT, TITLE, HINTING = 7.0, 9.0, 1.06  # points, points, and how much wider pixels make a text
LINE, HEAD, FOOT, GAP = 0.165, 0.8, 0.55, 0.14  # inches: of a row, above and below the rows, between columns
TIED_PITCH, READ_PITCH = 0.14, 0.07  # inches between lanes
BAR, THICK, LEAST_WIDTH = 2.2, 0.11, 6.0  # inches: the longest bar, how thick bars are, and the figure
HATCH = "//////"
DOTS = 4  # a group of one layer that more layers read gets a tick at the last of them instead of a dot at each
NOTE = 64  # letters of a note; groups.md, and graph.frozen, have reasons in full


def draw(graph: ChannelGraph, path: str | Path, keep: Keep | None = None, *, title: str = "") -> None:
    """Draw the channel groups of a network as a PNG, SVG or PDF file.

    Args:
        graph: of the dense network.
        path: of the file; its suffix says which format.
        keep: kept units by group, of a pruned network; None: nothing is removed.
        title: above the picture.

    Raises:
        UserError: the suffix is another, the file cannot be written, or `keep` does not fit the graph.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"path={path}: must end in {', '.join(f'.{name}' for name in FORMATS)}, which says what is drawn")
    figure = graph_figure(diagram(graph, {} if keep is None else keep), title)
    try:
        write_atomically(path, partial(_save, figure, kind))
    except OSError as error:
        raise UserError(f"path={path}: cannot be written ({error.strerror})") from error


def _save(figure: Any, kind: str, path: Path) -> None:
    from matplotlib import rc_context

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same graph, the same file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rlprune", "pdf.fonttype": 42}):  # text that can be searched
        figure.savefig(path, dpi=150, format=kind, metadata=dates.get(kind))


@dataclass(frozen=True)
class _Columns:
    """Texts of every row, and where they and the bars go, in inches from the left."""

    layers: list[str]
    channels: list[str]
    macs: list[str]
    notes: list[str]
    lanes: float  # the innermost lane of tied layers
    reads: float  # the innermost lane of a single layer
    x: tuple[float, float, float, float]  # layers and notes begin here, channels and MACs end
    bars: float
    right: float


def _columns(shown: Diagram) -> _Columns:
    layers = [row.layer for row in shown.rows]
    channels = [_of(f"{row.channels_kept}", f"{row.channels}", "/") if row.channels else "" for row in shown.rows]
    macs = [_of(_short(row.macs_kept), _short(row.macs), " of ") for row in shown.rows]
    notes = [row.note if len(row.note) <= NOTE else row.note[: NOTE - 1] + "…" for row in shown.rows]
    widths = {tied: max((lane.column + 1 for lane in shown.lanes if lane.tied == tied), default=0) for tied in (True, False)}
    layer_x = GAP + READ_PITCH * widths[False] + TIED_PITCH * (widths[True] + 0.5)
    channel_x = layer_x + _inches([*layers, LAYER]) + GAP + _inches([*channels, CHANNELS])
    macs_x = channel_x + GAP + BAR + GAP + _inches([*macs, MACS])
    return _Columns(
        layers, channels, macs, notes,
        lanes=layer_x - TIED_PITCH,
        reads=layer_x - TIED_PITCH * (widths[True] + 0.6),
        x=(layer_x, macs_x + GAP, channel_x, macs_x),
        bars=channel_x + GAP,
        right=macs_x + GAP + _inches([*notes, UNITS]) + GAP,
    )  # fmt: skip


def graph_figure(shown: Diagram, title: str) -> Any:
    """The figure of `draw`; an inch of it is a unit of its only axes, which begin at the upper left."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    columns, total = _columns(shown), _total(shown)
    width = max(LEAST_WIDTH, columns.right, _inches([title], TITLE, "bold") + 2 * GAP, _inches([total]) + 2 * GAP)
    height = HEAD + LINE * len(shown.rows) + FOOT
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    middles = [HEAD + LINE * (place + 0.5) for place in range(len(shown.rows))]
    axes.barh(middles[1::2], width, LINE, color="0.955", zorder=0)
    axes.text(GAP, 0.2, title or "channel groups", fontsize=TITLE, weight="bold", va="center", parse_math=False)
    axes.text(GAP, 0.42, total, fontsize=FONT, va="center", color=INK)
    _draw_texts(axes, shown.rows, columns, middles)
    _draw_bars(axes, shown, columns.bars, middles)
    for lane in shown.lanes:
        _draw_lane(axes, lane, columns, middles, dots=lane.tied or not _dense(shown))
    axes.set(xlim=(0, width), ylim=(height, 0))
    _legend(figure, shown)
    return figure


def _draw_texts(axes: Any, rows: Sequence[Row], columns: _Columns, middles: Sequence[float]) -> None:
    listed = (
        (columns.layers, LAYER, "left"), (columns.notes, UNITS, "left"),
        (columns.channels, CHANNELS, "right"), (columns.macs, MACS, "right"),
    )  # fmt: skip
    for x, (texts, heading, side) in zip(columns.x, listed, strict=True):
        axes.text(x, HEAD - 0.1, heading, fontsize=FONT, ha=side, va="center", color=PALE_INK, style="italic")
        for y, text, row in zip(middles, texts, rows, strict=True):
            axes.text(x, y, text, fontsize=FONT, ha=side, va="center_baseline", color=INK if row.groups else PALE_INK, parse_math=False)


def _draw_bars(axes: Any, shown: Diagram, left: float, middles: Sequence[float]) -> None:
    """MACs that stay, full, and behind them those that go, pale and hatched; in the colour of the row's lane."""
    tied = {lane.group: TIED[lane.colour] for lane in shown.lanes if lane.tied}
    rows = [row for row in shown.rows if not row.summed]  # which stand in front
    inch = BAR / max([row.macs for row in rows] + [1.0])
    colours = [next((tied[name] for name in row.groups if name in tied), ALONE if row.groups else KEPT) for row in rows]
    axes.barh(middles[: len(rows)], [inch * row.macs_kept for row in rows], THICK, left, color=colours)
    gone = [
        (middle, inch * (row.macs - row.macs_kept), left + inch * row.macs_kept, colour)
        for row, middle, colour in zip(rows, middles, colours, strict=False)
        if row.macs > row.macs_kept
    ]
    if gone:
        ys, sizes, edges, shades = zip(*gone, strict=True)
        axes.barh(ys, sizes, THICK, edges, facecolor="white", edgecolor=shades, hatch=HATCH, linewidth=0.4)


def _draw_lane(axes: Any, lane: Lane, columns: _Columns, middles: Sequence[float], *, dots: bool) -> None:
    """A line with a full dot at each layer that produces the group and a hollow one at each that reads it; half full: it does both.

    Without `dots` only the last reader is marked, by a tick.
    """
    x = columns.lanes - TIED_PITCH * lane.column if lane.tied else columns.reads - READ_PITCH * lane.column
    colour, size = (TIED[lane.colour], 4.6) if lane.tied else (THIN, 2.6)
    axes.plot([x, x], [middles[lane.first], middles[lane.last]], color=colour, linewidth=1.8 if lane.tied else 0.7, zorder=3)
    style = {"linestyle": "none", "marker": "o", "markersize": size, "markeredgecolor": colour, "markeredgewidth": size / 4.6}
    if dots:
        axes.plot([x] * len(lane.read), [middles[place] for place in lane.read], markerfacecolor="white", zorder=4, **style)
    else:
        axes.plot([x], [middles[lane.last]], color=colour, linestyle="none", marker="_", markersize=3.6, zorder=4)
    only = [place for place in lane.produced if place not in lane.read]
    both = [place for place in lane.produced if place in lane.read]
    axes.plot([x] * len(only), [middles[place] for place in only], markerfacecolor=colour, zorder=5, **style)
    axes.plot(
        [x] * len(both),
        [middles[place] for place in both],
        markerfacecolor=colour,
        markerfacecoloralt="white",
        fillstyle="left",
        zorder=5,
        **style,
    )


def _legend(figure: Any, shown: Diagram) -> None:
    """Of what the picture has: a line for lanes, one for bars."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tied, alone = (any(lane.tied == kind for lane in shown.lanes) for kind in (True, False))
    coloured = {lane.group for lane in shown.lanes if lane.tied}
    bars: list[Any] = []
    if any(row.groups and not coloured.intersection(row.groups) for row in shown.rows):
        bars.append(Patch(color=ALONE, label="MACs of a layer tied to no other"))
    if shown.macs[0] > shown.macs[1]:
        bars.append(Patch(facecolor="white", edgecolor=ALONE, hatch=HATCH, linewidth=0.4, label="MACs removed"))
    if any(not row.groups for row in shown.rows):
        bars.append(Patch(color=KEPT, label="MACs of a layer whose channels are kept"))
    lanes: list[Any] = []
    if tied:
        lanes.append(Line2D([], [], color=TIED[0], linewidth=1.8, label="layers that lose channels together"))
    if alone:
        tick = ", the last at the tick" if _dense(shown) else ""
        lanes.append(Line2D([], [], color=THIN, linewidth=0.7, label=f"channels of one layer that others read{tick}"))
    kinds = [("produces the channels", INK)] * (tied or alone) + [("reads them", "white")] * (tied or (alone and not _dense(shown)))
    for label, face in kinds:
        lanes.append(Line2D([], [], color="none", marker="o", markersize=4.6, markeredgecolor=INK, markerfacecolor=face, label=label))
    width, height = figure.get_size_inches()
    for handles, bottom in ((lanes, 0.25), (bars, 0.07)):
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(GAP / width, bottom / height), ncols=4, frameon=False, fontsize=FONT,
            handlelength=1.4, columnspacing=1.4, borderpad=0, borderaxespad=0,
        )  # fmt: skip


def _dense(shown: Diagram) -> bool:
    """Whether layers are read by so many that a dot at each would hide the lanes, as in dense blocks."""
    return any(not lane.tied and len(lane.read) > DOTS for lane in shown.lanes)


def _total(shown: Diagram) -> str:
    """What the whole network has, before and after."""
    parts = [f"{shown.num_groups} group{'s' * (shown.num_groups != 1)}"]
    parts.append(change(*shown.channels, "prunable channels", str))
    parts += [change(*shown.macs, "MACs"), change(*shown.params, "parameters")]
    if shown.left_out:
        parts.append(f"the {shown.left_out} layers with the fewest MACs are drawn as one")
    return ",  ".join(parts)


def _of(kept: str, whole: str, between: str) -> str:
    return whole if kept == whole else f"{kept}{between}{whole}"


def _short(number: float) -> str:
    """Three digits: 442 k, 1.38 M."""
    value, _, unit = count(number).partition(" ")
    return f"{float(value):.{max(0, 3 - len(value.partition('.')[0]))}f} {unit}" if unit else value


def _inches(texts: Sequence[str], points: float = FONT, weight: str = "normal") -> float:
    """How wide the longest of these is, on a grid of pixels a little wider than by its outlines."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight=weight)
    return float(max(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] for text in {*texts})) * HINTING / 72
