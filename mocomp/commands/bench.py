"""mocomp bench: how fast an artifact is, beside its baselines and the roofline of the machine, all in one run."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp import terminal
from mocomp.bench import drawn_inputs, machine, subjects
from mocomp.bench.asked import Asked
from mocomp.bench.comparison import compare, earlier, ratios
from mocomp.bench.points import Mix, Wanted
from mocomp.bench.prepared import Prepared
from mocomp.bench.processes import Worker
from mocomp.bench.roofline import WORDS, Roofline
from mocomp.bench.subjects import NAMES, OURS, Subject
from mocomp.bench.turns import SPREAD, Taken, Turns, disturbance, summary
from mocomp.commands.parity import refuse_module
from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.lowering.external_data import refuse_foreign_data
from mocomp.lowering.onnx_session import MODEL
from mocomp.opening import reopen
from mocomp.report import page, results
from mocomp.settings import Options, not_negative


@dataclass(frozen=True)
class BenchOptions(Options):
    """Options of `mocomp bench`, with their defaults; batch, sequence and past are numbers with commas, as the kind of model
    has them when they are empty; threads 0 is one for each processor."""

    batch: str = ""
    sequence: str = ""
    past: str = ""
    mix: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    threads: int = 0
    baseline: tuple[str, ...] = ("torch",)
    rounds: int = 7
    seconds: float = 0.15
    seed: int = 0
    against: str = ""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in self.baseline:
            if name not in (*NAMES, "none"):
                raise Usage(f"no baseline {name!r}; they are {', '.join(NAMES)}, or none")
        for name, least in (("batch", 1), ("sequence", 1), ("past", 0)):
            _numbers(name, getattr(self, name), least)
        not_negative("threads", self.threads)
        not_negative("seed", self.seed)
        if self.rounds < 1 or not 0 < self.seconds < float("inf"):
            raise Usage(f"{self.rounds} rounds of {self.seconds} s", fix="Say at least one round, and more than 0 s.")
        self.mixes()

    def mixes(self) -> tuple[Mix, ...]:
        """The mixes asked for."""
        return tuple(map(drawn_inputs.mix_from, self.mix))

    def wanted(self, default: tuple[Mix, ...]) -> Wanted:
        """What was asked for, with the mixes of a model where none was."""
        batches, sequences, pasts = (_numbers(name, getattr(self, name), 0) for name in ("batch", "sequence", "past"))
        return Wanted(batches, sequences, pasts, self.mixes() or default)


def _numbers(name: str, text: str, least: int) -> tuple[int, ...]:
    """`1,128` as numbers. Raises Usage for what is none."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise Usage(f"--{name} {text!r}", fix=f"Say numbers from {least} on, with commas between them.")
    return tuple(dict.fromkeys(map(int, parts)))


def bench(directory: Path, options: BenchOptions, output: Path | None = None) -> dict[str, Any]:
    """Time the artifact in `directory`; what was seen is written beside it as bench.json, to `output`, and returned.

    Raises BadInput for what is no artifact, Usage for what it cannot be asked, Unsupported when it does not run.
    """
    refuse_module(directory, "bench")
    data = reports.read(directory, options.trust_remote_code)
    if (directory / MODEL).exists():
        refuse_foreign_data(directory / MODEL)
    if output is not None and not output.parent.is_dir():
        raise BadInput("no such directory", where=str(output.parent), fix="Make it, or name another file with -o.")
    if data["options"]["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    old = earlier(Path(options.against)) if options.against else None
    cpus = _processors(options.threads)
    target = reopen(data, timed=True)
    asked = Asked.read(directory, data, target, options.modality, [name for mix in options.mixes() for name, _ in mix])
    points, notes = asked.points(options.wanted(asked.mixes))
    with tempfile.TemporaryDirectory(prefix="mocomp-") as place:
        terminal.say("running every point once")
        (Path(place) / "inputs").mkdir()
        prepared = [asked.prepare(point, options.seed, Path(place) / "inputs") for point in points]
        asked.release()
        running, taken = _subjects(asked, options, Path(place), cpus)
        roofline = _take(running, taken, prepared, asked, options, cpus)
    result = {
        "machine": machine.machine(len(cpus), reports.versions()),
        "settings": dataclasses.asdict(options) | {"kind": asked.interface.kind, "spread": SPREAD, "cpus": len(cpus)},
        "source": data["source"],
        "artifact": str(directory.resolve()),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "roofline": dataclasses.asdict(roofline) | {"words": WORDS},
        "subjects": {name: seen.as_json() for name, seen in taken.items()},
        "points": _points(asked, prepared, taken, roofline),
        "against": None,
        "notes": notes + asked.notes + disturbance(taken),
    }
    result["ratios"] = ratios(result["points"])
    if old is not None:
        result["against"] = {"file": Path(options.against).name, "points": compare(result["points"], old["points"])}
    results.save(directory, results.BENCH, result)
    page.write(directory)
    if output is not None:
        results.save(output.parent, output.name, result)
    return result


def _processors(threads: int) -> list[int]:
    """Those that every subject is kept on. Raises Usage when there are fewer."""
    available = machine.cpus()
    if threads > len(available):
        raise Usage(f"--threads {threads}, and there are {len(available)} processors to run on")
    return available[: threads or len(available)]


def _subjects(asked: Asked, options: BenchOptions, place: Path, cpus: list[int]) -> tuple[list[Subject], dict[str, Taken]]:
    """Those that can run, and what is known of all."""
    asked_for = asked.target.deployment
    running = [subjects.ours(asked.directory, asked.target.name, asked_for.device, asked_for.tf32)]
    taken = {OURS: Taken()}
    for kind in dict.fromkeys(name for name in options.baseline if name != "none"):
        if kind == "transformers":
            terminal.say("exporting with transformers")
        try:
            running.append(subjects.baseline(kind, asked.data["source"], asked.data["options"], place, cpus))
            taken[NAMES[kind]] = Taken()
        except Unsupported as error:
            taken[NAMES[kind]] = Taken(error=error.what)
    return running, taken


def _take(
    running: list[Subject],
    taken: dict[str, Taken],
    prepared: list[Prepared],
    asked: Asked,
    options: BenchOptions,
    cpus: list[int],
) -> Roofline:
    """Fill in `taken`, round by round; the machine is measured in each."""
    roofline = Roofline()
    steps = options.rounds * len(running) * len(prepared)
    with Turns(running, taken, cpus, options.rounds) as turns, terminal.progress("timing", steps, "turns") as advance:
        meter = turns.also(Worker({"kind": "roofline", "weights": asked.weight_bytes}, cpus))
        for _ in range(options.rounds):
            turns.round(prepared, options.seconds, advance)
            roofline.add(meter.ask())
    return roofline


def _points(asked: Asked, prepared: list[Prepared], taken: dict[str, Taken], roofline: Roofline) -> list[dict[str, Any]]:
    """What bench.json has of each point, subject by subject."""
    found = []
    for number, at in enumerate(prepared):
        for name, seen in taken.items():
            if seen.error or number not in seen.times:
                continue
            work = asked.work(at, stored=name == OURS)
            ms, bound = summary(seen.times[number]), roofline.bound_ms(work)
            median = ms["median"]
            found.append(
                {"subject": name}
                | at.point.as_json()
                | {"measures": at.point.measures if asked.interface.kind == "generator" else ""}
                | {"ms": ms, "tokens_per_s": 1e3 * at.point.tokens / median}
                | dataclasses.asdict(work)
                | {"bound_ms": bound, "of_bound": None if bound is None else bound / median}
            )
    return found
