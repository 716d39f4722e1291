"""What the user asked for: the options of every command, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.settings import Options, not_negative, one_of, size_in_bytes, token_counts


@dataclass(frozen=True)
class ConvertOptions(Deployment):
    """Options of `mocomp convert`, with their defaults."""

    target: str = "onnxruntime"
    task: str = "auto"
    parity: str = "full"
    weights: str = "all"
    seed: int = 0
    force: bool = False
    trust_remote_code: bool = False
    print_after: str = ""
    quantize: str = ""
    group_size: int = 0
    algorithm: str = "rtn"
    calibration: str = ""
    few_tokens: str = "all"
    quantize_dense: str = ""
    bits: float = 0.0
    target_size: str = ""
    tune: str = ""
    link_weights: bool = False
    expert_parallel: int = 0
    usage: str = ""
    inputs: str = ""
    dynamic: tuple[str, ...] = ()
    outputs: str = ""
    state: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("parity", self.parity, ("full", "blocks", "off"))
        one_of("weights", self.weights, ("all", "none"))
        one_of("few_tokens", self.few_tokens, ("all", "rtn"))
        not_negative("seed", self.seed)
        not_negative("expert_parallel", self.expert_parallel)
        if self.expert_parallel == 1 or (self.expert_parallel and self.weights == "none"):
            raise Usage("--expert-parallel needs 2 ranks or more, and weights to share out")
        if self.expert_parallel and self.link_weights:
            raise Usage("--expert-parallel and --link-weights", fix="Ranks are cut out of the artifact's own weights: say one.")
        if self.usage and not self.expert_parallel:
            raise Usage("--usage without --expert-parallel", fix="It says which experts go together, so say both.")
        if self.tune:
            token_counts(self.tune)
        if self.target_size:
            size_in_bytes(self.target_size, "target size")
        if self.bits and self.target_size:
            raise Usage("--bits and --target-size", fix="Say one of them: both are the budget of mixed precision.")
        if (self.bits or self.target_size) and self.quantize != "mixed":
            raise Usage("a budget of bits or bytes without --quantize mixed", fix="Say both.")

    @property
    def measures_usage(self) -> bool:
        """Whether experts are placed by what calibration texts use, and not by what `--usage` says."""
        return bool(self.expert_parallel and not self.usage)

    def refuse_for(self, what: str, names: tuple[str, ...]) -> None:
        """Raises Usage where an option of these `names` is said, which means nothing for `what` the source is."""
        defaults = {field.name: field.default for field in fields(self)}
        said = [name for name in names if getattr(self, name) != defaults[name]]
        if said:
            raise Usage(f"--{said[0].replace('_', '-')}, and the source is {what}", fix="Leave it out.")

    @property
    def quantizes(self) -> bool:
        """Whether anything is to be quantised."""
        return bool(self.quantize or self.quantize_dense or self.bits or self.target_size)


@dataclass(frozen=True)
class SweepOptions(Deployment):
    """Options of `mocomp quantize`, with their defaults; `formats` and `algorithm` are lists of names with commas."""

    formats: str = "int8,int4:32,int4:128,int2:64"
    algorithm: str = "rtn"
    target: str = "onnxruntime"
    task: str = "auto"
    calibration: str = ""
    few_tokens: str = "all"
    quantize: str = ""
    quantize_dense: str = ""
    group_size: int = 0
    seed: int = 0
    trust_remote_code: bool = False
    bits, target_size, measures_usage = 0.0, "", False  # of a conversion only

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("few_tokens", self.few_tokens, ("all", "rtn"))
        not_negative("seed", self.seed)

    def ways(self) -> list[tuple[str, str]]:
        """(format, algorithm) of each way to try, none of them twice."""
        return list(dict.fromkeys((form, name) for name in self.algorithm.split(",") for form in self.formats.split(",")))


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """Options of every command that makes a checkpoint of a checkpoint."""

    task: str = "auto"
    parity: str = "full"
    layout: str = "auto"
    layers: str = "all"
    shard_size: str = "5GB"
    seed: int = 0
    force: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        one_of("parity", self.parity, ("full", "blocks", "off"))
        one_of("layout", self.layout, ("auto", "stock", "mocomp"))
        not_negative("seed", self.seed)
        self.shard_bytes()

    def shard_bytes(self) -> int:
        """The largest shard in bytes."""
        return size_in_bytes(self.shard_size, "shard size")


@dataclass(frozen=True)
class GroupOptions(CheckpointOptions):
    """Where tokens go: groups of experts, and what tells a token's modality. `groups` is `text=4,image=4`, or a number."""

    groups: str = "8"
    modality: tuple[str, ...] = ()
    otherwise: str = ""

    def group_sizes(self) -> tuple[tuple[str, int], ...]:
        """(name, number of experts) of each group, in their order."""
        parts = [part.partition("=") for part in self.groups.split(",")]
        if len(parts) == 1 and not parts[0][1]:
            parts = [("all", "=", self.groups)]
        named = [(name, int(count) if count.isdigit() else 0) for name, _, count in parts]
        if len({name for name, _ in named}) < len(named) or not all(name and count for name, count in named):
            raise Usage(f"groups {self.groups!r}", fix="Say a number of experts, or groups by name: text=4,image=4")
        return tuple(named)


