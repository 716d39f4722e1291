"""Upcycled models as classes of transformers: who can hold which, every field of a config, and the names of the hub."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from mocomp.commands.parity import ParityOptions, parity
from mocomp.commands.upcycle import upcycle
from mocomp.errors import ParityFailed, Unsupported
from mocomp.fill import stock
from mocomp.models.source import Source
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.pipeline import convert
from mocomp.plans.modality import Modality
from mocomp.plans.plan import MixturePlan, ModelPlan
from tests import checkpoints

BLOCK = {"intermediate_size": 96}
DENSE = {
    "llama": checkpoints.TEXT | BLOCK | {"rope_parameters": {"rope_type": "default", "rope_theta": 3e3}},
    "mistral": checkpoints.TEXT | BLOCK | {"sliding_window": 4, "rms_norm_eps": 1e-3},
    "qwen2": checkpoints.TEXT | BLOCK,
    "qwen3": checkpoints.TEXT | BLOCK | {"head_dim": 24},
}
SLICED = {"granularity": 4, "top_k": 4}
SHARED = {"granularity": 4, "shared": 1, "groups": "6", "top_k": 3}
ALTERNATING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
EVERYWHERE = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
HELD: dict[str, tuple[str, dict, dict, str]] = {
    "llama": ("llama", {}, {}, "Mixtral"),
    "llama, in slices": ("llama", {}, SLICED, "Mixtral"),
    "llama, in three slices": ("llama", {}, {"granularity": 3, "groups": "6", "top_k": 3}, "Mixtral"),
    "llama, shared": ("llama", {}, SHARED, "Qwen2Moe"),
    "llama, half dense": ("llama", {}, {"layers": "every:2"}, "Qwen2Moe"),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {}, "Mixtral"),
    "llama, wide heads": ("llama", {"head_dim": 32}, SHARED, "Qwen2Moe"),
    "mistral": ("mistral", {}, {}, "Mixtral"),
    "mistral, shared": ("mistral", {}, SHARED, "Qwen2Moe"),
    "qwen2": ("qwen2", {}, {}, "Qwen2Moe"),
    "qwen2, shared": ("qwen2", {}, SHARED, "Qwen2Moe"),
    "qwen2, windows in turn": ("qwen2", ALTERNATING, {}, "Qwen2Moe"),
    "qwen3": ("qwen3", {}, {}, "Qwen3Moe"),
    "qwen3, in slices": ("qwen3", {}, SLICED, "Qwen3Moe"),
    "qwen3, half dense": ("qwen3", {}, {"layers": "0"}, "Qwen3Moe"),
    "qwen3, windows": ("qwen3", EVERYWHERE, {}, "Qwen3Moe"),
    "qwen3, biases": ("qwen3", {"attention_bias": True}, {}, "Qwen3Moe"),
}
CONVERTED = ("llama, in three slices", "llama, shared", "mistral", "qwen2", "qwen2, shared", "qwen3")
GROUPED = {"groups": "text=4,image=4", "modality": ("image=100..127",)}
CHOSEN = {"router": "expert_choice", "auxiliary": 8}
REFUSED: dict[str, tuple[str, dict, dict, str]] = {
    "groups": ("llama", {}, GROUPED, "no class has groups of experts by modality"),
    "router": ("llama", {}, {"router": "sigmoid_topk"}, "no class has a router such as sigmoid_topk"),
    "auxiliary": ("llama", {}, CHOSEN, "no class has a router such as expert_choice, with all that this one reads"),
    "depth": ("llama", {}, {"depth": "1"}, "no class has layers that a token may go past"),
    "biased attention": ("llama", {"attention_bias": True}, {}, "MixtralForCausalLM: it has no attention_bias, which is True"),
    "biased experts": ("llama", {"mlp_bias": True}, {}, "no class has biases in experts or router"),
    "windows in turn": ("qwen3", ALTERNATING, {}, "it has one sliding window for all layers, or none"),
    "shared": ("qwen3", {}, SHARED, "it has no shared experts"),
    "factor": ("qwen3", {"dtype": "bfloat16"}, {"granularity": 3, "groups": "6", "top_k": 3}, "3 cannot be put into weights"),
}


def made(config: Any, directory: Path) -> Path:
    """A checkpoint with seeded weights, in the type that its config says."""
    torch.manual_seed(0)
    dtype = config.dtype or torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    checkpoints._randomise(model)
    model.to(dtype).save_pretrained(directory)
    return directory


def configured(family: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(family, **DENSE[family] | changes)


@pytest.fixture(scope="module")
def upcycled(tmp_path_factory) -> Callable[..., tuple[Path, Path, Any]]:
    """upcycled(case): (dense checkpoint, upcycled checkpoint, receipt)."""

    @cache
    def run(case: str):
        family, changes, options, _ = HELD[case]
        place = tmp_path_factory.mktemp(family)
        dense = made(configured(family, **changes), place / "dense")
        receipt = upcycle(str(dense), place / "moe", UpcycleOptions(**{"top_k": 2, "layout": "stock"} | options))
        return dense, place / "moe", receipt

    return run


def described(directory: Path) -> dict[str, list[int]]:
    """The name and shape of every tensor of a checkpoint."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("case", HELD)
