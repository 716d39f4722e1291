"""What is said of TensorRT, seen where it is; that its graphs mean what they are to mean, seen in ONNX Runtime anywhere."""

import numpy as np
import pytest

from tests.gpu.facts import outcome
from tests.gpu.tensorrt_facts import FACTS, RUNS_ANYWHERE, _matmul


@pytest.mark.tensorrt
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_in_tensorrt(fact):
    seen = fact.see("cuda")
    assert fact.holds("cuda", seen) is not False, f"{fact.says}: expected {fact.gpu}, seen {seen}"
    assert not seen.startswith("failed"), seen


@pytest.mark.parametrize("name", RUNS_ANYWHERE)
def test_a_graph_means_what_is_expected_of_it(name):
    _, _, graph = RUNS_ANYWHERE[name]
    assert outcome(graph.model, graph.feeds, graph.expected, "cpu", graph.dtype) == "right"


@pytest.fixture
def engine(monkeypatch):
    """engine(y): Polygraphy as it is, over an engine that gives y, or that cannot be built when y is None."""
    polygraphy = pytest.importorskip("polygraphy.backend.trt")
    from polygraphy.exception import PolygraphyException

    def installed(y):
        class Runner:
            def __init__(self, engine):
                self.engine = engine

            def __enter__(self):
                if y is None:
                    raise PolygraphyException("no importer\nand more")
                return self

            def __exit__(self, *_):
                return None

            def infer(self, feeds):
                return {"y": y}

        monkeypatch.setattr(polygraphy, "TrtRunner", Runner)

    return installed


def test_outcomes_are_told_apart(engine):
    graph = _matmul("float16")
    for y, expected in ((graph.expected, "right"), (graph.expected + 1, "wrong"), (graph.expected[:1], "wrong")):
        engine(y)
        assert graph.outcome("cuda").partition(":")[0] == expected
    engine(np.full_like(graph.expected, np.nan))
    assert graph.outcome("cuda").startswith("wrong")
    engine(None)
    assert graph.outcome("cuda") == "refused: no importer"
