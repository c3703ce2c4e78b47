"""The graph that turns a picture into embeddings, at the size that the engine reserves memory for.

Source: llama.cpp b10488, tools/mtmd/clip.cpp (``build_vit``, ``build_inp``, ``build_attn``, ``warmup`` and
``resize_position_embeddings``) and tools/mtmd/models/siglip.cpp, qwen2vl.cpp and qwen3vl.cpp, with flash attention. A
larger picture than the reserved one makes the engine reserve more.
"""

from __future__ import annotations

from velollm.facts import ProjectorFacts
from velollm.models.graph import (
    F16,
    F32,
    I32,
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
    transpose,
    unary,
    view,
    weight,
)

# Tokens that a picture of the reserved size has: ``set_warmup_n_tokens`` in tools/mtmd/clip.cpp:1591.
_QWEN_SIDE_TOKENS = 46
_COLOURS = 3


def picture_graph(projector: ProjectorFacts) -> Graph:
    """The graph for the picture of the reserved size."""
    return _Pictures(projector).build()


class _Pictures:
    """Builds one graph."""

    def __init__(self, projector: ProjectorFacts) -> None:
        self._of = projector
        self._graph = Graph()
        side = projector.image
        if projector.kind != "gemma3":
            side = _QWEN_SIDE_TOKENS * projector.patch * projector.merge
        self._side = side
        self._across = side // projector.patch
        self._patches = self._across**2
        self._rms = projector.kind == "qwen2.5vl_merger"

    def build(self) -> Graph:
        if self._of.kind == "gemma3":
            self._graph.expand(self._gemma3())
        else:
            self._graph.expand(self._qwen())
        return self._graph

    def _convolved(self, pixels: Tensor) -> Tensor:
        """``ggml_conv_2d`` with steps of a patch: (patches across, patches down, width)."""
        of, across = self._of, self._across
        values = _COLOURS * of.patch**2
        columns = result(weight(values, of.width), pixels, ne=(values, across, across), width=of.bytes_of_patch)
        found = result(view(columns, values, self._patches), weight(values, of.width), ne=(self._patches, of.width))
        return cont(permute(view(found, across, across, 1, of.width), 0, 1, 3, 2))

    def _gemma3(self) -> Tensor:
        of = self._of
        found = self._convolved(new(self._side, self._side, _COLOURS))
        cur = add(cont(transpose(view(found, self._patches, of.width))))
        cur = view(add(cur), of.width, self._patches)
        for _ in range(of.layers):
            cur = self._layer(cur, None, None)
        cur = view(self._norm(cur), of.width, self._patches, 1)
        cur = cont(transpose(cur), self._across, self._across, of.width)
        pooled = self._across // of.merge
        cur = result(cur, ne=(pooled, pooled, of.width))
        cur = cont(transpose(view(cur, pooled**2, of.width, 1)))
        cur = mul(result(cur, inplace=True))
        turned = result(transpose(weight(of.out, of.width)), ne=(of.width, of.out), width=of.bytes_of_out)
        return result(turned, cur, ne=(of.out, pooled**2))

    def _qwen(self) -> Tensor:
        of = self._of
        pixels = new(self._side, self._side, _COLOURS)
        cur = self._by_fours(permute(add(self._convolved(pixels), self._convolved(pixels)), 1, 2, 0, 3))
        if of.kind == "qwen3vl_merger":
            cur = add(add(cur), self._by_fours(self._positions()))
        positions = new(4 * self._patches, width=I32)
        mask: Tensor | None = None
        if of.window_pattern:
            order = new(self._patches // 4, width=I32)
            mask = result(new(self._patches, self._patches), width=F16)
            cur = get_rows(view(cur, 4 * of.width, self._patches // 4), order)
            cur = view(cur, of.width, self._patches)
        deep: Tensor | None = None
        for layer in range(of.layers):
            whole = not of.window_pattern or (layer + 1) % of.window_pattern == 0
            cur = self._layer(cur, positions, None if whole else mask)
            if layer in of.deepstack:
                found = self._joined(self._norm(view(cur, 4 * of.width, self._patches // 4)), 4 * of.width)
                deep = found if deep is None else self._beside(deep, found)
        cur = self._joined(view(self._norm(cur), 4 * of.width, self._patches // 4), of.hidden or 4 * of.width)
        if deep is not None:
            cur = self._beside(cur, deep)
        if of.window_pattern:
            cur = get_rows(cur, new(self._patches // 4, width=I32))
        return cur

    def _by_fours(self, cur: Tensor) -> Tensor:
        """Four patches that become one token, side by side."""
        of, half = self._of, self._across // 2
        cur = cont(cur, 2 * of.width, half, self._across)
        return cont(permute(view(cur, 2 * of.width, half, 2, half), 0, 2, 1, 3), of.width, self._patches)

    def _positions(self) -> Tensor:
        """Learned positions, stretched to the picture where they are for another size."""
        of, across = self._of, self._across
        learned = weight(of.width, of.positions**2)
        if of.positions == across:
            return learned
        turned = permute(view(learned, of.width, of.positions, of.positions), 2, 0, 1, 3)
        stretched = result(turned, ne=(across, across, of.width))
        return cont(permute(stretched, 1, 2, 0, 3), of.width, self._patches)

    def _layer(self, cur: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        of = self._of
        normed = self._norm(cur)
        attended = add(self._attention(normed, positions, mask), cur)
        inner = self._norm(attended)
        up = add(matmul(of.feed_forward, inner))
        up = result(add(matmul(of.feed_forward, inner)), up) if of.gated else unary(up)
        return add(attended, add(matmul(of.width, up)))

    def _attention(self, cur: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        of, n = self._of, self._patches
        head = of.width // of.heads
        if of.kind == "qwen3vl_merger":
            whole = add(matmul(3 * of.width, cur))
            q, k, v = (view(whole, head, of.heads, n, strides=(head * F32, 3 * of.width * F32)) for _ in range(3))
        else:
            q, k, v = (view(add(matmul(of.width, cur)), head, of.heads, n) for _ in range(3))
        if positions is not None:
            q, k = (result(part, positions, inplace=True) for part in (q, k))
        for part in (q, k, v):
            self._graph.expand(part)
        k, v = (result(permute(part, 0, 2, 1, 3), width=F16) for part in (k, v))
        sources = (permute(q, 0, 2, 1, 3), k, v) + (() if mask is None else (result(mask, width=F16),))
        found = result(*sources, ne=(head, of.heads, n))
        return add(matmul(of.width, view(found, of.width, n)))

    def _norm(self, cur: Tensor) -> Tensor:
        """Layer norm cannot be done in place, RMS norm can."""
        return mul(result(cur, inplace=True)) if self._rms else add(mul(result(cur)))

    def _joined(self, cur: Tensor, hidden: int) -> Tensor:
        """Two matrices with biases and a function between them."""
        return add(matmul(self._of.out, unary(add(matmul(hidden, cur)))))

    @staticmethod
    def _beside(a: Tensor, b: Tensor) -> Tensor:
        return result(a, b, ne=(a.ne[0] + b.ne[0], a.ne[1]))