def test_a_stock_class_holds_it(upcycled, case):
    _, directory, receipt = upcycled(case)
    expected = f"{HELD[case][3]}ForCausalLM"
    assert receipt.preserved and receipt.moved <= 1e-5
    assert receipt.loads_as == f"AutoModelForCausalLM: {expected}"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == expected
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("case", HELD)
def test_names_are_those_of_the_hub(upcycled, tmp_path, case):
    """What transformers itself writes for that config, which is what vLLM reads."""
    _, directory, _ = upcycled(case)
    config = transformers.AutoConfig.from_pretrained(directory)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert described(directory) == described(tmp_path)
    assert any(".experts.3." in name for name in described(directory))


@pytest.mark.parametrize("case", CONVERTED)
def test_its_artifact_is_the_dense_model(upcycled, tmp_path, case):
    dense, directory, _ = upcycled(case)
    report = convert(str(directory), tmp_path / "out", ConvertOptions(parity="off"))
    assert report.artifact.operators["MoE"] == 2
    verdict = parity(tmp_path / "out", options=ParityOptions(reference=str(dense), seed=1))
    assert verdict.passed and verdict.worst <= 1e-5
    assert [layer.layer for layer in verdict.layers] == [] and len(verdict.notes) == 2  # the reference has no mixtures


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_class_holds_is_refused(tmp_path, case):
    family, changes, options, reason = REFUSED[case]
    dense = made(configured(family, **changes), tmp_path / "dense")
    with pytest.raises(Unsupported, match="no class of transformers can hold the result") as refusal:
        upcycle(str(dense), tmp_path / "moe", UpcycleOptions(**{"layout": "stock", "top_k": 2} | options))
    assert reason in "\n".join(refusal.value.gaps)
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("case", ["groups", "windows in turn", "factor"])
def test_auto_takes_the_modules_of_mocomp_and_says_why(tmp_path, case):
    family, changes, options, reason = REFUSED[case]
    dense = made(configured(family, **changes), tmp_path / "dense")
    receipt = upcycle(str(dense), tmp_path / "moe", UpcycleOptions(**{"top_k": 2} | options))
    assert receipt.loads_as == "mocomp.nn.load" and receipt.moved <= 1e-5
    assert any(note.startswith("layout mocomp: ") and reason in note for note in receipt.notes)


def test_a_model_of_another_family_is_refused(checkpoint, tmp_path):
    with pytest.raises(Unsupported) as refusal:
        upcycle(str(checkpoint("bert")), tmp_path / "moe", UpcycleOptions(layout="stock"))
    assert "no class with mixtures is known for BertModel" in refusal.value.gaps[0]
    assert "OlmoeForCausalLM norms queries and keys as none of these does" in refusal.value.gaps[0]


def test_auto_is_stock_and_the_command_says_so(command, checkpoint, tmp_path):
    done = command("upcycle", checkpoint("llama"), "-o", tmp_path / "moe", "--groups", 4, "--json")
    assert done.code == 0 and json.loads(done.out)["loads_as"] == "AutoModelForCausalLM: MixtralForCausalLM"
    done = command("upcycle", checkpoint("llama"), "-o", tmp_path / "ours", "--groups", 4, "--layout", "mocomp", "--json")
    receipt = json.loads(done.out)
    assert receipt["loads_as"] == "mocomp.nn.load" and not [note for note in receipt["notes"] if "layout" in note]
    done = command("upcycle", checkpoint("llama"), "-o", tmp_path / "no", "--router", "sigmoid_topk", "--layout", "stock")
    assert done.code == 3 and "no class has a router such as" in done.err


