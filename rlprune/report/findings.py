"""What a comparison says in words, and what to know before believing it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from rlprune.report.collect import Run
from rlprune.report.comparison import Line, interval, rivals
from rlprune.report.networks import FINAL, settings_of


def findings(lines: Sequence[Line], baseline: str) -> list[str]:
    """For every block the best line, and which lines can be told from the baseline."""
    found = []
    for equal in rivals(lines):
        best = max(equal, key=lambda line: line.mean("top1"))
        inside = [line for line in lines if line.block == best.block and line.kind == FINAL]
        where = ", ".join(part for part in best.block[1:] if part)
        text = f"{where}: highest is {best.label}, {100 * best.mean('top1'):.2f} % over {_seeds(len(best.networks))}"
        compared = [line for line in inside if len(line.against.get("baseline", [])) > 1]
        told = [f"{line.label} ({float(line.against['baseline'].mean()):+.2f})".replace("-", "−") for line in compared if _told(line)]
        if told:
            text += f"; told from {baseline} by their 95 % intervals: {', '.join(told)}"
        elif compared:
            text += f"; no row can be told from {baseline}, every 95 % interval holds zero"
        elif any(line.against.get("baseline") is not None for line in inside):
            text += "; one seed says nothing of chance"
        found.append(f"{text}.")
    return found


def _told(line: Line) -> bool:
    low, high = interval(line.against["baseline"])
    return low > 0 or high < 0


def _seeds(number: int) -> str:
    return f"{number} seed{'s' if number > 1 else ''}"


def confounded(lines: Sequence[Line]) -> list[str]:
    """Settings other than the agent's own that are not the same for all lines of a block."""
    found = []
    for block in dict.fromkeys(line.block for line in lines if line.kind == FINAL):
        inside = [line for line in lines if line.block == block and line.kind == FINAL and line.networks[0].run.command == "prune"]
        all_settings = [settings_of(line.networks[0].run) for line in inside]
        keys = list(dict.fromkeys(key for settings in all_settings for key in settings if not key.startswith(("agent.", "run."))))
        differ = {key: list(dict.fromkeys(s[key] for s in all_settings if key in s)) for key in keys}
        words = [f"{key} ({', '.join(values)})" for key, values in differ.items() if len(values) > 1 and _tells(key, differ)]
        if words:
            found.append(f"{block[1]}, {block[2]}: not the same in all rows: {'; '.join(words)}")
    return found


def _tells(key: str, differ: Mapping[str, list[str]]) -> bool:
    """A setting of a group whose choice differs already is left to it."""
    group = key.partition(".")[0]
    return group == key or len(differ.get(group, [])) < 2


def averaged(lines: Sequence[Line], average: Sequence[str]) -> list[str]:
    """Settings that differ within a line because they were allowed to."""
    found = []
    for key in average:
        values = {
            value for line in lines for network in line.networks for value in [settings_of(network.run).get(key)] if value is not None
        }
        if len(values) > 1:
            found.append(f"rows average over {key} = {', '.join(sorted(values))}")
    return found


def origins(finished: Sequence[Run]) -> list[str]:
    """Hardware, versions, and weights that may have seen the search split."""
    found = []
    devices = list(dict.fromkeys(str(run.result["device"]) for run in finished if run.result.get("device")))
    versions = [run.result.get("versions") or {} for run in finished]
    packages = {name: sorted({str(entry[name]) for entry in versions if name in entry}) for name in ("rlprune", "torch")}
    if devices:
        found.append(
            f"measured on {'; '.join(devices)}; " + ", ".join(f"{name} {' and '.join(has)}" for name, has in packages.items() if has)
        )
    later = [run for run in finished if _later(str((run.result.get("versions") or {}).get("rlprune", "0")))]
    if later:
        number = "1 run was" if len(later) == 1 else f"{len(later)} runs were"
        found.append(f"{number} written by a later version than this {version('rlprune')}, such as {later[0].folder}")
    seen = [run for run in finished if run.result.get("search_split_seen") == "unknown"]
    if seen:
        where = f"{len(seen)} run{'s' if len(seen) > 1 else ''}, such as {seen[0].folder}"
        found.append(f"dense weights from elsewhere may have been trained on the search split: {where}")
    return found


def _later(wrote: str) -> bool:
    def parts(text: str) -> list[int]:
        return [int(word) for word in text.split(".") if word.isdigit()]

    return parts(wrote) > parts(version("rlprune"))
