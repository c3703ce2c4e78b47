"""The parts of which an engine's graphs are built: inputs, attention, feed-forward, experts, state-space layers.

Source: llama.cpp b10488, src/llama-graph.cpp (``build_inp_embd``, ``build_attn``, ``build_attn_mha``, ``build_ffn``,
``build_moe_ffn``, ``build_rs``), src/llama-kv-cache.cpp (``cpy_k``, ``cpy_v``, ``get_k``, ``get_v``), src/llama-impl.h
(``llama_mul_mat_hadamard``) and src/models/mamba-base.cpp. Only what decides about memory is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from velollm.models.graph import (
    F16,
    F32,
    I32,
    I64,
    Graph,
    Tensor,
    add,
    cont,
    get_rows,
    matmul,
    mul,
    new,
    permute,
    result,
    store,
    transpose,
    unary,
    view,
    weight,
)


@dataclass(frozen=True)
class Step:
    """The worst step that an engine reserves memory for.

    ``tokens`` over all ``sequences``; ``outputs`` of them get logits. ``streams``: KV caches side by side (1 when
    unified). ``cells`` and ``sliding_cells``: of one stream. ``turns_k``: keys are turned by a Hadamard matrix before
    they are stored, as the engine does with quantized formats; ``turns_v`` likewise. ``snapshots``: recurrent states
    that are kept of each sequence.
    """

    tokens: int
    sequences: int
    outputs: int
    streams: int
    cells: int
    sliding_cells: int
    flash_attention: bool
    turns_k: bool
    turns_v: bool
    snapshots: int = 1


@dataclass(frozen=True)
class Cache:
    """What every layer of a kind (sliding or not) shares: mask and indices of the cells, and matrices to turn by."""

    cells: int
    k_ids: Tensor
    v_ids: Tensor | None
    mask: Tensor
    turn_k: Tensor | None
    turn_v: Tensor | None


@dataclass(frozen=True)
class Heads:
    """Attention of one layer: query heads, KV heads, and the values of a head."""

    query: int
    kv: int
    key: int
    value: int


class Parts:
    """Makes parts of a graph for one step of a model with embeddings of ``width`` values."""

    def __init__(self, step: Step, width: int) -> None:
        self.step = step
        self.width = width
        self.graph = Graph()

    def embedding(self) -> Tensor:
        """Rows for the tokens; beside them the engine keeps room for embeddings that come from outside."""
        tokens = new(self.step.tokens, width=I32)
        found = get_rows(weight(self.width, 1), tokens)
        self.graph.expand(found)
        self.graph.expand(new(self.width, self.step.tokens))
        return found

    def positions(self, each: int = 1) -> Tensor:
        """The positions of the tokens."""
        return new(self.step.tokens * each, width=I32)

    def output_ids(self) -> Tensor:
        """Which tokens get logits."""
        return new(self.step.outputs, width=I32)

    def cache(self, cells: int, heads: Heads, *, values: int | None = None, mla: bool = False) -> Cache:
        """Inputs of attention over a cache of that many cells. ``values`` of all KV heads of the widest layer."""
        step = self.step
        per_token = 1 if step.flash_attention or values is None else values
        mask = new(cells, step.tokens // step.streams, 1, step.streams, width=F16 if step.flash_attention else F32)
        k_ids = new(step.tokens, width=I64)
        if mla:
            return Cache(cells, k_ids, None, mask, None, None)
        turn_k = new(*[_turned_together(heads.key)] * 2) if step.turns_k else None
        turn_v = new(64, 64) if step.turns_v else None
        return Cache(cells, k_ids, new(step.tokens * per_token, width=I64), mask, turn_k, turn_v)

    def qkv(self, cur: Tensor, heads: Heads, *, fused: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the tokens, by head."""
        tokens = self.step.tokens
        if fused:
            rows = heads.query * heads.key + heads.kv * (heads.key + heads.value)
            whole = matmul(rows, cur)
            strides = (heads.key * F32, rows * F32)
            q = view(whole, heads.key, heads.query, tokens, strides=strides)
            k = view(whole, heads.key, heads.kv, tokens, strides=strides)
            return q, k, view(whole, heads.value, heads.kv, tokens, strides=strides)
        q, k = matmul(heads.query * heads.key, cur), matmul(heads.kv * heads.key, cur)
        v = matmul(heads.kv * heads.value, cur)
        return (
            view(q, heads.key, heads.query, tokens),
            view(k, heads.key, heads.kv, tokens),
            view(v, heads.value, heads.kv, tokens),
        )

    def attend(self, cache: Cache, heads: Heads, q: Tensor, k: Tensor, v: Tensor, *, softcap: bool = False) -> Tensor:
        """Store keys and values, and attend over the cache."""
        if cache.turn_k is not None:
            q, k = _turned(q, cache.turn_k), _turned(k, cache.turn_k)
        if cache.turn_v is not None:
            v = _turned(v, cache.turn_v)
        for part in (q, v, k):
            self.graph.expand(part)
        flash, streams = self.step.flash_attention, self.step.streams
        width_k, width_v = heads.kv * heads.key, heads.kv * heads.value
        assert cache.v_ids is not None
        self.graph.expand(store(weight(width_k, cache.cells * streams), _rows(k, width_k), cache.k_ids))
        stored = _rows(v, width_v) if flash else view(view(v, width_v, v.ne[2]), 1, prod(v.ne))
        self.graph.expand(store(weight(width_v, cache.cells * streams), stored, cache.v_ids))
        keys = permute(weight(heads.key, heads.kv, cache.cells, streams), 0, 2, 1, 3)
        values = permute(weight(heads.value, heads.kv, cache.cells, streams), 0, 2, 1, 3)
        cur = self._attention(q, keys, values, cache.mask, heads.value, softcap=softcap)
        return cur if cache.turn_v is None else _turned(cur, cache.turn_v)

    def attend_latent(self, cache: Cache, q: Tensor, k: Tensor, rank: int, value: int) -> Tensor:
        """The same over a cache of compressed rows (MLA); the result has ``value`` values a head."""
        for part in (q, k):
            self.graph.expand(part)
        row, streams = k.ne[0], self.step.streams
        self.graph.expand(store(weight(row, cache.cells * streams), _rows(k, row), cache.k_ids))
        keys = permute(weight(row, 1, cache.cells, streams), 0, 2, 1, 3)
        values = permute(weight(rank, 1, cache.cells, streams), 0, 2, 1, 3)
        return self._attention(q, keys, values, cache.mask, rank, decompressed=value)

    def absorb(self, q: Tensor, rank: int) -> Tensor:
        """Queries multiplied into the space of the compressed rows, head by head (MLA)."""
        plain, heads, tokens, _ = q.ne
        found = result(weight(plain, rank, heads), permute(q, 0, 2, 1, 3), ne=(rank, tokens, heads))
        return permute(found, 0, 2, 1, 3)

    def _attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        value: int,
        *,
        softcap: bool = False,
        decompressed: int | None = None,
    ) -> Tensor:
        """``build_attn_mha``: (values of all heads, tokens)."""
        streams = self.step.streams
        each = q.ne[2] // streams
        heads = q.ne[1]
        q = view(q, q.ne[0], heads, each, streams, strides=(q.nb[1], q.nb[2], q.nb[2] * each))
        q = permute(q, 0, 2, 1, 3)
        if self.step.flash_attention:
            cur = result(q, keys, values, mask, ne=(value, heads, each, streams))
            if decompressed is not None:
                cur = result(
                    weight(value, decompressed, heads),
                    permute(cur, 0, 2, 1, 3),
                    ne=(decompressed, each, heads, streams),
                )
                cur = cont(permute(cur, 0, 2, 1, 3))
            return self.graph.expand(view(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3]))
        scores = result(keys, q, ne=(keys.ne[1], each, heads, streams))
        if softcap:
            scores = unary(unary(unary(scores)))
        scores = result(scores, mask, inplace=True)
        if decompressed is not None:
            values = result(transpose(values), width=F16)
        cur = result(values, scores, ne=(value, each, heads, streams))
        if decompressed is not None:
            cur = result(weight(value, decompressed, heads), cur, ne=(decompressed, each, heads, streams))
        cur = permute(cur, 0, 2, 1, 3)
        return self.graph.expand(cont(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3]))

    def feed_forward(self, cur: Tensor, inner: int, *, gated: bool = True, fused: bool = False) -> Tensor:
        """``inner`` values wide; ``gated``: with a gate beside, ``fused``: both in one matrix."""
        width = cur.ne[0]
        if fused:
            cur = matmul(2 * inner, cur)
            return matmul(width, result(cur, ne=(inner, *cur.ne[1:])))
        up = matmul(inner, cur)
        if not gated:
            return matmul(width, unary(up))
        gate = matmul(inner, cur)
        return matmul(width, result(gate, up))

    def experts(
        self,
        cur: Tensor,
        count: int,
        used: int,
        inner: int,
        *,
        normed: bool = True,
        gating: str = "softmax",
        biased: bool = False,
        gated: bool = True,
        weighted_first: bool = False,
        latent: Tensor | None = None,
    ) -> Tensor:
        """A router and the experts that it chooses, ``used`` for each token.

        ``gating``: what makes weights of the router's values: ``softmax`` or ``sigmoid`` over all experts, or ``late``
        over the chosen ones. ``biased``: the choice is by other values than the weights. ``latent``: what the experts
        see in place of ``cur``.
        """
        tokens = cur.ne[1]
        probabilities = matmul(count, cur)
        chosen_by = probabilities
        if gating != "late":
            probabilities = unary(probabilities)
        if not weighted_first:
            chosen_by = add(probabilities) if biased else probabilities
        sorted_ids = result(chosen_by, width=I32)
        chosen = view(sorted_ids, used, tokens, strides=(sorted_ids.nb[1],))
        weights = get_rows(view(probabilities, 1, count, tokens), chosen)
        if gating == "late":
            weights = view(unary(view(weights, used, tokens)), 1, used, tokens)
        if normed:
            flat = view(weights, used, tokens)
            total = result(flat, ne=(1, tokens))
            weights = view(result(flat, view(total, 1, tokens), inplace=True), 1, used, tokens)
        self.graph.expand(weights)
        seen = cur if latent is None else latent
        width = seen.ne[0]
        seen = view(seen, width, 1, tokens)
        if weighted_first:
            seen = mul(result(seen, ne=(width, used, tokens)), weights)
        up = result(weight(width, inner, count), seen, chosen, ne=(inner, used, tokens))
        if gated:
            gate = result(weight(width, inner, count), seen, chosen, ne=(inner, used, tokens))
            up = result(gate, up)
        else:
            up = unary(up)
        outs = result(weight(inner, width, count), up, chosen, ne=(width, used, tokens))
        if not weighted_first:
            outs = mul(outs, weights)
        self.graph.expand(outs)
        each = [self.graph.expand(view(outs, width, tokens, strides=(outs.nb[2],))) for _ in range(used)]
        total = each[0]
        for one in each[1:]:
            total = self.graph.expand(add(total, one))
        return total if used > 1 else cont(total)


def _rows(of: Tensor, width: int) -> Tensor:
    """All heads of a token as one row."""
    return view(of, width, of.ne[2], strides=(of.nb[2],))


def _turned(of: Tensor, by: Tensor) -> Tensor:
    """``llama_mul_mat_hadamard``."""
    size = by.ne[0]
    dense = of.nb[1] == of.nb[0] * of.ne[0] and (of.ne[2] == 1 or of.nb[2] == of.nb[1] * of.ne[1])
    flat = (view if dense else cont)(of, size, prod(of.ne) // size)
    return view(result(by, flat, ne=flat.ne), *of.ne)


def _turned_together(head: int) -> int:
    """The largest power of two times 64 that divides the size of a head."""
    size = 64
    while head % (2 * size) == 0:
        size *= 2
    return size
