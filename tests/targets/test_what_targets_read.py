"""Options of where an artifact is to run: each is read by a target or refused by it, and what is recorded opens anyway."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from mocomp.deployment import Deployment, Engine
from mocomp.errors import Usage
from mocomp.opening import as_recorded, named_target

OTHER: dict[str, Any] = {
    "profiles": ("a:sequence=4",),
    "engines": "two",
    "workspace": "2GB",
    "timing_cache": "cache",
    "builder_optimization_level": 5,
    "hardware_compatibility_level": "ampere_plus",
    "version_compatible": True,
    "strip_plan": True,
    "refit": True,
    "weight_streaming": True,
    "tf32": True,
    "triton": True,
    "device": "cuda",
    "dtype": "float16",
    "accuracy_level": 4,
    "mixture": "dense",
    "opset": 23,
    "gpu": "sm_90",
    "tensorrt": "11.4",
    "emulate": True,
}
"""A value of each field that is not its default."""
CUDA = {"device": "cuda"}
READ: dict[tuple[str, str], set[str]] = {
    ("huggingface", "cpu"): set(),
    ("onnx", "cpu"): {"mixture", "opset"},
    ("onnxruntime", "cpu"): {"device", "accuracy_level"},
    ("onnxruntime", "cuda"): {"device", "dtype", "accuracy_level", "gpu", "emulate", "tf32"},
    ("tensorrt", "cpu"): {f.name for f in dataclasses.fields(Engine)}
    | {"dtype", "mixture", "opset", "gpu", "tensorrt", "emulate"},
}


def test_every_field_is_asked():
    assert list(OTHER) == [field.name for field in dataclasses.fields(Deployment)]


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize(("target", "device"), READ)
def test_an_option_is_read_or_refused(target, device, field):
    asked = Deployment(**{"device": device, field: OTHER[field]})
    if field in READ[target, device]:
        assert named_target(target, asked).deployment == asked
        return
    option = "profile" if field == "profiles" else field.replace("_", "-")
    with pytest.raises(Usage) as refused:
        named_target(target, asked)
    assert f"--{option}, and target {target} has no use for it" in str(refused.value)
    named = set(re.findall(r"huggingface|onnxruntime|onnx|tensorrt", refused.value.fix))
    assert named == {name for (name, _), read in READ.items() if field in read}


@pytest.mark.parametrize("target", ["huggingface", "onnx", "onnxruntime", "tensorrt"])
def test_what_an_older_version_recorded_opens(target):
    options = OTHER | {"profiles": ["a:sequence=4"], "seed": 3, "strip_plan": False}  # which does not go with triton
    recorded = {"target": {"target": target}, "options": options}
    read = READ.get((target, "cuda"), READ[target, "cpu"])
    opened = named_target(target, as_recorded(recorded)).deployment
    for name, value in OTHER.items():
        assert (getattr(opened, name) == value) == (name in read - {"timing_cache", "strip_plan"}), name


def test_a_file_to_write_is_never_taken_from_a_report():
    """Who made the artifact is not who opens it."""
    recorded = {"target": {"target": "tensorrt"}, "options": {"timing_cache": "/somewhere/else"}}
    assert Deployment.of(recorded["options"]).timing_cache == "" == as_recorded(recorded).timing_cache
    assert as_recorded(recorded, {"timing_cache": "mine"}).timing_cache == "mine"