def test_shards_have_an_index(command, checkpoint, tmp_path):
    command("upcycle", checkpoint("qwen3"), "-o", tmp_path / "moe", "--groups", 4, "--shard-size", "100KB")
    index = json.loads((tmp_path / "moe" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "moe").glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    assert index["weight_map"].keys() == described(tmp_path / "moe").keys()
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe")).__name__ == "Qwen3MoeForCausalLM"


def test_types_are_those_of_the_source(tmp_path):
    dense = made(configured("qwen2", dtype="bfloat16"), tmp_path / "dense")
    receipt = upcycle(str(dense), tmp_path / "moe", UpcycleOptions(top_k=2, layout="stock"))
    assert receipt.moved <= 1e-5
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def lost_scale(self, plan, weights, original=stock.StockClass.tensors):
    import dataclasses

    plain = plan.router.replace(f'"scale": {plan.routing.scale}', '"scale": 1.0')
    return original(self, dataclasses.replace(plan, router=plain), weights)


def lost_slice(self, plan, weights, original=stock.StockClass.tensors):
    tensors = original(self, plan, weights)
    first, second = (f"{plan.enter.removesuffix('mlp')}block_sparse_moe.experts.{e}.w2.weight" for e in (0, 1))
    return tensors | {first: tensors[second]}


def lost_window(self, source, plan, original=stock.StockClass.config):
    made = original(self, source, plan)
    made.sliding_window = None
    return made


@pytest.mark.parametrize(
    ("family", "name", "fault"),
    [("llama", "tensors", lost_scale), ("llama", "tensors", lost_slice), ("mistral", "config", lost_window)],
)
def test_a_fault_is_caught_and_nothing_is_kept(tmp_path, monkeypatch, family, name, fault):
    dense = made(configured(family), tmp_path / "dense")
    monkeypatch.setattr(stock.StockClass, name, fault)
    with pytest.raises(ParityFailed, match="was to preserve the function"):
        upcycle(str(dense), tmp_path / "moe", UpcycleOptions(**SLICED))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


PLAN = MixturePlan(
    "model.layers.0.mlp", "dense", 64, 96, (("all", 6),), (("all",),),
    '{"k": 3, "kind": "softmax_topk", "normalize": true, "scale": 1.0}',
    '{"activation": "silu", "alpha": 1.0, "beta": 0.0, "kind": "glu", "limit": 0.0}',
)  # fmt: skip
OTHER = {"rope_parameters": {"rope_type": "linear", "rope_theta": 7e3, "factor": 2.0}, "hidden_act": "gelu"}
RIGHT_BY_DEFAULT = {
    "decoder_sparse_step",
    "mlp_only_layers",
    "max_window_layers",
    "sliding_window",
    "use_sliding_window",
    "qkv_bias",
}
OF_TRAINING = {"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}


def changed(name: str, value: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) and value else 2 * value if value else 3


def found(config: Any) -> tuple[stock.StockClass | None, list[str], Source, ModelPlan]:
    source = Source(Path(), config, getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM")))
    layers = [f"model.layers.{i}.mlp" for i in range(config.num_hidden_layers)]
    plan = ModelPlan(None, tuple(MixturePlan(**{**vars(PLAN), "enter": layer}) for layer in layers))
    return *stock.find(source, plan, {torch.float32}), source, plan


def fields() -> list[tuple[str, str]]:
    families = [(family, type(configured(family))) for family in DENSE]
    return [(family, name) for family, kind in families for name in sorted(stock._fields(kind) - stock.WINDOWS)]


@pytest.mark.parametrize(("family", "name"), fields())
def test_every_field_is_carried_or_refused(family, name):
    """A change of any field of the dense config is a change of the mixture's config, or leads to a refusal that names it."""
    value = changed(name, getattr(configured(family), name))
    config = configured(family, **{name: value})
    holder, gaps, source, plan = found(config)
    if name in stock.OF_NO_WEIGHT_ON_THE_RESULT:
        assert holder is not None
    elif holder is None:
        assert any(f"it has no {name}, which is {value}" in gap for gap in gaps)
    elif name == "intermediate_size":  # now that of the experts, or of the layers that stay dense
        assert holder.config(source, plan).intermediate_size in (value, PLAN.width)
    else:
        assert getattr(holder.config(source, plan), name) == getattr(config, name)


@pytest.mark.parametrize("family", DENSE)
def test_every_field_of_the_class_has_a_meaning(family):
    """What a class can say is said by the dense config or by the plan, or is of training alone."""
    config = configured(family)
    for holder in stock.HOLDERS[family]:
        _, _, source, plan = found(config)
        default, said = holder._config_class(), holder.config(source, plan)
        silent = {name for name in holder.fields if not hasattr(config, name)}
        unsaid = {name for name in silent if getattr(said, name) == getattr(default, name)}
        assert unsaid <= OF_TRAINING | RIGHT_BY_DEFAULT


def test_a_modality_without_groups_of_its_own_is_no_obstacle():
    """What counts is whether some token may not go to some expert."""
    config = configured("qwen3")
    _, _, source, plan = found(config)
    everywhere = [MixturePlan(**{**vars(m), "reach": (("all",), ("all",))}) for m in plan.mixtures]
    modality = Modality(("text", "image"), "input_ids", ((), ((100, 127),)), ("", ""), "text")
    assert stock.find(source, ModelPlan(modality, tuple(everywhere)), {torch.float32})[0] is stock.QWEN3_MOE
