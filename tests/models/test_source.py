"""What a source is taken for; what is wrong with one is in tests/test_bad_inputs.py."""

import json
import shutil

import pytest
import transformers

from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.models.source import TASKS, open_source
from tests import checkpoints


@pytest.fixture
def source(tmp_path):
    """A directory of a config alone, which is all that is read of it."""
    checkpoints.config("mixtral").save_pretrained(tmp_path)
    return tmp_path


def edit(source, **fields):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory_or_its_config(source):
    assert open_source(str(source)) == open_source(str(source / "config.json"))
    assert open_source(str(source)).config.model_type == "mixtral"


def test_a_path_below_home(source, monkeypatch):
    monkeypatch.setenv("HOME", str(source.parent))
    assert open_source(f"~/{source.name}").directory == source


def test_a_hub_name_is_asked_for_what_is_needed_alone(source, monkeypatch):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_source("org/name").directory == source
    assert "*.safetensors" in asked["org/name"] and not any(p.endswith((".bin", ".pt", ".h5")) for p in asked["org/name"])


@pytest.mark.parametrize("name", ["/nowhere/org/name", "./org/name", "name", "org/name/more", "tests/absent"])
def test_a_path_is_not_asked_of_the_hub(name, monkeypatch):
    """A typo in a path must not send the user to the network."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *rest, **more: pytest.fail("asked the hub"))
    with pytest.raises(BadInput, match="no such directory"):
        open_source(name)


def test_the_class_is_the_one_that_the_checkpoint_names(source):
    edit(source, architectures=["MixtralForSequenceClassification"])
    assert open_source(str(source)).model_class is transformers.MixtralForSequenceClassification


def test_without_a_name_it_is_the_generator_where_there_is_one(source):
    edit(source, architectures=None)
    assert open_source(str(source)).model_class is transformers.MixtralForCausalLM
    checkpoints.config("vit").save_pretrained(source)
    assert open_source(str(source)).model_class is transformers.ViTModel


@pytest.mark.parametrize(
    ("family", "task", "expected"),
    [
        ("mixtral", "text-generation", "MixtralForCausalLM"),
        ("mixtral", "feature-extraction", "MixtralModel"),
        ("mixtral", "text-classification", "MixtralForSequenceClassification"),
        ("vit", "image-classification", "ViTForImageClassification"),
        ("bert", "fill-mask", "BertForMaskedLM"),
    ],
)
def test_a_task_picks_the_class(source, family, task, expected):
    checkpoints.config(family).save_pretrained(source)
    edit(source, architectures=["MixtralForCausalLM"])
    assert open_source(str(source), task=task).model_class.__name__ == expected


def test_a_task_that_is_none_is_an_error(source):
    with pytest.raises(Usage, match="no task 'chess'"):
        open_source(str(source), task="chess")


def test_every_task_is_one_of_transformers():
    assert all(hasattr(transformers, auto) for auto in TASKS.values())


def test_tokenizer_files_are_carried_and_weights_are_not(source):
    for name in ("tokenizer.json", "generation_config.json", "model.safetensors", "notes.txt"):
        (source / name).write_text("{}")
    assert sorted(path.name for path in open_source(str(source)).files_to_carry) == ["generation_config.json", "tokenizer.json"]


CODE = """
import pathlib, transformers
pathlib.Path({!r}).touch()
class TinyConfig(transformers.LlamaConfig):
    model_type = "tiny"
class TinyForCausalLM(transformers.LlamaForCausalLM):
    config_class = TinyConfig
"""


@pytest.fixture
def custom(source, tmp_path, monkeypatch):
    """A checkpoint that brings its own code, and the file that shows whether the code ran."""
    checkpoints.config("llama").save_pretrained(source)
    (source / "tiny.py").write_text(CODE.format(str(tmp_path / "trace")))
    edit(source, model_type="tiny", architectures=["TinyForCausalLM"])
    edit(source, auto_map={"AutoConfig": "tiny.TinyConfig", "AutoModelForCausalLM": "tiny.TinyForCausalLM"})
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield source, tmp_path / "trace"
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)


def test_code_of_a_checkpoint_does_not_run_unasked(custom):
    source, trace = custom
    with pytest.raises(Unsupported, match="its own Python code") as caught:
        open_source(str(source))
    assert not trace.exists() and "--trust-remote-code" in caught.value.fix


def test_code_of_a_checkpoint_runs_when_it_is_trusted(custom):
    source, trace = custom
    opened = open_source(str(source), trust_remote_code=True)
    assert opened.model_class.__name__ == "TinyForCausalLM" and trace.exists()
    assert type(opened.config).__name__ == "TinyConfig"


def test_a_task_that_the_code_has_no_class_for_is_told(custom):
    source, _ = custom
    with pytest.raises(Unsupported, match="auto_map names no model class for task fill-mask"):
        open_source(str(source), trust_remote_code=True, task="fill-mask")
