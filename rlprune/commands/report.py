"""`rlprune report`: one table over many runs."""

from pathlib import Path

from rlprune.commands.job import command
from rlprune.skeleton import ReportConfig


@command("report")
def main(config: ReportConfig, run_dir: Path, choices: dict[str, str]) -> None:
    """Print the table and write it as Markdown and CSV."""
    from rlprune.files import write_text
    from rlprune.results.report import collect, for_people
    from rlprune.results.tables import to_markdown

    frame, skipped = collect(config.runs)
    text = to_markdown(for_people(frame))
    if skipped:
        text += "\n\nLeft out:\n" + "\n".join(f"- {line}" for line in skipped)
    write_text(run_dir / "report.md", text + "\n")
    write_text(run_dir / "report.csv", frame.to_csv(index=False))
    print(f"{text}\n\nwrote {run_dir / 'report.md'} and report.csv")
