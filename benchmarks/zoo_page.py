"""The table of docs/zoo.md, from what `mocomp zoo run --json` printed.

mocomp zoo run --json > benchmarks/results/zoo-NAME-OF-THE-MACHINE.json
python benchmarks/zoo_page.py benchmarks/results/zoo-NAME-OF-THE-MACHINE.json
"""

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
HEAD = """\
| name | host | paper | recognised as | error, onnxruntime | error, onnx | nodes | ms, PyTorch | ms, onnxruntime | ms, onnx |
|---|---|---|---|---|---|---|---|---|---|
"""


def row(line: dict[str, Any]) -> str:
    """A line of the zoo's table in Markdown; one that did not pass says so in place of its errors."""
    cells = [line["name"], line["host"].replace("_", " "), line["paper"], line["recognised"] or "plain operators"]
    fused, standard = line["targets"]["onnxruntime"], line["targets"]["onnx"]
    errors = [number(on["error"], ".1e") if on["verdict"] == "passed" else on["verdict"] for on in (fused, standard)]
    nodes = number(fused["nodes"], "d") if fused["nodes"] == standard["nodes"] else f"{fused['nodes']}, {standard['nodes']}"
    times = [number(ms, ".3g") for ms in (fused["original_ms"], fused["artifact_ms"], standard["artifact_ms"])]
    return "| " + " | ".join([*cells, *errors, nodes, *times]) + " |\n"


def number(value: float | None, form: str) -> str:
    """A number in that form, nothing for None."""
    return "" if value is None else format(value, form)


def page(text: str, report: dict[str, Any]) -> str:
    """The page with the table of a report in place of the one that it has."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    machine = report["machine"]
    told = f"\n{report['passed']} pass, {report['refused']} are refused, {report['failed']} fail; {machine['cpu']}, "
    told += f"{machine['threads']} processors, in milliseconds for the example.\n"
    return before + BEGIN + HEAD + "".join(map(row, report["lines"])) + told + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), json.loads(Path(sys.argv[1]).read_text())))