@dataclass(frozen=True)
class UpcycleOptions(GroupOptions):
    """Options of `mocomp upcycle`, with their defaults."""

    top_k: int = 1
    router: str = "softmax_topk"
    router_init: str = "random"
    calibration: str = ""
    granularity: int = 1
    shared: int = 0
    noise: float = 0.0
    redraw: float = 0.0
    auxiliary: int = 0
    depth: str = ""
    capacity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("router_init", self.router_init, ("random", "zero", "hidden"))
        for name, value in (("redraw", self.redraw), ("capacity", self.capacity)):
            if not 0 <= value <= 1:
                raise Usage(f"{name} is {value}, expected a share from 0 to 1")
        if not 0 <= self.noise < float("inf") or self.auxiliary < 0:
            raise Usage(f"{'auxiliary' if self.auxiliary < 0 else 'noise'} is less than 0, or no number")


@dataclass(frozen=True)
class CarveOptions(CheckpointOptions):
    """Options of `mocomp carve`, with their defaults."""

    experts: int = 8
    shared: int = 1
    top_k: int = 3
    method: str = "cmoe"
    calibration: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method", self.method, ("random", "clusters", "cmoe"))


@dataclass(frozen=True)
class DensifyOptions(CheckpointOptions):
    """Options of `mocomp densify`, with their defaults."""

    weights: str = "mean"
    calibration: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("weights", self.weights, ("mean", "usage"))


@dataclass(frozen=True)
class MergeOptions(CheckpointOptions):
    """Options of `mocomp merge`, with their defaults."""

    expert: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    otherwise: str = ""
    rest: str = "base"
    gate: str = "random"
    prompts: tuple[str, ...] = ()
    top_k: int = 1
    router: str = "softmax_topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("rest", self.rest, ("base", "average"))
        one_of("gate", self.gate, ("random", "hidden", "cheap_embed", "domain"))


@dataclass(frozen=True)
class ExtendOptions(CheckpointOptions):
    """Options of `mocomp extend`, with their defaults. `groups` are new ones, `experts` go into groups that there are."""

    groups: str = ""
    experts: str = ""
    modality: tuple[str, ...] = ()
    reach: str = "own"
    old_group: str = "text"
    expert: tuple[str, ...] = ()
    router_init: str = "random"
    copies: str = "in_turn"
    calibration: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reach", self.reach, ("own", "both"))
        one_of("router_init", self.router_init, ("random", "copy", "hidden"))
        one_of("copies", self.copies, ("in_turn", "usage"))

    def new_groups(self) -> tuple[tuple[str, int], ...]:
        """(name, number of experts) of each new group."""
        return _sizes(self.groups, "groups") if self.groups else ()

    def more_experts(self, groups: list[str]) -> tuple[tuple[str, int], ...]:
        """(group, number) of the experts that are added to `groups`, which the model has; a bare number is for the only one."""
        if not self.experts:
            return ()
        bare = self.experts.isdigit() and len(groups) == 1
        named = _sizes(f"{groups[0]}={self.experts}" if bare else self.experts, "experts")
        unknown = [name for name, _ in named if name not in groups]
        if unknown:
            raise Usage(f"experts for {unknown[0]!r}, and the model has {', '.join(groups)}", fix="New ones: --groups NAME=N")
        return named


def _sizes(text: str, option: str) -> tuple[tuple[str, int], ...]:
    """NAME=N,NAME=N as pairs."""
    parts = [part.partition("=") for part in text.split(",")]
    named = [(name, int(count) if count.isdigit() else 0) for name, _, count in parts]
    if len({name for name, _ in named}) < len(named) or not all(name and count for name, count in named):
        raise Usage(f"{option} {text!r}", fix=f"Say numbers of experts by group: --{option} text=4,image=4")
    return tuple(named)


def sources_by_name(given: tuple[str, ...], option: str) -> dict[str, list[str]]:
    """NAME=SOURCE texts as {name: its sources in their order}."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, _, source = text.partition("=")
        if not name or not source:
            raise Usage(f"--{option} {text!r} is not NAME=SOURCE")
        found.setdefault(name, []).append(source)
    return found
