"""Sets of alike experts in a module, found by structure alone."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mocomp.models.recognition.probing import tensor_at

LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class ExpertSet:
    """Alike experts: where their tensors are, relative to the module that is asked.

    `tensors` pairs a tensor's name within an expert with its paths: one per expert, or one path to a tensor that holds
    them all when `packed` (see `by_expert`). `modules` are the experts' own modules, if they are modules.
    """

    holder: str
    count: int
    packed: bool
    tensors: tuple[tuple[str, tuple[str, ...]], ...]
    modules: tuple[str, ...] = ()

    def within(self, block: str) -> ExpertSet:
        """The same experts, with paths relative to the submodule `block`."""
        cut = len(block) + 1 if block else 0
        return replace(
            self,
            holder=self.holder[cut:],
            tensors=tuple((name, tuple(path[cut:] for path in paths)) for name, paths in self.tensors),
            modules=tuple(path[cut:] for path in self.modules),
        )

    def paths(self) -> list[str]:
        """Every tensor's path."""
        return [path for _, paths in self.tensors for path in paths]

    def owns(self, path: str) -> bool:
        """Whether a tensor or module belongs to the experts."""
        return path in self.paths() or any(path == module or path.startswith(f"{module}.") for module in self.modules)

    def stacks(self, block: nn.Module) -> list[dict[str, Tensor]]:
        """Their tensors by name, each [E, ...]: all together, or a stack of one for each expert when widths differ."""
        if self.packed:
            return [{name: by_expert(tensor_at(block, path), self.count) for name, (path,) in self.tensors}]
        lists = {name: [tensor_at(block, path) for path in paths] for name, paths in self.tensors}
        if all(len({tensor.shape for tensor in tensors}) == 1 for tensors in lists.values()):
            return [{name: torch.stack(tensors) for name, tensors in lists.items()}]
        return [{name: tensors[i][None] for name, tensors in lists.items()} for i in range(self.count)]

    def shapes(self, block: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of the first expert's tensors."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.stacks(block)[0].items()}

    def masked(self, values: dict[str, Tensor], kept: range) -> dict[str, Tensor]:
        """The tensors by path as they are in `values`, but for zeros in those of the experts that are not `kept`."""
        masked = {}
        for _, paths in self.tensors:
            if self.packed:
                parts = by_expert(values[paths[0]], self.count)
                mask = torch.tensor([float(e in kept) for e in range(self.count)]).reshape(-1, *[1] * (parts.dim() - 1))
                masked[paths[0]] = (parts * mask).reshape(values[paths[0]].shape)
            else:
                masked |= {path: values[path] if e in kept else values[path] * 0 for e, path in enumerate(paths)}
        return masked


def by_expert(packed: Tensor, count: int) -> Tensor:
    """A tensor of all experts as [E, ...]: [E, ...] as it is, [E * F, ...] cut, or [E', E'', ...] joined; traceable."""
    if packed.shape[0] == count:
        return packed
    if packed.shape[0] % count == 0:
        return packed.reshape(count, packed.shape[0] // count, *packed.shape[1:])
    return packed.reshape(count, *packed.shape[2:])


def untie(module: nn.Module, experts: ExpertSet) -> None:
    """Give each expert modules of its own, in a module that may be changed: one that is there twice becomes two."""
    places: dict[int, str] = {}
    for path in experts.paths():
        parts = path.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            place, owner = ".".join(parts[:depth]), module.get_submodule(".".join(parts[: depth - 1]))
            child = owner._modules[parts[depth - 1]]
            if places.setdefault(id(child), place) != place:
                owner._modules[parts[depth - 1]] = own = copy.deepcopy(child)
                places[id(own)] = place


def expert_sets(module: nn.Module) -> list[ExpertSet]:
    """Every set of at least two things that might be experts, the largest sets first."""
    found: list[ExpertSet] = []
    sizes = {tuple(p.shape) for p in module.parameters() if p.dim() == 2}
    for name, child in reversed(list(module.named_modules())):
        found += [*_children(name, child), *_lists(name, child)]
        packed = [*_packed(name, child), *_joined(name, child, sizes)]
        found += [made for made in packed if not any(_inside(made, known) for known in found)]
    return sorted(found, key=lambda experts: -experts.count)


def _inside(made: ExpertSet, known: ExpertSet) -> bool:
    return bool(set(made.paths()) & set(known.paths()))


def _children(name: str, module: nn.Module) -> Iterator[ExpertSet]:
    """Children of one class with the same tensors: a list, or attributes side by side."""
    groups = defaultdict(list)
    for key, child in module._modules.items():  # named_children would leave out one that is there twice
        if child is not None and not isinstance(child, LISTS):
            groups[type(child), tuple((n, p.dim()) for n, p in child.named_parameters())].append(key)
    for (_, tensors), keys in groups.items():
        matrices = sum(dims == 2 for _, dims in tensors)
        if len(keys) < 2 or matrices not in (2, 3) or any(dims > 2 for _, dims in tensors):
            continue
        modules = tuple(_join(name, key) for key in keys)
        paths = tuple((n, tuple(_join(path, n) for path in modules)) for n, _ in tensors)
        yield ExpertSet(name, len(keys), False, paths, modules)


def _lists(name: str, module: nn.Module) -> Iterator[ExpertSet]:
    """Lists of one length, each of one product: the experts are what stands at the same place in each."""
    by_length = defaultdict(list)
    for key, child in module._modules.items():
        if isinstance(child, LISTS) and len(child) >= 2:
            by_length[len(child)].append((key, child))
    for length, lists in by_length.items():
        tensors = []
        for key, child in lists:
            tensors += _columns(_join(name, key), child, length)
        if len(lists) >= 2 and sum(dims == 2 for _, _, dims in tensors) in (2, 3):
            paths = tuple((n.removeprefix(f"{name}.") if name else n, p) for n, p, _ in tensors)
            yield ExpertSet(name, length, False, paths)


def _columns(path: str, child: nn.Module, length: int) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(name, paths, dimensions) of the tensors that each item of a list has."""
    if isinstance(child, nn.ParameterList | nn.ParameterDict):
        items = list(child._parameters.items())
        if len(items) == length:
            yield path, tuple(_join(path, key) for key, _ in items), items[0][1].dim() if items[0][1] is not None else 0
        return
    items = [(key, dict(item.named_parameters())) for key, item in child._modules.items() if item is not None]
    for n, parameter in items[0][1].items():
        if all(n in parameters for _, parameters in items):
            yield f"{path}.{n}", tuple(_join(path, f"{key}.{n}") for key, _ in items), parameter.dim()


def _packed(name: str, module: nn.Module) -> Iterator[ExpertSet]:
    """Parameters of a subtree with one first dimension, or two: two or three matrices per expert, and vectors."""
    own = [(n, p) for n, p in module.named_parameters() if n.count(".") <= 2]
    leads = {tuple(p.shape[:-2]) for _, p in own if p.dim() in (3, 4) and p.shape[:-2].numel() > 1}
    for lead in sorted(leads):
        tensors = [(n, p) for n, p in own if tuple(p.shape[:-2]) == lead]
        matrices = [n for n, p in tensors if 1 not in p.shape[-2:]] if len(tensors) > 3 else [n for n, _ in tensors]
        if len(matrices) not in (2, 3):
            continue
        vectors = [n for n, p in own if tuple(p.shape[:-1]) == lead]
        stored, count = [n for n, _ in tensors], torch.Size(lead).numel()
        for chosen in _subsets(vectors):
            yield ExpertSet(name, count, True, tuple((n, (_join(name, n),)) for n in [*stored, *chosen]))


def _joined(name: str, module: nn.Module, sizes: set[tuple[int, ...]]) -> Iterator[ExpertSet]:
    """Matrices [E * F, H], all experts' rows in one; how many experts is told by a matrix [E, H] or [H, E] elsewhere."""
    own = [(n, p) for n, p in module._parameters.items() if p is not None and p.dim() == 2]
    if len(own) not in (2, 3) or len({p.shape for _, p in own}) > 1:
        return
    rows, hidden = own[0][1].shape
    counts = {size[0] if size[1] == hidden else size[1] for size in sizes if hidden in size}
    for count in sorted(n for n in counts if 1 < n < rows and rows % n == 0):
        yield ExpertSet(name, count, True, tuple((n, (_join(name, n),)) for n, _ in own))


def _subsets(names: list[str]) -> Iterator[list[str]]:
    """Which [E, n] tensors belong to the experts and which to a router is not written on them: all, then fewer."""
    yield names
    yield from ([n for n in names if n not in without] for without in ([m] for m in names))
    if len(names) > 1:
        yield []


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
