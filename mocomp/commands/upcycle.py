"""mocomp upcycle: copies of a dense model's feed-forward blocks, or slices of them, become the experts of mixtures."""

from __future__ import annotations

from pathlib import Path

from mocomp.calibration.router import first_rows
from mocomp.checkpoints import Opened, chosen, finish, groups_of, in_tower, opened
from mocomp.errors import Usage
from mocomp.fill import Filled
from mocomp.fill.depth import fill_depth
from mocomp.fill.routing import tried
from mocomp.fill.upcycle import Upcycle
from mocomp.opening import as_asked
from mocomp.options import UpcycleOptions
from mocomp.plans.plan import MixturePlan
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.weights.output import new_directory

NO_GRADIENT = (
    "the weight of a token's one expert is always the same, so no loss on outputs trains the router: take --top-k 2, "
    "--router softmax_topk:normalize=false, or a balance loss"
)


def upcycle(source_name: str, output: Path, options: UpcycleOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """DENSE with mixtures whose experts are copies of its feed-forward blocks, or slices of them."""
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("upcycle", options, source_name)) as made,
        opened(source_name, options) as dense,
    ):
        groups, modality = groups_of(options, dense.source)
        blocks = chosen(dense.blocks, options.layers)
        names = [block.enter for block in blocks]
        rows, notes = first_rows(
            dense.source, dense.traced.interface, names, modality, options, made.executor.resources.nbytes()
        )
        fill = Upcycle(
            groups=groups,
            reach=tuple((name,) for name, _ in groups),
            k=options.top_k,
            router=options.router,
            rows=rows,
            granularity=options.granularity,
            shared=options.shared,
            noise=options.noise,
            redraw=options.redraw,
            auxiliary=options.auxiliary,
            seed=options.seed,
        )
        filled = [in_tower(fill, block, modality)(block) for block in blocks]
        deep = chosen(dense.blocks, options.depth, "--depth") if options.depth else []
        refuse_unused_or_missing_auxiliary(dense, filled, options)
        depths = [fill_depth(block, options.capacity, options.auxiliary, options.seed) for block in deep]
        notes = [*notes, *(NO_GRADIENT for _ in filled[:1] if never_trains(filled[0].plan))]
        return finish("upcycle", dense, filled, modality, options, made, depths, notes=notes)


def never_trains(plan: MixturePlan) -> bool:
    """Whether one expert is chosen and its weight is a constant."""
    return plan.routing.fixed and plan.routing.k == 1 and tried(plan.routing, plan.experts)[1] is not None


def refuse_unused_or_missing_auxiliary(dense: Opened, filled: list[Filled], options: UpcycleOptions) -> None:
    """A router under which tokens see later ones needs a causal one beside it in a model that generates, and no other does."""
    causal = all(f.plan.routing.causal for f in filled)
    if options.auxiliary and causal and not options.depth:
        raise Usage(f"--auxiliary, and router {options.router} is causal itself", fix="Leave it out, or say --depth.")
    if not options.auxiliary and not causal and dense.traced.interface.kind == "generator":
        raise Usage(
            f"under router {options.router} a token's experts depend on later tokens, which a model that generates has not got",
            fix="Say --auxiliary WIDTH for a router of inference.",
        )
