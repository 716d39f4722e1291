"""Ways to damage config.json and the files that an artifact takes along, each a small function of the directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.damaged_checkpoints import Damage, elsewhere, instead

CONFIG = "config.json"


def config(**fields: Any) -> Callable[[Path], None]:
    """Other fields in config.json; those that are None go."""

    def damage(directory: Path) -> None:
        known = json.loads((directory / CONFIG).read_text()) | fields
        (directory / CONFIG).write_text(json.dumps({name: value for name, value in known.items() if value is not None}))

    return damage


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda directory: (directory / CONFIG).write_bytes(content)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CONFIGS: dict[str, Damage] = {
    "no config": (lambda d: (d / CONFIG).unlink(), CONFIG, 5),
    "config is empty": (written(b""), CONFIG, 5),
    "config is not JSON": (written(b'{"model_type": '), CONFIG, 5),
    "config is a list": (written(b"[]"), CONFIG, 5),
    "config is a number": (written(b"7"), CONFIG, 5),
    "config in UTF-16": (lambda d: written((d / CONFIG).read_text().encode("utf-16"))(d), CONFIG, 5),
    "config in Latin-1": (written(b'{"model_type": "qwen\xe9"}'), CONFIG, 5),
    "config with a byte order mark": (lambda d: written(b"\xef\xbb\xbf" + (d / CONFIG).read_bytes())(d), CONFIG, 5),
    "config nested beyond the parser": (written(b'{"a":' * 100_000), CONFIG, 5),
    "config nested absurdly": (config(text=nested(500)), CONFIG, 5),
    "config with a key twice": (written(b'{"model_type": "qwen3_moe", "model_type": "llama"}'), "model_type", 5),
    "config of 40 MB": (written(b" " * (40 << 20)), CONFIG, 5),
    "config is a pipe": (lambda d: instead(d / CONFIG, os.mkfifo), CONFIG, 5),
    "config is a directory": (lambda d: instead(d / CONFIG, Path.mkdir), CONFIG, 5),
    "config is a link to another directory": (lambda d: elsewhere(d / CONFIG), "outside", 5),
    "no model_type": (config(model_type=None), "model_type", 5),
    "model_type that nobody knows": (config(model_type="gpt7\x1b[31m"), r"gpt7\x1b[31m", 3),
    "model_type that is a list": (config(model_type=["qwen3_moe"]), "model_type", 3),
    "code of its own": (config(auto_map={"AutoModel": "m.M"}), "--trust-remote-code", 3),
    "code of its own inside": (config(vision_config={"auto_map": {"AutoModel": "m.M"}}), "--trust-remote-code", 3),
    "refers to another config": (config(configuration_files=["config.9.json"]), "configuration_files", 5),
    "quantization_config is a text": (config(quantization_config="int4"), "quantization_config", 5),
    "quantization_config of nobody": (config(quantization_config={"quant_method": "magic"}), "magic", 3),
    "quantization_config without a method": (config(quantization_config={"bits": 4}), "quantised by None", 3),
    "quantization_config of wrong types": (
        config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": "many"}),
        "quantization_config",
        5,
    ),
    "hidden size below 0": (config(hidden_size=-64), "hidden_size", 5),
    "hidden size 0": (config(hidden_size=0), CONFIG, 5),
    "hidden size of a million millions": (config(hidden_size=10**12), "hidden_size", 5),
    "hidden size that is a text": (config(hidden_size="wide"), "hidden_size", 5),
    "hidden size that is a list": (config(hidden_size=[64]), "hidden_size", 5),
    "layers below 0": (config(num_hidden_layers=-2, layer_types=None), CONFIG, 5),
    "a thousand million layers": (config(num_hidden_layers=10**9, layer_types=None), "num_hidden_layers", 5),
    "a few hundred layers too many": (config(num_hidden_layers=900, layer_types=None, max_window_layers=900), "900 layers", 5),
    "a thousand million experts": (config(num_experts=10**9), "num_experts", 5),
    "more experts than there are": (config(num_experts=32, num_local_experts=32), "experts", 5),
    "heads that are 0": (config(num_attention_heads=0), CONFIG, 5),
    "positions without end": (config(max_position_embeddings=10**15), "max_position_embeddings", 5),
    "head size of a thousand millions": (config(head_dim=10**9), "head_dim", 5),
    "a vocabulary below 0": (config(vocab_size=-1), CONFIG, 5),
    "a vocabulary of another size": (config(vocab_size=100), "expected [100, 64]", 5),
    "an activation that nobody knows": (config(hidden_act="wiggle"), CONFIG, 5),
    "architectures of another kind": (config(architectures=["../../etc/passwd", 7]), "architectures", 5),
    "ours without a plan": (config(model_type="mocomp"), CONFIG, 5),
    "ours with a plan of a number": (config(model_type="mocomp", mocomp=7, base={}), CONFIG, 5),
}
CARRIED: dict[str, Damage] = {
    "tokenizer is a link to another directory": (
        lambda d: ((d / "tokenizer.json").write_text("{}"), elsewhere(d / "tokenizer.json")),
        "tokenizer.json",
        5,
    ),
    "chat template is a pipe": (lambda d: os.mkfifo(d / "chat_template.jinja"), "chat_template.jinja", 5),
    "generation_config is a directory": (
        lambda d: instead(d / "generation_config.json", Path.mkdir),
        "generation_config.json",
        5,
    ),
    "vocabulary is a link to nothing": (lambda d: (d / "vocab.txt").symlink_to(d / "gone"), "vocab.txt", 5),
}
