"""mocomp parity --ranks: prove the ranks beside an artifact again, all of them together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from mocomp.commands.parity import ParityOptions, opened, parameters_of
from mocomp.errors import Usage
from mocomp.lowering.ranks_runner import read
from mocomp.placement.proof import prove_ranks
from mocomp.resources import Resources
from mocomp.verify.memory import refuse_if_too_large
from mocomp.verify.parity import Parity


def parity_of_ranks(directory: Path, options: ParityOptions, resources: Resources | None = None) -> Parity:
    """The ranks of an artifact against the source that it was made from, or another, and against the artifact itself.

    Raises Usage with inputs of the user's own or with resources, of which it has no use, Unsupported where the original
    does not fit into memory, BadInput where the ranks are not there, or do not make one model.
    """
    if options.inputs or options.text:
        raise Usage("--ranks with --inputs or --text", fix="Leave one out: ranks are proven on generated inputs.")
    if resources is not None and (said := _said(resources)):
        raise Usage(f"--ranks with --{said}", fix="Leave it out: ranks are proven whole, in this process.")
    made = opened(directory, options.reference, options.trust_remote_code)
    ranks = len(read(directory))
    refuse_if_too_large(parameters_of(made.source), str(made.source.directory))
    notes, another = made.refuse_other_weights(None), bool(options.reference)
    proof, verdict = prove_ranks(made, options.seed, another)
    told = (
        f"{ranks} ranks together: the single model to {proof.difference:.1e} on {proof.compared} of {proof.cases} inputs, in "
        f"sequences of the same choices; {proof.crossed} of {proof.steps} steps between mixtures crossed ranks"
    )
    verdict.notes = [told, *notes, *verdict.notes]
    return verdict


def _said(resources: Resources) -> str:
    """The first of the resources that is not as it is where nothing is said."""
    unsaid = Resources()
    return next((f.name for f in fields(resources) if getattr(resources, f.name) != getattr(unsaid, f.name)), "")
