"""A pass that fails, or leaves what its stage forbids, is named."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Pass, run
from mocomp.passes.clean import Clean
from tests.programs import HIDDEN, Formula, trace


@dataclass(frozen=True)
class Faulty(Pass):
    """x   ->   whatever `edit` makes of it"""

    name: ClassVar[str] = "faulty"
    needs: ClassVar[Stage] = Stage.TRACED
    gives: ClassVar[Stage] = Stage.CANONICAL
    edit: object = None
    level: int = 3

    def apply(self, program):
        self.edit(program)
        return Changes(1)


@pytest.fixture
def program():
    traced = trace(Formula(lambda m, x: x.to(torch.float32) @ m.w, w=(HIDDEN, HIDDEN)))
    run(Clean(), traced.program)
    return traced.program


def erase_the_input(program):
    program.graph.erase_node(next(iter(program.graph.nodes)))


def use_before_definition(program):
    first, *_, output = program.graph.nodes
    first.prepend(output)


def forget_a_type(program):
    program.recipes["w"] = program.recipes["w"].__class__((3, HIDDEN), torch.float32, "w")


def add_an_assertion(program):
    node = next(node for node in program.graph.nodes if node.op == "call_function")
    with program.graph.inserting_before(node):
        program.graph.call_function(torch.ops.aten._assert_scalar.default, (True, "never"))


FAULTS = {
    erase_the_input: "pass faulty: RuntimeError: Tried to erase",
    use_before_definition: "pass faulty: RuntimeError: .*used before it has been defined",
    forget_a_type: r"after faulty: w: recipe \(3, 8\), graph \(8, 8\)",
    add_an_assertion: "after faulty, node .*: aten._assert_scalar.default is not legal at stage canonical",
}


@pytest.mark.parametrize("edit", FAULTS, ids=lambda edit: edit.__name__)
def test_a_fault_names_the_pass(program, edit):
    with pytest.raises(MocompError, match=FAULTS[edit]) as caught:
        run(Faulty(edit), program)
    assert caught.value.exit_code == 70


def test_what_a_pass_refuses_is_not_dressed_up(program):
    def refuse(program):
        raise Unsupported("it cannot be done", where="layer 3")

    with pytest.raises(Unsupported, match=r"^layer 3: it cannot be done$"):
        run(Faulty(refuse), program)


def test_a_pass_in_the_wrong_place_is_told(program):
    add_an_assertion(program)

    @dataclass(frozen=True)
    class Late(Faulty):
        """x   ->   x"""

        needs: ClassVar[Stage] = Stage.CANONICAL

    with pytest.raises(MocompError, match="before faulty, node "):
        run(Late(lambda program: None), program)


def test_the_receipt_tells_options_that_can_be_written_down(program):
    receipt = run(Faulty(lambda program: None), program)
    assert (receipt.name, receipt.options, receipt.changed, receipt.nodes) == (
        "faulty",
        {"level": 3},
        1,
        len(program.graph.nodes),
    )
