"""Checkpoints with experts that no token chooses, or that compute the same, planted; and data to see it on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

ROWS = [torch.randint(0, 128, (10,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(6)]
"""Fewer tokens than a hidden size of 64, so that a row of the router can give each of them the logit that one likes."""
NEVER = -50.0
"""A logit that no other comes near."""


def written(path: Path, rows: list[list[int]] | None = None) -> Path:
    """Rows of token ids as a file of data."""
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows or ROWS))
    return path


def edited(source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint of one file, its tensors edited."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def eager(directory: Path):
    """The model as transformers loads it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, experts_implementation="eager"
    ).eval()


def inputs_of(model, name: str, rows: list[list[int]]) -> torch.Tensor:
    """What comes into a module [T, H], over all rows."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    logits_of(model, rows)
    hook.remove()
    return torch.cat(seen)


def logits_of(model, rows: list[list[int]]) -> list[torch.Tensor]:
    """The logits [S, V] of each row."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0] for row in rows]


def dead_row(source: Path, target: Path, gate: str, block: str, expert: int, rows: list[list[int]] = ROWS) -> Path:
    """A copy whose router gives every token of the rows a logit of `NEVER` for an expert, and other tokens what it may."""
    x = inputs_of(eager(source), block, rows).double()
    row = torch.linalg.lstsq(x, torch.full((len(x),), NEVER, dtype=torch.float64), driver="gelsd").solution

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[gate][expert] = row.to(tensors[gate].dtype)

    return edited(source, target, edit)
