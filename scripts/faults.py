"""Kills runs at random points and has the same line go on: does every run end as one that nothing has happened to?

Every command line runs once unbroken; then it is killed (SIGKILL) at points drawn from the seed, up to six times in a row: anywhere in
its time, in its first second (as a new process, with all imports), in its last tenth, or before, within or behind its n-th write; or
SIGINT or SIGTERM ends it. Then the line runs to its end. Compared are result.json without timings, all tables, and the weights bit for
bit. Kills that are in FOLDER/kills-SEED.json are not done again.

usage: python scripts/faults.py [--kills 130] [--seed 0] [--only prune] [--folder outputs/faults]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there: processes are forked, and equal sums need equal threads

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from rlprune import cli, load
from rlprune.checkpoint import load_tensors
from rlprune.errors import UserError
from rlprune.files import read_json
from rlprune.results.tables import to_markdown
from rlprune.search import resume

TINY = ("debug=smoke", "device=cpu", "precision=fp32", "channels_last=false", "model.depth=8", "model.width=0.25")
TINY += ("dataset.image_size=8", "dataset.limit=64")
SEARCH = (*TINY, "search.execution=sliced", "training.epochs=2", "training.save_minutes=0", "resume=true")
AGENTS = {
    "uniform": ("budget.macs=0.5",),
    "mcq": ("schedule.steps=4", "schedule.save_at=[0.25]"),
    "ddpg": ("agent.episodes=12", "agent.batch_size=4", "agent.finetune_batches=1"),
    "amc": ("agent.episodes=12", "agent.warmup=4", "agent.batch_size=4", "search.max_candidates=null"),
    "reinforce": ("agent.updates=3", "agent.samples=3", "budget.macs=0.8", "agent.passes=2"),
    "rlal": ("agent.episodes=3", "schedule.steps=3", "budget.macs=0.5"),
    "random_search": ("reward=flops",),
    "random_rates": (),
    "global": ("recovery=none",),
    "depgraph": (),
    "like": ("agent.run={source}",),
}
WRITES, SIGNALS = ("before", "within", "behind"), {"int": signal.SIGINT, "term": signal.SIGTERM}
VARIES = {"seconds", "latency_ms", "peak_memory_bytes", "crc32"}
COLUMNS = re.compile("seconds|latency|minutes", re.IGNORECASE)
NOTES = (
    "going on with the run",
    "starting anew",
    "resuming behind step",
    "going on behind",
    "measured before",
    "cannot be",
    "that run is done",
)


@dataclass(frozen=True)
class Case:
    """A command line that is killed, and files of it that hold weights."""

    command: str
    agent: str
    words: tuple[str, ...]


def cases(source: str) -> list[Case]:
    """All of them; `source` is a finished run of prune."""
    grid = ("experiment=rlpruner_table1_small", "model=resnet56", "reward=flops", "agent=mcq,uniform", "seed=0", "dataset=digits")
    return [
        Case("train", "", (*TINY, "training.epochs=3", "training.save_minutes=0", "resume=true")),
        *(Case("prune", agent, (*SEARCH, f"agent={agent}", *words)) for agent, words in AGENTS.items() if agent != "like"),
        Case("prune", "like", (*SEARCH, "agent=like", f"agent.run={source}")),
        Case("prune", "grid", (*grid, *(word for word in SEARCH if word != "resume=true"), "model.depth=8")),
        Case("report", "", (f"runs={source}", "paths.run={folder}/report")),
        Case("export", "", (f"run={source}", "format=torch_export", "out={folder}/pruned.pt2", "images=16")),
    ]


# -- processes that die ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Death:
    """`at` seconds, or at a write: `before`, `within` or `behind` number `at`; `fresh` is a new process, the others are forked.

    `int` and `term` are SIGINT and SIGTERM, the rest SIGKILL.
    """

    kind: str
    at: float


def start(case: Case, folder: Path, death: Death | None) -> int:
    """A process that carries out a case's line, and writes what it says to said.txt; its number."""
    line = [case.command, *(word.format(folder=folder) for word in case.words), f"paths.outputs={folder}"]
    if case.command in ("report", "export"):
        line = [word for word in line if not word.startswith("paths.run")] + [f"paths.run={folder}/{time.time_ns()}"]
    said = (folder / "said.txt").open("wb")
    if death is not None and death.kind == "fresh":
        words = [sys.executable, "-c", "from rlprune.cli import entry; entry()", *line]
        return subprocess.Popen(words, stdout=said, stderr=said).pid
    process = os.fork()
    if process:
        said.close()
        return process
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what is started in the background ignores
    if case.command == "prune":
        Figure.savefig = lambda figure, file, **_: Path(file).write_bytes(b"drawn")  # a third of the time, and plots are not compared
    resume.EVERY = 0.2  # seconds between two saves of what was measured
    count_writes(folder, death)
    code = 70
    try:
        code = cli.main(line)
        sys.stdout.flush()
    finally:
        os._exit(code)


