"""Being a file is being registered; two of one name, or a name that nobody has, is an error and not a guess."""

import sys
from pathlib import Path

import pytest

import mocomp
from mocomp.errors import MocompError
from mocomp.ir.specs import parse
from mocomp.registry import discover
from mocomp.report.listing import CONTRACTS, listing

CONTRACT = """
from abc import ABC, abstractmethod
class Animal(ABC):
    name = ""
    @abstractmethod
    def sound(self): ...
"""
CAT = "from {0} import Animal\nclass Cat(Animal):\n    name = 'cat'\n    def sound(self): ..."


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package of extensions that nobody imported before: a function that adds a file, and its name."""
    name = f"animals_{abs(hash(request.node.name))}"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def add(file: str, code: str) -> str:
        (tmp_path / name / file).write_text(code.format(name))
        return name

    add("__init__.py", CONTRACT)
    yield add
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_file_is_found(package):
    package(
        "dog.py",
        "from {0} import Animal\nfrom {0}.cat import Cat\nclass Dog(Animal):\n    name = 'dog'\n    def sound(self): ...",
    )
    name = package("cat.py", CAT)
    assert list(discover(name, "Animal")) == ["cat", "dog"]  # Cat, which dog.py imports, is found once


def test_two_of_one_name_are_an_error(package):
    package("cat.py", CAT)
    name = package("lion.py", CAT.replace("Cat", "Lion"))
    with pytest.raises(MocompError, match="two extensions are called 'cat'") as caught:
        discover(name, "Animal")
    assert caught.value.where == name


def test_a_class_that_does_not_keep_the_contract_is_no_extension(package):
    """Helpers and intermediate classes may stand beside extensions."""
    name = package(
        "base.py", "from {0} import Animal\nclass Half(Animal):\n    name = 'half'\nclass Helper:\n    name = 'helper'"
    )
    assert discover(name, "Animal") == {}


@pytest.mark.parametrize("what", CONTRACTS)
def test_every_file_on_disk_is_an_extension_and_listed(what):
    package, contract = CONTRACTS[what]
    folder = Path(mocomp.__file__).parent.joinpath(*package.split(".")[1:])
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    found = discover(package, contract)
    assert {extension.__module__.split(".")[-1] for extension in found.values()} == files
    assert [name for name, _ in listing(what)] == list(found)
    assert all(summary for _, summary in listing(what))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('{"kind": "oracle", "k": 2}', "unknown kind 'oracle'; known are"),
        ('{"kind": "softmax_topk", "k": 2, "temperature": 1}', "softmax_topk: .*temperature"),
        ('{"kind": "softmax_topk"}', "softmax_topk: .*'k'"),
    ],
)
def test_a_spec_that_names_nothing_known_is_an_error(spec, message):
    with pytest.raises(MocompError, match=message):
        parse("mocomp.routers", "Router", spec)
