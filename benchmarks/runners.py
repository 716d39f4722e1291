"""A process that holds one loaded model and times it on request: `python runners.py onnx|torch DIR THREADS`.

One request per line, `{"variant", "tokens", "past", "runs"}`, one answer per line, `{"ms", "logits"}`. Between requests
it sleeps, so that runners which take turns do not compete for the cores.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Answer = Callable[[], np.ndarray]


def inputs(vocabulary: int, tokens: int, past: int) -> tuple[np.ndarray, np.ndarray]:
    """The same token ids and attention mask for every runner."""
    ids = np.random.default_rng(tokens).integers(3, vocabulary, (1, tokens))
    return ids, np.ones((1, past + tokens), np.int64)


def caches(shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    random = np.random.default_rng(shape[2])
    return [random.standard_normal(shape, dtype=np.float32) for _ in range(count)]


class OnnxRunner:
    """An ONNX Runtime session, with its inputs told apart by type and name."""

    variants = ("",)

    def __init__(self, directory: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        begin = time.perf_counter()
        self.session = onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.load_s = time.perf_counter() - begin

    def prepare(self, variant: str, tokens: int, past: int, config: dict) -> Answer:
        ids, mask = inputs(config["vocab_size"], tokens, past)
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": np.arange(past, past + tokens)[None]}
        names = [node.name for node in self.session.get_inputs()]
        slots = [name for name in names if "past" in name]
        shape = (1, config["num_key_value_heads"], past, config["head_dim"])
        feed = {name: value for name, value in feed.items() if name in names}
        feed.update(zip(slots, caches(shape, len(slots)), strict=True))
        outputs = [node.name for node in self.session.get_outputs()]
        return lambda: np.asarray(self.session.run(outputs, feed)[outputs.index("logits")])


class TorchRunner:
    """transformers in eager mode; the variant is the implementation of the experts."""

    variants = ("eager", "batched_mm", "grouped_mm")

    def __init__(self, directory: Path, threads: int):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        begin = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.load_s = time.perf_counter() - begin

    def prepare(self, variant: str, tokens: int, past: int, config: dict) -> Answer:
        import torch
        from transformers import DynamicCache

        ids, mask = (torch.from_numpy(value) for value in inputs(config["vocab_size"], tokens, past))
        shape = (1, config["num_key_value_heads"], past, config["head_dim"])
        tensors = [torch.from_numpy(value) for value in caches(shape, 2 * config["num_hidden_layers"])]
        self.model.set_experts_implementation(variant)

        @torch.inference_mode()
        def answer() -> np.ndarray:
            cache = DynamicCache(config=self.model.config)
            for layer in range(config["num_hidden_layers"]):
                cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
            return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits.numpy()

        return answer


def main(kind: str, directory: str, threads: str) -> None:
    runner = {"onnx": OnnxRunner, "torch": TorchRunner}[kind](Path(directory), int(threads))
    print(json.dumps({"load_s": runner.load_s, "variants": runner.variants}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = runner.prepare(request["variant"], request["tokens"], request["past"], request["config"])
        logits = answer()
        times = []
        for _ in range(request["runs"]):
            begin = time.perf_counter()
            answer()
            times.append(1e3 * (time.perf_counter() - begin))
        print(json.dumps({"ms": times, "logits": logits[0, -1, :64].tolist()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
