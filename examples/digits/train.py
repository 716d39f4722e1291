"""Train the bundled models over documents that mix words and image tokens: a stock Qwen3-MoE, a stock
dense Qwen3, and the mixture with groups (MoMa) that mocomp makes of the dense one.

B documents, S tokens of a padded document, T = B x S tokens, E experts. Seeded and deterministic.

    python examples/digits/train.py checkpoint|dense|moma
"""

import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import caption
from data import (
    IMAGE_IDS,
    build_tokenizer,
    caption_first,
    encode,
    fit_codebook,
    image_first,
    load_codebook,
    quantise,
    save_codebook,
    split,
)
from evaluate import evaluate, held_out_documents, load, torch_logits
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import mocomp.nn
from mocomp.commands.upcycle import upcycle
from mocomp.nn import Depth, Mixture
from mocomp.options import UpcycleOptions


@dataclass(frozen=True)
class Recipe:
    """A variant of the model, and how it is trained."""

    layers: int = 3
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 2
    experts: int = 8  # 0 for a dense model, as wide as the experts that a token goes through
    experts_per_token: int = 2
    expert_hidden: int = 64  # not as wide as hidden, so that a transposed weight shows
    balance: float = 0.01  # weight of the load-balancing loss of each layer
    decision: float = 0.1  # weight of the loss of a layer's decision who goes through, with mixture-of-depths
    steps: int = 1500
    batch: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


HERE = Path(__file__).parent
METRICS = HERE / "metrics.json"
DENSE = Recipe(experts=0)
RECIPES = {
    "checkpoint": Recipe(),
    "dense": DENSE,
    "moma": replace(DENSE, seed=1, steps=600, learning_rate=1.5e-3),  # the dense one goes on as a mixture, over other batches
}
# what `mocomp upcycle` makes of the dense model: a token's two experts are as wide as the block was
HALVES = UpcycleOptions(top_k=2, granularity=2)
MOMA = replace(HALVES, groups="text=4,image=4", modality=(f"image={IMAGE_IDS[0]}..{IMAGE_IDS[-1]}",))


def build_model(recipe, tokenizer):
    """A stock model with fresh weights."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "intermediate_size": recipe.experts_per_token * recipe.expert_hidden,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if not recipe.experts:
        return Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=False, **common))
    config = Qwen3MoeConfig(
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        moe_intermediate_size=recipe.expert_hidden,
        norm_topk_prob=True,
        router_aux_loss_coef=recipe.balance,
        **common,
    )
    return Qwen3MoeForCausalLM(config)


def jitter(images, rng):
    """Images [B, 8, 8], each shifted by up to half a pixel, and turned, stretched and slanted a little."""
    count = len(images)
    matrix = np.eye(2, 3) + rng.normal(0, 0.06, (count, 2, 3)) * [1, 1, 0]
    matrix[:, :, 2] = rng.uniform(-0.12, 0.12, (count, 2))  # the image spans -1..1, so a pixel is 0.25
    matrix[rng.random(count) < 0.2] = np.eye(2, 3)  # some stay as they are, or drawings drift off centre
    grid = F.affine_grid(torch.from_numpy(matrix).float(), [count, 1, 8, 8], align_corners=False)
    moved = F.grid_sample(torch.from_numpy(images)[:, None], grid, align_corners=False)
    return moved[:, 0].numpy()


def sample_documents(images, digits, codes, recipe, rng):
    """A batch of fresh documents: jittered images, new captions, either order."""
    chosen = rng.integers(len(images), size=recipe.batch)
    moved = jitter(images[chosen], rng)
    orders = np.where(rng.random(recipe.batch) < 0.5, image_first, caption_first)
    captions = [caption(image, digit, rng) for image, digit in zip(moved, digits[chosen], strict=True)]
    return [order(*pair) for order, *pair in zip(orders, quantise(moved, codes), captions, strict=True)]


def switch_loss(logits, chosen):
    """The load-balancing loss of Switch over logits [T, E] of `chosen` experts a token; `chosen` when balanced."""
    shares = logits.softmax(dim=-1)
    experts = shares.shape[-1]
    routes = F.one_hot(shares.topk(chosen).indices, experts).sum(dim=1).float()
    return experts * (routes.mean(dim=0) * shares.mean(dim=0)).sum()


def grouped_switch_loss(mixture, counted):
    """The sum over the groups of a mixture, each over those of the `counted` tokens [T] bool that may reach it."""
    losses = []
    for logits in mixture.logits.split([count for _, count in mixture.plan.groups], dim=-1):
        own = logits[counted & logits[:, 0].isfinite()]  # -inf: a token of another group
        losses.append(switch_loss(own, mixture.plan.routing.k))
    return sum(losses)


def depth_choice(depth):
    """[B, S] bool, which tokens went through the layer in training: the share with the highest scores."""
    count = max(math.ceil(depth.plan.capacity * depth.scores.shape[1]), 1)
    return depth.scores >= depth.scores.topk(count, dim=1).values[:, -1:]


def losses(model, ids):
    """(next-token loss, load-balancing losses summed, losses of mixture-of-depths' decisions summed) of ids [B, S]."""
    kept = ids != model.config.pad_token_id
    out = model(ids, use_cache=False, output_router_logits=True)
    wanted = ids.masked_fill(~kept, -100)[:, 1:]
    token_loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), wanted.flatten())
    # layer by layer: over all layers at once, one may starve an expert that another overfeeds
    stock = getattr(out, "router_logits", None) or ()
    balance = [switch_loss(logits[kept.flatten()], model.config.num_experts_per_tok) for logits in stock]
    depths = [module for module in model.modules() if isinstance(module, Depth)]
    through = {depth.plan.layer: depth_choice(depth) for depth in depths}
    # the choice of a share of the sequence, which later tokens change, taught as a decision about each token
    foretold = [
        F.binary_cross_entropy_with_logits(depth.decisions[kept], through[depth.plan.layer][kept].float()) for depth in depths
    ]
    for mixture in (module for module in model.modules() if isinstance(module, Mixture)):
        # tokens that go past a layer are no load for its experts
        around = [choice for layer, choice in through.items() if mixture.plan.enter.startswith(f"{layer}.")]
        balance.append(grouped_switch_loss(mixture, torch.stack([kept, *around]).all(dim=0).flatten()))
    zero = token_loss.new_zeros(())
    return token_loss, sum(balance, zero), sum(foretold, zero)


