"""Tasks in processes of Ray: the same results as in threads, bit for bit, whatever becomes of a process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mocomp.errors import BadInput, OutOfReach, Usage
from mocomp.executors import Executor
from mocomp.executors.local import Local
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import parse
from mocomp.quant.parts import quantised
from mocomp.quant.weight import promised
from mocomp.resources import Resources
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.journal import Journal
from mocomp.weights.parts import complete
from mocomp.weights.recipes import Recipe
from mocomp.weights.scratch import Scratch
from mocomp.weights.writer import Writer
from tests.executors.tasks import Dies, Fails, Square, Tells, Threads

ROOT = Path(__file__).parents[2]
pytest.importorskip("ray", reason="needs mocomp[ray]")
pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")  # Ray leaves its own processes' handles to Python


@pytest.fixture(scope="module")
def ray():
    from mocomp.executors.ray import Ray

    executor = Ray(Resources(executor="ray", workers=2))
    assert executor.missing() is None
    before = signal.getsignal(signal.SIGTERM)
    yield executor
    assert signal.getsignal(signal.SIGTERM) is before
    executor.close()


def test_every_task_is_done_once_in_other_processes(ray):
    found = list(ray.run(Square(i) for i in range(30)))
    assert sorted((task.number, result[0]) for task, result in found) == [(i, i * i) for i in range(30)]
    pids = {result[1] for _, result in found}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2


def test_torch_computes_with_one_thread_in_each(ray):
    assert {result for _, result in ray.run(Threads() for _ in range(4))} == {1}


def test_what_is_wrong_comes_out_as_it_was_said(ray):
    with pytest.raises(BadInput) as caught:
        list(ray.run([Fails(ours=False)]))
    error = caught.value
    assert (error.what, error.where, error.fix) == ("tensor w holds NaN", "model.safetensors", "Copy it again.")
    assert error.exit_code == 5 and str(error).startswith("model.safetensors: tensor w holds NaN")


def test_a_fault_of_ours_comes_out_as_itself(ray):
    with pytest.raises(ZeroDivisionError, match="of ours"):
        list(ray.run([Square(1), Fails(ours=True)]))


def test_a_task_whose_process_dies_runs_again(ray, tmp_path):
    tasks = [*(Square(i) for i in range(4)), Dies(tmp_path / "tries", 2), *(Square(i) for i in range(4, 8))]
    found = list(ray.run(tasks))
    assert [result for task, result in found if isinstance(task, Dies)] == ["alive"]
    assert (tmp_path / "tries").read_text() == "xxx"
    assert sorted(result[0] for task, result in found if isinstance(task, Square)) == [i * i for i in range(8)]


def test_a_process_that_is_killed_from_outside_is_replaced(ray, tmp_path):
    told, killed = tmp_path / "pid", []

    def kill() -> None:
        while not told.exists():
            time.sleep(0.01)
        killed.append(int(told.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    ((_, survivor),) = ray.run([Tells(told)])
    killer.join()
    assert [survivor] != killed


def test_one_that_dies_always_is_given_up(ray, tmp_path):
    with pytest.raises(OutOfReach, match="could not be done") as caught:
        list(ray.run([Dies(tmp_path / "tries", 100)]))
    assert "fewer --workers" in caught.value.fix and len((tmp_path / "tries").read_text()) == 4


class Cut:
    """A part that ends its process in the middle of the first run of the first of them, when half of it is written."""

    def __init__(self, part, mark: Path):
        self.part, self.mark = part, mark
        self.spans, self.amount, self.nbytes = part.spans, part.amount, part.nbytes

    def __call__(self):
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return self.part()
        span = self.spans[0]
        with span.path.open("r+b" if span.path.exists() else "wb") as file:
            file.seek(span.offset)
            file.write(b"\xff" * (span.length // 2))
        os.kill(os.getpid(), signal.SIGKILL)


class Cutting(Executor):
    """Another executor, whose first part is cut."""

    def __init__(self, inner: Executor, mark: Path):
        self.inner, self.mark = inner, mark

    def workers(self):
        raise NotImplementedError

    def run(self, tasks):
        return self.inner.run(Cut(task, self.mark) for task in tasks)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A checkpoint of seeded bfloat16 weights whose parts are small."""
    from safetensors.torch import save_file

    monkeypatch.setattr("mocomp.weights.parts.PART", 20_000)
    monkeypatch.setattr("mocomp.quant.parts.PART", 20_000)
    generator = torch.Generator().manual_seed(0)
    shapes = {"experts": (9, 40, 64), "matrix": (70, 96), "norm": (33,), "scalar": ()}
    weights = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    (tmp_path / "source").mkdir()
    save_file(weights, tmp_path / "source" / "model.safetensors")
    with Checkpoint(tmp_path / "source") as opened:
        yield opened


