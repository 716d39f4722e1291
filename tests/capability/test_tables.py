"""The tables say where they are from, name types that there are, and are in the package."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise
from typing import Any

import onnx_ir as ir
import pytest

from mocomp.capability import Gap, blocking, fallbacks, gathered
from mocomp.capability.gpus import computing, gpus, with_mixtures
from mocomp.capability.onnxruntime import CPU, CUDA
from mocomp.capability.tables import release, table
from mocomp.capability.tensorrt import LIMITED, TYPES

NAMES = sorted(path.name.removesuffix(".yaml") for path in files("mocomp.capability").joinpath("tables").iterdir())


def test_there_are_tables():
    assert NAMES == ["gpus", "onnxruntime", "tensorrt"]


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_source_and_a_version(name):
    assert len(table(name)["source"]) > 20 and table(name)["version"]


@pytest.mark.parametrize("known", [TYPES, *CUDA.values(), *CPU.values()], ids=["tensorrt", *CUDA, *(f"cpu {d}" for d in CPU)])
def test_types_are_those_of_onnx(known):
    assert known and {kind for kinds in known.values() for kind in kinds} <= {kind.name for kind in ir.DataType}


@pytest.mark.parametrize("groups", [table("tensorrt")["operators"], *table("onnxruntime")["cuda"].values()], ids=lambda g: "")
def test_no_operator_is_listed_twice(groups: dict[str, Any]):
    listed = [operator for operators in groups.values() for operator in operators]
    assert len(listed) == len(set(listed))


def test_what_is_unsupported_is_not_supported_as_well():
    known = table("tensorrt")
    assert not set(known["unsupported"]) & {*TYPES, *known["custom"]}


def test_gpus():
    assert with_mixtures() == "sm_100, sm_103, sm_110"
    assert computing("fp8") == "sm_89 and later ones" and computing("fp4") == "sm_100 and later ones"
    wheel = {name for name, gpu in gpus().items() if gpu.onnxruntime_wheel}
    assert wheel == {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"}
    assert {kind for gpu in gpus().values() for kind in gpu.computes} == {name for name, _ in LIMITED.values()}


def test_what_a_gpu_computes_later_ones_do_too():
    """Which `computing` takes for granted."""
    known = list(gpus().values())
    assert all(set(one.computes) <= set(following.computes) for one, following in pairwise(known))


def test_releases_are_compared_as_numbers():
    assert release("10.9") < release("10.15") < release("11.4") < release("11.10")


def test_gaps_are_gathered():
    gaps = [Gap("a", "slow", "fast", blocks=False), Gap("b", "wrong"), Gap("c", "wrong"), Gap("b", "wrong")]
    assert gathered(gaps) == [Gap("b and 1 more", "wrong"), Gap("a", "slow", "fast", blocks=False)]
    assert blocking(gaps) == ["b: wrong", "c: wrong"] and fallbacks(gaps) == ["a: slow; fast"]
