"""Train the digits model: one stock Qwen3-MoE over documents that mix words and image tokens.

B documents, S tokens of a padded document, E experts. Seeded and deterministic.

    python examples/digits/train.py [CHECKPOINT]
"""

import json
import sys
import time
from dataclasses import dataclass
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
from evaluate import CHECKPOINT, evaluate, load, torch_logits
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func


@dataclass(frozen=True)
class Recipe:
    """A variant of the model, and how it is trained."""

    layers: int = 3
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 2
    experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 64  # not as wide as hidden, so that a transposed weight shows
    balance: float = 0.01  # weight of the load-balancing loss of each layer
    steps: int = 1500
    batch: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


def build_model(recipe, tokenizer):
    """A stock model with fresh weights."""
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        moe_intermediate_size=recipe.expert_hidden,
        intermediate_size=recipe.experts_per_token * recipe.expert_hidden,
        norm_topk_prob=True,
        max_position_embeddings=tokenizer.model_max_length,
        router_aux_loss_coef=recipe.balance,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
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


def losses(model, ids):
    """(next-token loss, load-balancing loss summed over the layers) of ids [B, S]."""
    config = model.config
    kept = ids != config.pad_token_id
    out = model(ids, use_cache=False, output_router_logits=True)
    wanted = ids.masked_fill(~kept, -100)[:, 1:]
    token_loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), wanted.flatten())
    # layer by layer: over all layers at once, one may starve an expert that another overfeeds
    balance = [
        load_balancing_loss_func((layer,), config.num_experts, config.num_experts_per_tok, kept) for layer in out.router_logits
    ]
    return token_loss, sum(balance)


def train(recipe, tokenizer, images, digits, codes):
    """A trained model, in float32."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    started = time.perf_counter()
    for step in range(recipe.steps):
        documents = sample_documents(images, digits, codes, recipe, rng)
        token_loss, balance = losses(model, torch.from_numpy(encode(tokenizer, documents)))
        optimizer.zero_grad()
        (token_loss + recipe.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            seconds = time.perf_counter() - started
            shown = balance.item() / recipe.layers / recipe.experts_per_token
            print(f"step {step:5}  loss {token_loss.item():.4f}  balance {shown:.3f}  {seconds:4.0f} s", flush=True)
    return model.eval()


@torch.inference_mode()
def expert_shares(model, ids):
    """[layers, image and text, E], the share of the routes of each modality that goes to each expert."""
    config = model.config
    image = torch.isin(ids, torch.tensor(IMAGE_IDS)).flatten()
    text = ~image & (ids != config.pad_token_id).flatten()
    routers = model(ids, use_cache=False, output_router_logits=True).router_logits
    routes = [F.one_hot(r.topk(config.num_experts_per_tok).indices, config.num_experts).sum(1).float() for r in routers]
    shares = torch.stack([torch.stack([route[kind].mean(0) for kind in (image, text)]) for route in routes])
    return shares / config.num_experts_per_tok


def main(checkpoint=CHECKPOINT, recipe=Recipe()):
    """Fit the codebook, train, save in bfloat16, and measure what was saved."""
    torch.set_num_threads(1)  # two are faster on an idle machine, and far slower on a busy one
    torch.use_deterministic_algorithms(True)
    (images, digits), _ = split()
    save_codebook(fit_codebook(images))
    codes, tokenizer = load_codebook(), build_tokenizer()

    model = train(recipe, tokenizer, images, digits, codes)
    model.to(torch.bfloat16).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)

    model, tokenizer = load(checkpoint)
    metrics = evaluate(torch_logits(model), tokenizer)
    metrics["parameters"] = model.num_parameters()
    Path(checkpoint).with_name("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))
    documents = sample_documents(images, digits, codes, recipe, np.random.default_rng(recipe.seed))
    shares = expert_shares(model, torch.from_numpy(encode(tokenizer, documents)))
    for layer, (image, text) in enumerate(shares):
        print(f"layer {layer}  image {image.numpy().round(2)}  text {text.numpy().round(2)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
