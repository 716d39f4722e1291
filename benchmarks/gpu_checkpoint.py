"""A measured layer as a checkpoint that mocomp reads."""

from __future__ import annotations

from pathlib import Path

from gpu_layers import VOCABULARY, OneLayer
from gpu_subjects import Case


def checkpoint_of(case: Case) -> Path:
    """The layer in the files of Hugging Face, or with mocomp's plan where it tells modalities apart; written once."""
    directory = case.work / case.key / "checkpoint"
    if (directory / "config.json").exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    if case.layout.groups > 1:
        _write_grouped(case.layer, directory)
    else:
        case.layer.stock.save_pretrained(directory)
    return directory


def _write_grouped(layer: OneLayer, directory: Path) -> None:
    """As a dense model into which a mixture for text and images was put; its class has the same attention."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from mocomp.nn.model import insert, save
    from mocomp.plans.modality import Modality
    from mocomp.plans.plan import MixturePlan, ModelPlan

    layout, half = layer.layout, VOCABULARY // 2
    modality = Modality(("text", "image"), "input_ids", ((), ((half, VOCABULARY - 1),)), ("", ""), "text")
    mixture = MixturePlan(
        enter="model.layers.0.mlp",
        replaces="dense",
        hidden=layout.hidden,
        width=layout.width,
        groups=(("text", layout.experts // 2), ("image", layout.experts // 2)),
        reach=(("text",), ("image",)),
        router=f'{{"k": {layout.chosen}, "kind": "softmax_topk", "normalize": true, "scale": 1.0}}',
        expert='{"activation": "silu", "alpha": 1.0, "beta": 0.0, "kind": "glu", "limit": 0.0}',
    )
    stock = layer.stock.config.to_dict()
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    further = ("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "hidden_act")
    config = MistralConfig(**{name: stock[name] for name in (*shared, *further)}, sliding_window=None)
    with torch.device("meta"):
        model = insert(MistralForCausalLM(config), ModelPlan(modality, (mixture,)))
    model.load_state_dict({_renamed(name): value.cpu() for name, value in layer.stock.state_dict().items()}, assign=True)
    save(model, directory)


def _renamed(name: str) -> str:
    """The name under a plan of a weight of the stock class."""
    places = {
        "mlp.gate.weight": "mlp.router.weight",
        "mlp.experts.gate_up_proj": "mlp.experts.w_in",
        "mlp.experts.down_proj": "mlp.experts.w_out",
    }
    return next((name.replace(old, new) for old, new in places.items() if old in name), name)