def count_writes(folder: Path, death: Death | None) -> None:
    """Count what is moved into its place, in writes.txt, and die at the one that is meant."""
    replace, count = os.replace, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        here = death is not None and count == death.at
        if here and death is not None and death.kind == "within":
            os.truncate(source, os.path.getsize(source) // 2)
        if here and death is not None and death.kind in ("before", "within"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if here and death is not None and death.kind == "behind":
            os.kill(os.getpid(), signal.SIGKILL)
        if death is None:
            (folder / "writes.txt").write_text(str(count), encoding="utf-8")

    os.replace = counted


def run(case: Case, folder: Path, death: Death | None = None) -> int:
    """Exit code of a line that may be killed on its way; minus 9 where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    process, until = start(case, folder, death), time.monotonic() + 600
    if death is not None and death.kind not in WRITES:
        until = time.monotonic() + death.at
    while (found := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() >= until:
            os.kill(process, SIGNALS.get(death.kind, signal.SIGKILL) if death is not None else signal.SIGKILL)
            found = os.waitpid(process, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(found[1])


def draw(random: np.random.Generator, seconds: float, writes: int) -> Death:
    """When to die."""
    kind = str(random.choice(["time", "end", "fresh", *WRITES, *SIGNALS], p=[0.3, 0.1, 0.1, 0.1, 0.2, 0.1, 0.05, 0.05]))
    if kind in WRITES:
        return Death(kind, int(random.integers(1, max(2, writes + 1))))
    first, last = {"end": (0.9 * seconds, seconds), "fresh": (0.0, 1.0)}.get(kind, (0.0, seconds))
    return Death(kind, float(random.uniform(first, last)))


# -- what is left ----------------------------------------------------------------------------------------------------------------------


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has come to, by the names of its files, but for what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"20\d\d-\d\d-\d\d_[\d.-]+|\d{16,}", "TIME", str(path.relative_to(folder)))
        if (
            path.is_dir()
            or path.name.startswith(".")
            or path.name in ("said.txt", "writes.txt", "log.txt", "config.yaml")
            or "cache" in path.parts
        ):
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: (str(value.dtype), value.numpy().tobytes()) for key, value in load_tensors(path)[0].items()}
        elif path.name == "result.json":
            found[name] = without_times(read_json(path), str(folder))
            if (path.parent / "pruned").is_dir():
                found[f"{name}: load"] = {key: value.numpy().tobytes() for key, value in load(path.parent).state_dict().items()}
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            found[name] = table[[column for column in table if not COLUMNS.search(column)]].to_csv()
        else:
            found[name] = "there"
    return found


def without_times(value: Any, folder: str) -> Any:
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(item, folder) for key, item in value.items() if key not in VARIES}
    if isinstance(value, list):
        return [without_times(item, folder) for item in value]
    return re.sub(r"20\d\d-\d\d-\d\d_[\d.-]+|\d{16,}", "TIME", value.replace(folder, "")) if isinstance(value, str) else value


def torn(folder: Path) -> list[str]:
    """Files that a kill has left half written, under their real names."""
    wrong = []
    for path in folder.rglob("[!.]*.*"):
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".csv" and path.stat().st_size == 0:
                wrong.append(path.name)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of files that differ, or are there in one alone."""
    return ", ".join(sorted(name for name in one | other if one.get(name) != other.get(name)))


# -- the table -------------------------------------------------------------------------------------------------------------------------


def unbroken(case: Case, folder: Path) -> tuple[dict[str, Any], float, int]:
    """What a line comes to, its seconds, and its writes."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    if (code := run(case, folder)) != 0:
        sys.exit(f"{case.command} {case.agent}: exit code {code}; see {folder / 'said.txt'}")
    seconds, writes = time.monotonic() - started, folder / "writes.txt"
    return outcome(folder), seconds, int(writes.read_text(encoding="utf-8")) if writes.exists() else 0


def chain(case: Case, folder: Path, whole: tuple[dict[str, Any], float, int], random: np.random.Generator) -> dict[str, Any]:
    """Kill a line once or several times, let it come to its end, and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    deaths, wrong, notes = [], [], Counter[str]()
    for _ in range(int(random.integers(1, 7))):
        death = draw(random, *whole[1:])
        code = run(case, folder, death)
        deaths += [f"{death.kind} {death.at:.3g}"] if code else []
        wrong += [f"exit code {code}"] if code not in (0, {"int": 130, "term": 143}.get(death.kind, -signal.SIGKILL), 130) else []
        wrong += torn(folder) + (["a traceback behind a signal"] if "Traceback" in told(folder) else [])
    code = run(case, folder)
    said = told(folder)
    notes.update(note for note in NOTES if note in said)
    wrong += [f"exit code {code}: {said.strip().splitlines()[-1:]}"] if code else []
    wrong += ["a traceback"] if "Traceback" in said else []
    if not code and (differing := differences(whole[0], outcome(folder))):
        wrong.append(f"differs: {differing}")
    if wrong:
        shutil.copytree(folder, folder.with_name(f"{folder.name}-{case.command}-{case.agent}-{time.time_ns()}"))
    row = {"command": case.command, "agent": case.agent, "kills": len(deaths), "deaths": "; ".join(deaths)}
    return row | {"equal": not wrong, "wrong": "; ".join(wrong), "notes": "; ".join(sorted(notes))}


def told(folder: Path) -> str:
    """What the last process has said."""
    return (folder / "said.txt").read_text(encoding="utf-8", errors="replace")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a command and agent."""
    lines = []
    for (command, agent), mine in rows.fillna("").groupby(["command", "agent"], sort=False):
        told = Counter(note for notes in mine["notes"] for note in notes.split("; ") if note)
        lines.append(
            {
                "command": command,
                "agent": agent,
                "kills": mine["kills"].sum(),
                "runs": len(mine),
                "equal": mine["equal"].sum(),
                "messages": ", ".join(f"{note} {count}×" for note, count in told.most_common()),
                "wrong": "; ".join(sorted({text for text in mine["wrong"] if text})),
            }
        )
    return pd.DataFrame(lines)


def main() -> None:
    """Kill until there are enough, case after case; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=130, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("--only", default="", help="a command, or an agent")
    parser.add_argument("--folder", type=Path, default=Path("outputs/faults"))
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    torch.set_num_threads(1)
    source = folder / "source"
    if not list(source.glob("prune/*/result.json")):
        unbroken(Case("prune", "uniform", (*SEARCH, "agent=uniform")), source)
    (finished,) = (path.parent for path in source.glob("prune/*/result.json"))
    mine = [case for case in cases(str(finished)) if chosen.only in ("", case.command, case.agent)]
    kept = folder / f"kills-{chosen.seed}.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    with tqdm(total=chosen.kills, unit="kill") as bar:
        for index, case in enumerate(mine):
            wanted, number, whole = -(-chosen.kills // len(mine)), 0, None
            while sum(row["kills"] for row in done(rows, case)[:number]) < wanted:
                if number == len(done(rows, case)):
                    whole = whole or unbroken(case, folder / "whole")
                    random = np.random.default_rng([chosen.seed, index, number])
                    rows.append(chain(case, folder / "killed", whole, random))
                    kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
                    if not rows[-1]["equal"]:
                        tqdm.write(f"{case.command} {case.agent}: {rows[-1]['deaths']}: {rows[-1]['wrong']}")
                bar.update(done(rows, case)[number]["kills"])
                bar.set_postfix_str(f"{case.command} {case.agent}")
                number += 1
    print(to_markdown(summary(pd.DataFrame([row for row in rows if chosen.only in ("", row["command"], row["agent"])]))))
    sys.exit(not all(row["equal"] for row in rows))


def done(rows: list[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """What is known of a case."""
    return [row for row in rows if (row["command"], row["agent"]) == (case.command, case.agent)]


if __name__ == "__main__":
    main()
