"""Are experts of their own worth having for each modality? Four continuations of one dense model, measured.

For each seed a dense model is trained, and from its weights four models go on with the same optimizer, steps and
batches: the dense one itself, and three that `mocomp upcycle` makes of it. A token has as many active parameters in all.
Finished runs are kept in experiment.json; delete it to run all again, about 35 minutes of one core.

    python examples/digits/experiment.py    # the runs that are missing, then the plot and the README's table
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from data import build_tokenizer
from evaluate import held_out_documents, load, modality_losses, torch_logits
from train import HALVES, HERE, MOMA, Recipe, fit, settings, train, upcycled

from mocomp.nn import Depth, Mixture

VARIANTS = {
    "dense": None,
    "8 mixed experts": dataclasses.replace(HALVES, layout="mocomp"),  # which has the same form as the others
    "4 text + 4 image experts": MOMA,
    "4 text + 4 image experts, depth": dataclasses.replace(MOMA, depth="1", capacity=0.5),
}
SEEDS = (0, 1, 2)
START = Recipe(experts=0, steps=500)
CONTINUED = Recipe(experts=0, steps=500, learning_rate=1.5e-3)  # half the rate of the start; not tuned
EVERY = 50
RESULTS, PLOT, README = HERE / "experiment.json", HERE / "experiment.svg", HERE / "README.md"
BEGIN, END = "<!-- the table is written by experiment.py -->", "<!-- end of the table -->"
SCRATCH = Path(".demo/experiment")


def dense_start(seed, recipe, scratch, tokenizer):
    """The directory of the dense model of a seed, in float32; trained when it is not there."""
    directory = scratch / f"dense-{seed}"
    if not directory.exists():
        train(dataclasses.replace(recipe, seed=seed), tokenizer).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def run(start, options, recipe, tokenizer, every=EVERY):
    """Train on from a dense directory: the losses on the held-out documents by step, and the sizes, as JSON."""
    began, ids = time.process_time(), held_out_documents(tokenizer)
    model = load(start)[0] if options is None else upcycled(start, dataclasses.replace(options, seed=recipe.seed))
    points = []

    def seen(step):
        if step % every == 0:
            points.append([step, *modality_losses(torch_logits(model.eval()), tokenizer, ids)])

    fit(model, recipe, tokenizer, seen)
    through = through_layers(model, ids, tokenizer)
    steps, text, image = zip(*points, strict=True)
    return {
        "steps": steps,
        "text": text,
        "image": image,
        "through": through,
        **sizes(model, through),
        "cpu_seconds": round(time.process_time() - began),
    }


@torch.inference_mode()
def through_layers(model, ids, tokenizer):
    """For each layer with mixture-of-depths, the share of the tokens of ids [N, S] that go through it."""
    torch_logits(model.eval())(ids)
    kept = torch.from_numpy(ids != tokenizer.pad_token_id)
    depths = [module for module in model.modules() if isinstance(module, Depth)]
    return {depth.plan.layer: (depth.decisions[kept] > 0).float().mean().item() for depth in depths}


def sizes(model, through):
    """Parameters, those that one token uses, and the operations of a token in products with weights.

    Tokens that go past a layer save its operations; attention's own products, 1 % of all, are left out.
    """
    used = dict.fromkeys(dict(model.named_parameters()), 1.0)
    for name, module in model.named_modules():
        if isinstance(module, Mixture):
            used |= {p: module.plan.routing.k / module.plan.experts for p in used if p.startswith(f"{name}.experts.")}
    in_depth = {p: share for p in used for layer, share in through.items() if p.startswith(f"{layer}.") and ".depth." not in p}
    products = {p for p, w in model.named_parameters() if w.dim() > 1 and "embed_tokens" not in p}
    count = {p: w.numel() * used[p] for p, w in model.named_parameters()}
    return {
        "parameters": model.num_parameters(),
        "active": round(sum(count.values())),
        "flops": round(sum(2 * count[p] * in_depth.get(p, 1.0) for p in products)),
    }


def summary(runs, kind):
    """For each variant the last loss of a kind, and what it is above the dense run's, as `mean ± deviation` over the seeds."""
    last = {variant: np.array([one[kind][-1] for one in by_seed.values()]) for variant, by_seed in runs.items()}
    above = {variant: values - last["dense"] for variant, values in last.items()}

    def told(values, sign=""):
        return f"{values.mean():{sign}.4f} ± {values.std(ddof=1):.4f}"

    return {variant: (told(last[variant]), told(above[variant], "+") if variant != "dense" else "") for variant in runs}


def table(runs):
    """The results as a table in Markdown. Differences are taken seed by seed, as the batches are the same."""
    text, image = summary(runs, "text"), summary(runs, "image")
    lines = [
        "| | text loss | above dense | image loss | above dense | active | all | FLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, by_seed in runs.items():
        means = {name: np.mean([one[name] for one in by_seed.values()]) for name in ("active", "parameters", "flops")}
        flops = means["flops"] / runs["dense"]["0"]["flops"]
        sizes = (f"{means['active'] / 1e6:.2f} M", f"{means['parameters'] / 1e6:.2f} M", f"{flops:.2f}")
        lines.append(f"| {' | '.join((variant, *text[variant], *image[variant], *sizes))} |")
    return "\n".join(lines)


def plot(runs, path):
    """Loss of each modality against steps: the mean over the seeds, and the band from the least to the largest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "digits"  # the same file from the same results
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    for axes, kind in zip(figure.subplots(1, 2), ("text", "image"), strict=True):
        for variant, by_seed in runs.items():
            values = np.array([one[kind] for one in by_seed.values()])
            steps = by_seed["0"]["steps"]
            axes.plot(steps, values.mean(axis=0), label=variant)
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2)
        axes.set(title=f"{kind} tokens", xlabel="steps after the dense start", ylabel="held-out loss, nats per token")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main():
    """Do the runs that are missing, then write the plot and the table of the README."""
    settings()
    tokenizer = build_tokenizer()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {variant: {} for variant in VARIANTS}}
    results |= {"start": dataclasses.asdict(START), "continued": dataclasses.asdict(CONTINUED)}
    for seed in SEEDS:
        start = dense_start(seed, START, SCRATCH, tokenizer)
        recipe = dataclasses.replace(CONTINUED, seed=1000 + seed)  # other batches than the start has seen
        for variant, options in VARIANTS.items():
            if str(seed) not in results["runs"][variant]:
                print(f"{variant}, seed {seed}", flush=True)
                results["runs"][variant][str(seed)] = run(start, options, recipe, tokenizer)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    plot(results["runs"], PLOT)
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{table(results['runs'])}\n\n{END}{rest.partition(END)[2]}")
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
