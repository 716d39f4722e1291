"""The bars that mocomp has to clear, the ratios it reached, and the tables that show both."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

PEERS = ("transformers", "mobius", "torch")
INT4 = ("mocomp int4:32", "mocomp int4:128")
"""The artifacts in 4 bits that bars are stated for; the fastest of them counts."""
TUNED = ("mocomp tuned",)
"""The float artifact whose mixtures run in the ways that were the fastest when it was made."""
COLUMNS = {
    "conversion_s": "conversion s",
    "memory_gib": "peak RSS over imports GiB",
    "nodes": "nodes",
    "weights_mb": "graph and weights MB",
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
    """The `column` of the best of `rows` divided by that of `peer` must be at most `limit`; no peer means the best one."""

    column: str
    limit: float
    peer: str = ""
    rows: tuple[str, ...] = ("mocomp",)

    def check(self, rows: dict[str, Row]) -> dict[str, object]:
        names = (self.peer,) if self.peer else tuple(name for name in PEERS if name != "torch" or self.column != "load_s")
        ours, theirs = best(rows, self.rows, self.column), best(rows, names, self.column)
        ratio = rows[ours][self.column] / rows[theirs][self.column] if ours and theirs else None
        return {
            "row": ours or " or ".join(self.rows),
            "column": self.column,
            "against": theirs or self.peer or "best peer",
            "limit": self.limit,
            "ratio": ratio,
            "met": None if ratio is None else ratio <= self.limit,
        }


def best(rows: dict[str, Row], names: tuple[str, ...], column: str) -> str | None:
    """Which of `names` has the least in a column; None when none has anything there."""
    known = [name for name in names if column in rows.get(name, {})]
    return min(known, key=lambda name: rows[name][column], default=None)


BARS = (
    Bar("conversion_s", 1 / 6, "transformers"),
    Bar("conversion_s", 1.5, "mobius"),
    Bar("load_s", 0.3),
    Bar("1 token", 0.5),
    Bar("512 tokens", 1.4),
    Bar("1 token", 0.5, rows=TUNED),
    Bar("128 tokens", 1.0, rows=TUNED),
    Bar("512 tokens", 0.9, rows=TUNED),
    Bar("1 token", 1.0, "mocomp", TUNED),
    Bar("weights_mb", 0.19, "mocomp", INT4[:1]),
    Bar("weights_mb", 0.17, "mocomp", INT4[1:]),
    Bar("1 token", 0.3, rows=INT4),
    Bar("128 tokens", 0.65, rows=INT4),
    Bar("512 tokens", 0.7, rows=INT4),
)
RATIOS = tuple(column for column in COLUMNS if column not in ("error", "nodes", "variants"))


def ratios(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """mocomp divided by each peer, column by column."""
    ours = rows.get("mocomp", {})

    def against(theirs: Row) -> dict[str, float]:
        return {column: ours[column] / theirs[column] for column in RATIOS if ours.get(column) and theirs.get(column)}

    return {peer: against(rows[peer]) for peer in PEERS if peer in rows}


def ratios_to_best_peer(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """Each artifact of mocomp divided by the peer that is best in that column."""
    peers = {column: peer for column in RATIOS if (peer := best(rows, PEERS, column))}
    return {
        name: {column: row[column] / rows[peer][column] for column, peer in peers.items() if column in row}
        for name, row in rows.items()
        if name not in PEERS
    }


def show(rows: dict[str, Row], checks: list[dict], console: Console) -> None:
    """Print the measurements, then the ratios, then the bars."""
    bodies = {"measured": rows, "mocomp divided by": ratios(rows), "divided by the best peer": ratios_to_best_peer(rows)}
    for title, body in bodies.items():
        table = Table("", *body, title=title)
        for column, label in COLUMNS.items():
            if any(column in row for row in body.values()):
                table.add_row(label, *(_text(row.get(column)) for row in body.values()))
        console.print(table)
    table = Table("", "bar", "against", "at most", "reached", "", title="bars")
    for check in checks:
        mark = {True: "[green]met", False: "[red]missed", None: "not measured"}[check["met"]]
        what, numbers = (check["row"], COLUMNS[check["column"]], check["against"]), (check["limit"], check["ratio"])
        table.add_row(*what, *map(_text, numbers), mark)
    console.print(table)


def _text(value: float | int | str | None) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
