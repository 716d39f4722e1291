"""Mixtures written in many ways, none of them with anything of mocomp's, to be recognised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.models.recognition.probing import copied, in_float64

HIDDEN, WIDTH, EXPERTS = 16, 12, 4


def topk_softmax(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Softmax over all, the k largest, divided by their sum."""
    weights, ids = torch.topk(F.softmax(z, -1, dtype=torch.float32), k, -1)
    return ids, weights / weights.sum(-1, keepdim=True)


class FeedForward(nn.Module):
    """One expert: plain, or with a gate."""

    def __init__(self, act=F.silu, gated=True, bias=False, hidden=HIDDEN, width=WIDTH):
        super().__init__()
        self.act = act
        self.up = nn.Linear(hidden, width, bias)
        self.gate = nn.Linear(hidden, width, bias) if gated else None
        self.down = nn.Linear(width, hidden, bias)

    def forward(self, x):
        inner = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.down(inner)


class Fused(nn.Module):
    """One expert whose gate and up are one product, laid out as `order` says."""

    def __init__(self, order, act=F.silu, hidden=HIDDEN, width=WIDTH, bias=True):
        super().__init__()
        self.order, self.act = order, act
        self.gate_up = nn.Linear(hidden, 2 * width, bias)
        self.down = nn.Linear(width, hidden, bias)

    def forward(self, x):
        h = self.gate_up(x)
        first, second = h.chunk(2, -1) if "first" in self.order else (h[..., 0::2], h[..., 1::2])
        gate, up = (first, second) if self.order.startswith("gate") else (second, first)
        return self.down(self.act(gate) * up)


class Loop(nn.Module):
    """A loop over the experts that some token chose, whose rows are added where they belong."""

    def __init__(self, experts, k=2, route=topk_softmax, hidden=HIDDEN, rest=None):
        super().__init__()
        self.experts, self.k, self.route, self.rest = experts, k, route, rest
        self.gate = nn.Linear(hidden, len(experts), bias=False)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = self.route(self.gate(flat), self.k)
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts.values() if isinstance(self.experts, nn.ModuleDict) else self.experts):
            rows, places = torch.where(ids == e)
            y.index_add_(0, rows, expert(flat[rows]) * weights[rows, places, None].to(y.dtype))
        y = y.reshape(x.shape)
        return y if self.rest is None else y + self.rest(x)


class Packed(nn.Module):
    """Experts in packed parameters, `[E, in, out]` or `[E, out, in]`, all computed for all tokens and weighted."""

    def __init__(self, transposed=True, einsum=False, bias=True, act=F.gelu, k=2, experts=EXPERTS, hidden=HIDDEN, width=WIDTH):
        super().__init__()
        self.transposed, self.einsum, self.act, self.k = transposed, einsum, act, k
        turn = (lambda *s: (s[0], s[2], s[1])) if transposed else (lambda *s: s)
        self.w1 = nn.Parameter(torch.randn(turn(experts, width, hidden)) / hidden**0.5)
        self.w2 = nn.Parameter(torch.randn(turn(experts, hidden, width)) / width**0.5)
        self.b1 = nn.Parameter(torch.randn(experts, width)) if bias else None
        self.b2 = nn.Parameter(torch.randn(experts, hidden)) if bias else None
        self.router = nn.Parameter(torch.randn(hidden, experts))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = topk_softmax(flat @ self.router, self.k)
        shares = torch.zeros(flat.shape[0], self.w1.shape[0]).scatter(1, ids, weights)
        w1, w2 = (self.w1, self.w2) if self.transposed else (self.w1.mT, self.w2.mT)
        h = torch.einsum("th,ehf->etf", flat, w1) if self.einsum else torch.bmm(flat.expand(w1.shape[0], -1, -1), w1)
        y = torch.bmm(self.act(h if self.b1 is None else h + self.b1[:, None]), w2)
        y = y if self.b2 is None else y + self.b2[:, None]
        return torch.einsum("te,eth->th", shares.to(y.dtype), y).reshape(x.shape)


