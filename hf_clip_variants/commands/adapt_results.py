"""What `adapt` and `demo` print at the end: a table for each test set, the recommendation, the next command."""

import os
from typing import Any

from ..files.printable import printable
from . import output


def print_results(results: dict[str, Any], out: str) -> None:
    """Print what results.json says, in 80 columns: zero-shot CLIP first, gains with their intervals."""
    from rich.table import Table
    from rich.text import Text

    from ..few_shot.next_commands import next_commands
    from ..few_shot.report import mean_text
    from ..metrics.intervals import gain_text, may_be_chance

    screen = output.screen()
    rows = sorted(results["table"], key=lambda row: row["shots"])
    chance, thing = False, "video" if results["data"].get("videos") else "image"
    for name, about in results["data"]["test_sets"].items():
        title = Text(printable(f"{name}, {about['images']} test {thing}s"))
        table = Table(title=title, title_justify="left")
        for column in ("method", "shots", "accuracy, %", "gain (95 % interval)", "time"):
            table.add_column(column, justify="left" if column[0] in "mg" else "right")
        for place, row in enumerate(rows):
            test, gain = row["tests"][name], Text()
            if row["shots"]:
                unsure = may_be_chance(test["interval"])
                style = "dim" if unsure else "green" if test["gain"] > 0 else "red"
                gain, chance = Text(gain_text(test["gain"], test["interval"]), style), chance or unsure
                gain.append(" ~" if unsure else "")
            time = f"{row['seconds']:.1f} s" if row["shots"] else ""
            last = place + 1 == len(rows) or rows[place + 1]["shots"] != row["shots"]
            table.add_row(Text(row["title"]), str(row["shots"]), mean_text(test), gain, time, end_section=last)
        screen.print(table)
    notes = []
    if (seeds := max(row["seeds"] for row in rows)) > 1:
        notes.append(f"Mean ± standard deviation over {seeds} seeds.")
    notes += ["~: the interval includes 0, so the gain may be chance."] if chance else []
    passes = sum(record["passes_at_every_step"] for record in results["runs"])
    if encoded := results["data"]["encoded_views"]:
        notes.append(f"The frozen image encoder ran on {encoded:,} training {thing}s instead of {passes:,}.")
    if any(about.get("rows_are_saved") for about in results["data"]["test_sets"].values()):
        notes.append(f"Without test data, a share of the {thing}s of each class is held out as the test set.")
    screen.print("\n".join([*notes, f"{results['seconds']:.0f} s in all."]), style="dim")
    screen.print(recommendation(results["recommended"], thing), style="bold")
    for name, path in (("Report", "report.html"), ("Adapters", "adapters")):
        screen.print(f"{name + ':':<9} {os.path.join(out, path)}", soft_wrap=True)
    screen.print(f"{'Next:':<9} {next_commands(results, results['recommended'], out)[0][1]}", soft_wrap=True)


def recommendation(recommended: dict[str, Any], thing: str = "image") -> str:
    """The recommendation in a sentence; `thing` is what was drawn and tested on."""
    shots = f"{recommended['shots']} {thing}{'s' * (recommended['shots'] != 1)} a class"
    if not recommended["shots"]:
        return (
            f"Recommended: keep zero-shot CLIP; no adapter promises to be better. No test {thing} was used to decide."
        )
    gain = f"{100 * recommended['estimated_gain']:+.1f} ± {100 * recommended['standard_error']:.1f}"
    return (
        f"Recommended: {recommended['title']} with {shots}, which promises {gain} points over zero-shot CLIP. "
        f"No test {thing} was used to decide."
    )


__all__ = ["print_results", "recommendation"]
