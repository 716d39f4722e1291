"""The bars that mocomp has to clear, the ratios it reached, and the tables that show both."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

PEERS = ("transformers", "mobius", "torch")
COLUMNS = {
    "conversion_s": "conversion s",
    "memory_gib": "peak RSS over imports GiB",
    "nodes": "nodes",
    "load_s": "session load s",
    "1 token": "1 token ms",
    "128 tokens": "128 tokens ms",
    "512 tokens": "512 tokens ms",
    "error": "max error of logits",
    "variants": "best experts",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """mocomp's `column` divided by that of `peer` must be at most `limit`; no peer means the best one."""

    column: str
    limit: float
    peer: str = ""

    def check(self, rows: dict[str, Row]) -> dict[str, object]:
        ours = rows.get("mocomp", {}).get(self.column)
        names = [self.peer] if self.peer else [name for name in PEERS if name != "torch" or self.column != "load_s"]
        theirs = {name: rows[name][self.column] for name in names if self.column in rows.get(name, {})}
        against = min(theirs, key=theirs.__getitem__, default=None)
        ratio = ours / theirs[against] if against and ours is not None else None
        return {
            "column": self.column,
            "against": against or self.peer or "best peer",
            "limit": self.limit,
            "ratio": ratio,
            "met": None if ratio is None else ratio <= self.limit,
        }


BARS = (
    Bar("conversion_s", 1 / 6, "transformers"),
    Bar("conversion_s", 1.5, "mobius"),
    Bar("load_s", 0.3),
    Bar("1 token", 0.5),
    Bar("512 tokens", 1.4),
)


def ratios(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """mocomp divided by each peer, column by column."""
    ours = rows.get("mocomp", {})
    columns = [column for column in COLUMNS if column not in ("error", "nodes", "variants")]

    def against(theirs: Row) -> dict[str, float]:
        return {column: ours[column] / theirs[column] for column in columns if ours.get(column) and theirs.get(column)}

    return {peer: against(rows[peer]) for peer in PEERS if peer in rows}


def show(rows: dict[str, Row], checks: list[dict], console: Console) -> None:
    """Print the measurements, then the ratios, then the bars."""
    for title, body in (("measured", rows), ("mocomp divided by", ratios(rows))):
        table = Table("", *body, title=title)
        for column, label in COLUMNS.items():
            if any(column in row for row in body.values()):
                table.add_row(label, *(_text(row.get(column)) for row in body.values()))
        console.print(table)
    table = Table("bar", "against", "at most", "reached", "", title="bars")
    for check in checks:
        mark = {True: "[green]met", False: "[red]missed", None: "not measured"}[check["met"]]
        table.add_row(COLUMNS[check["column"]], check["against"], _text(check["limit"]), _text(check["ratio"]), mark)
    console.print(table)


def _text(value: float | int | str | None) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