class Gathered(nn.Module):
    """The chosen experts' weights gathered for each token, `w[ids]`, gate and up in one parameter."""

    def __init__(self, k=2, experts=EXPERTS, hidden=HIDDEN, width=WIDTH):
        super().__init__()
        self.k = k
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * width, hidden) / hidden**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) / width**0.5)
        self.gate = nn.Linear(hidden, experts)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = topk_softmax(self.gate(flat), self.k)
        up, gate = torch.einsum("tkfh,th->tkf", self.gate_up[ids], flat).chunk(2, -1)
        y = torch.einsum("tkhf,tkf->tkh", self.down[ids], F.silu(gate) * up)
        return (y * weights[..., None].to(y.dtype)).sum(1).reshape(x.shape)


class Sorted(nn.Module):
    """Tokens sorted by expert, split by how many each has, and put back; experts as lists of products side by side."""

    def __init__(self, k=1, experts=EXPERTS, hidden=HIDDEN, width=WIDTH):
        super().__init__()
        self.k, self.count = k, experts
        self.fc1 = nn.ModuleList(nn.Linear(hidden, width) for _ in range(experts))
        self.fc2 = nn.ModuleList(nn.Linear(width, hidden) for _ in range(experts))
        self.wg = nn.Linear(hidden, experts, bias=False)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        p = F.softmax(self.wg(flat), -1)
        weights, ids = p.topk(self.k, -1)
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=self.count).tolist()
        parts = flat.repeat_interleave(self.k, 0)[order].split(counts)
        done = [two(F.relu(one(part))) for one, two, part in zip(self.fc1, self.fc2, parts, strict=True)]
        y = torch.zeros(flat.shape[0] * self.k, flat.shape[1]).to(flat.dtype)
        y[order] = torch.cat(done)
        return (y.reshape(-1, self.k, flat.shape[1]) * weights[..., None]).sum(1).reshape(x.shape)


class SigmoidGroups(nn.Module):
    """Sigmoid scores, a bias that only chooses, groups of experts, a scaling factor (as DeepSeek-V3 is described)."""

    def __init__(self, experts=8, k=2, groups=4, kept=2, scaling=2.5, normalize=True):
        super().__init__()
        self.top_k, self.n_group, self.topk_group = k, groups, kept
        self.scaling, self.normalize = scaling, normalize
        self.experts = nn.ModuleList(FeedForward() for _ in range(experts))
        self.weight = nn.Parameter(torch.randn(experts, HIDDEN) / 4)
        self.register_buffer("correction", torch.randn(experts) / 10)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        s = torch.sigmoid(F.linear(flat.float(), self.weight.float()))
        choice = s + self.correction
        groups = choice.view(flat.shape[0], self.n_group, -1)
        best = groups.topk(2, -1).values.sum(-1).topk(self.topk_group, -1).indices
        mask = torch.zeros(groups.shape[:2]).scatter(1, best, 1.0).bool()
        ids = groups.masked_fill(~mask[..., None], float("-inf")).flatten(1).topk(self.top_k, -1).indices
        weights = s.gather(1, ids)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * self.scaling
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            chosen = ids == e
            if chosen.any():
                rows = chosen.any(-1)
                y[rows] += expert(flat[rows]) * (weights * chosen).sum(-1)[rows, None].to(y.dtype)
        return y.reshape(x.shape)


class Two(nn.Module):
    """Two blocks one after the other."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(x + self.first(x)) + x


def built(make, seed=0):
    torch.manual_seed(seed)
    return make().eval()


def example(batch, length, seed=0):
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def agree(module, recognition, batch, length):
    """Whether a module in float64 gives the same with the canonical forms in place, and the same again without."""
    twin, x = copied(module), example(batch, length, 1).double()
    with in_float64():
        expected = twin(x)
        with recognition.install(twin):
            assert all("forward" in vars(twin.get_submodule(found.name)) for found in recognition.blocks)
            actual = twin(x)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(twin(x), expected)


def several(make, count=4):
    return nn.ModuleList(make() for _ in range(count))


def no_norm(z, k):
    weights, ids = F.softmax(z, -1).topk(k, -1)
    return ids, weights