def fit(model, recipe, tokenizer, seen=lambda step: None):
    """Train a model in place, in float32; `seen(step)` is called before each step and once after the last."""
    (images, digits), _ = split()
    codes, rng = load_codebook(), np.random.default_rng(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    started = time.perf_counter()
    for step in range(recipe.steps):
        seen(step)
        model.train()
        documents = sample_documents(images, digits, codes, recipe, rng)
        token_loss, balance, foretold = losses(model, torch.from_numpy(encode(tokenizer, documents)))
        optimizer.zero_grad()
        (token_loss + recipe.balance * balance + recipe.decision * foretold).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            seconds = time.perf_counter() - started
            print(
                f"step {step:5}  loss {token_loss:.4f}  balance {balance:.3f}  depth {foretold:.3f}  {seconds:4.0f} s",
                flush=True,
            )
    seen(recipe.steps)
    return model.eval()


def train(recipe, tokenizer):
    """A trained stock model, in float32."""
    torch.manual_seed(recipe.seed)
    return fit(build_model(recipe, tokenizer), recipe, tokenizer)


def upcycled(dense, options):
    """The model that `mocomp upcycle` makes of a dense directory: mixtures that compute what its blocks did."""
    with tempfile.TemporaryDirectory() as scratch:
        upcycle(str(dense), Path(scratch) / "mixture", options)
        return mocomp.nn.load(Path(scratch) / "mixture")


@torch.inference_mode()
def expert_shares(model, ids):
    """[layers, image and text, E], the share of the routes of each modality that goes to each expert."""
    kept = ids != model.config.pad_token_id
    image = torch.isin(ids, torch.tensor(IMAGE_IDS)).flatten()
    text = ~image & kept.flatten()
    out = model(ids, use_cache=False, output_router_logits=True)
    logits = getattr(out, "router_logits", None) or [m.logits for m in model.modules() if isinstance(m, Mixture)]
    chosen = Recipe.experts_per_token
    routes = [F.one_hot(layer.topk(chosen).indices, layer.shape[-1]).sum(dim=1).float() for layer in logits]
    return torch.stack([torch.stack([route[kind].mean(dim=0) for kind in (image, text)]) for route in routes]) / chosen


def settings():
    """What makes a training the same every time."""
    torch.set_num_threads(1)  # two are faster on an idle machine, and far slower on a busy one
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling it takes a tenth of the time


def make(name, tokenizer):
    """Train one of the bundled models and write its directory, in bfloat16."""
    directory = HERE / name
    if name != "moma":
        train(RECIPES[name], tokenizer).to(torch.bfloat16).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory
    model = fit(upcycled(HERE / "dense", MOMA), RECIPES[name], tokenizer)
    shutil.rmtree(directory, ignore_errors=True)
    mocomp.nn.save(model.to(torch.bfloat16), directory, like=HERE / "dense")
    return directory


def main(name):
    """Fit the codebook, make one of the bundled models, and measure what was saved."""
    settings()
    save_codebook(fit_codebook(split()[0][0]))
    model, tokenizer = load(make(name, build_tokenizer()))
    metrics = json.loads(METRICS.read_text())
    metrics[name] = evaluate(torch_logits(model), tokenizer) | {"parameters": model.num_parameters()}
    METRICS.write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics[name], indent=2))
    if name != "dense":
        shares = expert_shares(model, torch.from_numpy(held_out_documents(tokenizer)))
        for layer, (image, text) in enumerate(shares):
            print(f"layer {layer}  image {image.numpy().round(2)}  text {text.numpy().round(2)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