def weights_of(source: Checkpoint) -> dict[str, Recipe]:
    """Weights as they are, and rearranged in ways that can be parted and in one that cannot; functions are closures."""
    plain = {name: source.recipe(name) for name in source.entries}
    factor = 3.0
    twice = recipes.Apply((9, 40, 64), torch.float32, lambda w: w[0].float() * factor, (plain["experts"],))
    turned = recipes.permute(recipes.cast(plain["matrix"], torch.float32), (1, 0))
    return plain | {"twice": twice, "turned": turned, "stack": recipes.stack([plain["matrix"]] * 5, 1)}


def test_a_file_is_that_of_threads_though_a_process_was_killed(ray, source, tmp_path):
    read = reader_of([source])
    local, journal = Journal(), Journal()
    Writer(read, executor=Local(Resources(workers=2)), journal=local).write(tmp_path / "local", weights_of(source), b"head")
    cutting = Cutting(ray, tmp_path / "killed")
    Writer(read, executor=cutting, journal=journal).write(tmp_path / "ray", weights_of(source), b"head")
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()
    assert [part.sha256 for part in journal.parts] == [part.sha256 for part in local.parts] and len(local.parts) > 10


@pytest.mark.parametrize("text", ["int4:32", "nvfp4"])
def test_codes_are_those_of_threads_though_a_process_was_killed(ray, source, tmp_path, text):
    found = []
    for name, executor in (("local", Local(Resources(workers=2))), ("ray", Cutting(ray, tmp_path / "killed"))):
        store = Scratch(tmp_path / name, "made:", executor)
        weights = {w: promised(f"made:{w}", source.entries[w].shape, parse(text)) for w in ("experts", "matrix")}
        parts = [part for w, weight in weights.items()
                 for part in quantised(source.recipe(w), source.read, weight, RTN(), store)]  # fmt: skip
        assert len(parts) > 3
        complete(parts, executor, store.journal)
        copy = tmp_path / f"{name} written"
        every = {f"{w}.{part}": recipe for w, weight in weights.items() for part, recipe in weight.parts.items()}
        Writer(reader_of([source, store]), executor=executor).write(copy, every)  # what was made is read there too
        found.append(copy.read_bytes())
    assert found[0] == found[1] and any(found[0])


def test_a_cluster_is_joined_by_its_address(ray):
    """That of the other tests, from a process that knows nothing else of it, and that leaves it as it was."""
    import ray as library

    list(ray.run([Square(1)]))
    resources = Resources(executor="ray", address=library.get_runtime_context().gcs_address)
    script = f"""if True:
        from mocomp.executors import open_executor
        from mocomp.resources import Resources
        from tests.executors.tasks import Square
        executor = open_executor({resources!r})
        print(executor.count(), sorted(result[0] for _, result in executor.run(Square(i) for i in range(5))))
        executor.close()
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("2 [0, 1, 4, 9, 16]")
    assert [result[0] for _, result in ray.run([Square(3)])] == [9]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379"])
def test_a_cluster_that_is_not_there(address):
    """Ray itself would try for minutes."""
    from mocomp.executors.ray import Ray

    begin = time.perf_counter()
    with pytest.raises(OutOfReach, match="no Ray cluster answers") as caught:
        list(Ray(Resources(executor="ray", address=address)).run([Square(1)]))
    assert time.perf_counter() - begin < 10 and caught.value.where == address


@pytest.mark.parametrize("address", ["elsewhere", ":6379", "host:", "host:70000", "host:x", "ray://127.0.0.1:10001"])
def test_what_is_no_address_is_told(address):
    from mocomp.executors.ray import Ray

    with pytest.raises(Usage, match="is no HOST:PORT"):
        Ray(Resources(executor="ray", address=address)).start()


ALONE = """if True:
    import sys
    from mocomp.executors import open_executor
    from mocomp.resources import Resources
    executor = open_executor(Resources(executor="ray", workers=1))
    executor.close()
    assert "ray" not in sys.modules, "imported in vain"
    import ray
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    executor = open_executor(Resources(executor="ray", workers=1))
    executor.start()
    executor.close()
    assert ray.is_initialized(), "closed though another had started it"
    ray.shutdown()
    executor.start()
    executor.close()
    assert not ray.is_initialized(), "left running"
    print("done")
"""


def test_it_closes_what_it_started_and_nothing_else():
    """In a process that has no Ray yet."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.stdout.strip().endswith("done"), done.stderr


def test_one_of_this_machine_is_found_by_itself(ray):
    """Where the tests' own is the only one; its name for Ray is `auto`."""
    list(ray.run([Square(1)]))
    import ray as library

    resources = Resources(executor="ray", address="auto")
    script = f"""if True:
        from mocomp.executors import open_executor
        from mocomp.resources import Resources
        from tests.executors.tasks import Square
        executor = open_executor({resources!r})
        print([result[0] for _, result in executor.run([Square(3)])])
        executor.close()
    """
    env = os.environ | {"RAY_ADDRESS": library.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True, cwd=ROOT, env=env
    )
    assert done.stdout.strip() == "[9]"
