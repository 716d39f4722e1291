"""What the user pointed at: a Hugging Face directory or hub name, its config and its class, or a clear refusal."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp.errors import BadInput, MissingDependency, Unsupported, Usage
from mocomp.models.limits import CORRECT, check_config
from mocomp.models.user.named import is_module
from mocomp.plans.plan import MODEL_TYPE, ModelPlan
from mocomp.quant.reading import quantisation_of
from mocomp.weights.json_files import read_object
from mocomp.weights.own_files import own_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint directory, its parsed config, and the class that transformers would build for it.

    `plan` says what mocomp inserted into that model; None for a checkpoint that is not of ours. `quantization` is what
    config.json says of weights that are quantised already; the config here is that of the float model.
    """

    directory: Path
    config: Any
    model_class: Any
    trust_remote_code: bool = False
    plan: ModelPlan | None = None
    quantization: dict[str, Any] | None = None

    def refuse_quantised(self) -> None:
        """Raises Unsupported for a checkpoint of quantised weights, where experts are to be made or trained further."""
        if self.quantization is not None:
            raise Unsupported(
                "its weights are quantised, and only `mocomp convert` reads such",
                where=str(self.directory),
                fix="Start from the checkpoint that it was made of.",
            )

    @property
    def place(self) -> str:
        """Where it is, for the report."""
        return str(self.directory.resolve())

    @property
    def files_to_carry(self) -> list[Path]:
        """The files that an artifact takes along unchanged: tokenizer, chat template, generation defaults."""
        return files_to_carry(self.directory)


def files_to_carry(directory: Path) -> list[Path]:
    """Those files of a directory that belong to a model whatever its form. Raises BadInput for one that lies elsewhere."""
    return [own_file(directory, name) for name in TOKENIZER_FILES if os.path.lexists(directory / name)]


def open_source(source: str, trust_remote_code: bool = False, task: str = "auto") -> Source:
    """A Source from a directory, a path to a config.json, or (the only use of the network) a hub name.

    Raises BadInput for what is not there or not readable, Unsupported for types that transformers does not know
    and for code in the checkpoint unless `trust_remote_code`.
    """
    if task not in ("auto", *TASKS):
        raise Usage(f"no task {task!r}; they are {', '.join(TASKS)}")
    if is_module(source):
        raise Usage(f"{source} is a module, and this command takes checkpoints", fix="mocomp convert makes an artifact of it.")
    directory = directory_of(source)
    files_to_carry(directory)  # refused now, and not after long work
    raw = _raw_config(directory)
    check_config(raw, str(directory / "config.json"))
    if brings_code(raw) and not trust_remote_code:
        raise Unsupported(
            "the checkpoint brings its own Python code, which converting would run",
            where=str(directory / "config.json"),
            fix="Read that code, then pass --trust-remote-code; or convert with the class that transformers itself has "
            "by removing auto_map from config.json.",
        )
    import transformers

    plan = None
    if raw.get("model_type") == MODEL_TYPE:
        plan = ModelPlan.from_json(raw.get("mocomp"), str(directory / "config.json"))
        raw = raw.get("base")
        if not isinstance(raw, dict):
            raise BadInput("no config of the model it was made from, under `base`", where=str(directory / "config.json"))
    _check_known(raw, directory)
    quantization = quantisation_of(raw, str(directory / "config.json"))
    try:
        if plan is not None:
            config = transformers.AutoConfig.for_model(**raw)
        else:
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BadInput(f"config.json is refused: {error}", where=str(directory), fix="Correct the named field.") from error
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    model_class = _model_class(config, raw, task, trust_remote_code)
    return Source(directory, config, model_class, trust_remote_code, plan, quantization)


def directory_of(source: str) -> Path:
    """The directory that a source is, or that the hub gives for its name. Raises BadInput where there is none."""
    path = Path(source).expanduser()
    if path.is_file() and path.name == "config.json":
        path = path.parent
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise BadInput("the directory may not be read", where=str(path), fix="Check its permissions.")
        return path
    if path.is_file():
        fix = "Give a directory with config.json; for a module of your own say FILE.py:ATTRIBUTE."
        raise BadInput("it is a file, and no directory", where=source, fix=fix)
    looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not path.parent.exists()
    if not looks_like_hub:
        raise BadInput("no such directory", where=source, fix="Give a directory with config.json, or a hub name ORG/NAME.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:
        raise BadInput(
            f"no such directory, and the hub did not give it: {type(error).__name__}",
            where=source,
            fix="Check the spelling, the network and your access.",
        ) from error


def _raw_config(directory: Path) -> dict[str, Any]:
    if not os.path.lexists(directory / "config.json"):
        raise BadInput("no config.json", where=str(directory), fix="Point at the directory that save_pretrained wrote.")
    return read_object(directory / "config.json")


def brings_code(config: Any) -> bool:
    """Whether a config, or one inside it, names classes of its own."""
    if isinstance(config, list):
        return any(map(brings_code, config))
    return isinstance(config, dict) and (bool(config.get("auto_map")) or any(map(brings_code, config.values())))


def _check_known(raw: dict[str, Any], directory: Path) -> None:
    import transformers

    kind = raw.get("model_type")
    if raw.get("auto_map") or (isinstance(kind, str) and kind in transformers.CONFIG_MAPPING):
        return
    if kind is None:
        raise BadInput("config.json has no model_type", where=str(directory), fix="Add the model_type of its family.")
    raise Unsupported(
        f"model_type {kind!r} is not known to transformers {transformers.__version__}",
        where=str(directory / "config.json"),
        fix="Upgrade transformers if the model is newer than it; `mocomp list models` names what is tested.",
    )


TASKS = {
    "text-generation": "AutoModelForCausalLM",
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "fill-mask": "AutoModelForMaskedLM",
}


def _model_class(config: Any, raw: dict[str, Any], task: str, trust_remote_code: bool) -> Any:
    import transformers

    if trust_remote_code and raw.get("auto_map"):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = raw["auto_map"].get(TASKS.get(task, "AutoModelForCausalLM")) or raw["auto_map"].get("AutoModel")
        if reference is None:
            raise Unsupported(f"auto_map names no model class for task {task}", where=config.name_or_path)
        return get_class_from_dynamic_module(reference, config.name_or_path)
    given = raw.get("architectures") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise BadInput(f"architectures is {given!r:.80}, expected names", where=config.name_or_path, fix=CORRECT)
    named = [name for name in given if isinstance(getattr(transformers, name, None), type)]
    try:
        if named and task == "auto":
            return getattr(transformers, named[0])
        generators = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
        names = generators if task in ("auto", "text-generation") else (TASKS[task],)
        mappings = [getattr(transformers, name)._model_mapping for name in (*names, "AutoModel")]
        return next((mapping for mapping in mappings if type(config) in mapping), mappings[-1])[type(config)]
    except (ImportError, RuntimeError) as error:
        raise MissingDependency(f"{config.model_type} needs another package: {error}", fix="Install what it names.") from error
    except KeyError as error:
        raise Unsupported(f"transformers has no model class for {config.model_type} and task {task}") from error
