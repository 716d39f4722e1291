"""onnxruntime-genai runs the directories as they are, and says what transformers says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Converted

genai = pytest.importorskip("onnxruntime_genai")
PROMPT = [3, 17, 99, 5, 64, 120, 7]
TOKENS = 32


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_generates_what_transformers_does(converted, family):
    made = converted(family)
    assert generated(made.directory) == expected(made.source)


def test_generates_from_a_sharded_checkpoint(converted):
    whole, sharded = converted("qwen3_moe"), converted("qwen3_moe", max_shard_size="200KB")
    index = json.loads((sharded.source / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert generated(sharded.directory) == expected(sharded.source)
    assert weights(sharded) == weights(whole)


def test_promises_only_what_genai_can_do(converted):
    """genai makes keys and values of one width; latent attention caches them in two."""
    made = converted("deepseek_v3")
    if (made.directory / "genai_config.json").exists():
        assert generated(made.directory) == expected(made.source)


def generated(directory: Path) -> list[int]:
    """The prompt and what genai's greedy search adds; no end of sequence before the last token."""
    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    length = len(PROMPT) + TOKENS
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


def expected(source: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return model.generate(torch.tensor([PROMPT]), do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS)[0].tolist()


def weights(made: Converted) -> bytes:
    return (made.directory / "model.onnx.data").read_bytes()
