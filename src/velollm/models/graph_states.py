"""Layers with a recurrent state, as an engine's graphs have them.

Source: llama.cpp b10488, src/models/mamba-base.cpp, src/models/lfm2.cpp, src/models/delta-net-base.cpp,
src/models/qwen35.cpp and ``build_rs`` in src/llama-graph.cpp.
"""

from __future__ import annotations

from velollm.facts import SsmFacts
from velollm.models.graph import (
    F32,
    I32,
    Tensor,
    add,
    cont,
    get_rows,
    matmul,
    mul,
    new,
    norm,
    result,
    store,
    transpose,
    unary,
    view,
    weight,
)
from velollm.models.graph_parts import Parts


class States:
    """Recurrent layers of one step; ``copies`` says which state belongs to which sequence."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._expand = parts.graph.expand
        self._sequences = parts.step.sequences
        self._each = parts.step.tokens // self._sequences
        self._kept = parts.step.snapshots
        copies = new(self._sequences, width=I32)
        self._main = view(copies, self._sequences)
        self._extra = view(copies, 0)

    def _read(self, values: int, scan: tuple[Tensor, ...] = (), scanned: int = 0) -> Tensor:
        """The states of the sequences, or what a scan from them gives; states that stay are moved."""
        states = weight(values, self._sequences)
        self._expand(store(view(states, 0), view(states, 0)))
        rows = get_rows(states, self._main)
        found = result(states, *scan, self._main, ne=(scanned,)) if scan else rows
        self._expand(found)
        self._expand(store(view(states, values, 0), get_rows(states, self._extra)))
        return found

    def _write(self, of: Tensor) -> None:
        self._expand(store(weight(*of.ne), of))

    def _convolved(self, of: Tensor, kernel: int) -> Tensor:
        """A convolution over the last tokens, after those of the state. ``of``: values, tokens, sequences."""
        values, each, count = of.ne[0], self._each, self._sequences
        before = view(self._read((kernel - 1) * values), kernel - 1, values, count)
        return self._conv(before, of, values, kernel, each, count)

    def _conv(self, before: Tensor, of: Tensor, values: int, kernel: int, each: int, count: int) -> Tensor:
        whole = result(before, transpose(of), ne=(kernel - 1 + each, values, count))
        self._write(view(whole, kernel - 1, values, count, strides=(whole.nb[1], whole.nb[2])))
        return result(whole, weight(kernel, values), ne=(values, each, count))

    def mamba2(self, cur: Tensor, ssm: SsmFacts) -> Tensor:
        """``build_mamba2_layer``."""
        inner, state = ssm.inner_size or 0, ssm.state_size or 0
        heads, groups = ssm.time_step_rank or 1, ssm.group_count or 1
        head, each, count = inner // heads, self._each, self._sequences
        mixed = inner + 2 * groups * state
        kernel = ssm.conv_kernel or 1
        before = view(self._read((kernel - 1) * mixed), kernel - 1, mixed, count)
        whole = matmul(2 * inner + 2 * groups * state + heads, view(cur, cur.ne[0], each, count))
        strides = (whole.nb[1], whole.nb[2])
        gate = view(whole, head, heads, each, count, strides=(head * F32, *strides))
        step = view(whole, heads, each, count, strides=strides)
        xbc = self._conv(before, view(whole, mixed, each, count, strides=strides), mixed, kernel, each, count)
        xbc = unary(add(xbc))
        rows = (xbc.nb[1], xbc.nb[2])
        x = view(xbc, head, heads, each, count, strides=(head * F32, *rows))
        b = view(xbc, state, groups, each, count, strides=(state * F32, *rows))
        c = view(xbc, state, groups, each, count, strides=(state * F32, *rows))
        step = add(cont(step))
        scanned = inner * each * count + state * inner * count * self._kept
        found = self._read(state * inner, (x, step, weight(1, heads), b, c), scanned)
        self._write(view(found, state * inner, count))
        y = view(found, head, heads, each, count)
        y = add(y, mul(x))
        y = result(cont(gate), y)
        y = norm(view(y, inner // groups, groups, each, count))
        cur = matmul(self._parts.width, view(y, inner, each, count))
        return view(cur, self._parts.width, each * count)

    def mamba1(self, cur: Tensor, ssm: SsmFacts) -> Tensor:
        """``build_mamba_layer``."""
        inner, state, rank = ssm.inner_size or 0, ssm.state_size or 0, ssm.time_step_rank or 1
        each, count, kernel = self._each, self._sequences, ssm.conv_kernel or 1
        before = view(self._read((kernel - 1) * inner), kernel - 1, inner, count)
        xz = matmul(2 * inner, view(cur, cur.ne[0], each, count))
        strides = (xz.nb[1], xz.nb[2])
        x, z = (view(xz, inner, each, count, strides=strides) for _ in range(2))
        x = unary(add(self._conv(before, x, inner, kernel, each, count)))
        mixed = matmul(rank + 2 * state, x)
        strides = (mixed.nb[1], mixed.nb[2])
        step = add(matmul(inner, view(mixed, rank, each, count, strides=strides)))
        b, c = (view(mixed, state, 1, each, count, strides=(state * F32, *strides)) for _ in range(2))
        by_head = view(x, 1, inner, each, count)
        scanned = inner * each * count + state * inner * count
        found = self._read(state * inner, (by_head, step, weight(state, inner), b, c), scanned)
        self._write(view(found, state * inner * count))
        y = add(view(found, inner, each, count), mul(x))
        y = result(cont(z), y)
        cur = matmul(self._parts.width, y)
        return view(cur, self._parts.width, each * count)

    def short_convolution(self, cur: Tensor, kernel: int) -> Tensor:
        """The convolution blocks of lfm2."""
        width, each, count = self._parts.width, self._each, self._sequences
        mixed = matmul(3 * width, view(cur, width, each, count))
        strides = (mixed.nb[1], mixed.nb[2])
        b, c, x = (view(mixed, width, each, count, strides=strides) for _ in range(3))
        y = mul(c, self._convolved(mul(b, x), kernel))
        return view(matmul(width, y), width, each * count)

    def delta_net(self, cur: Tensor, ssm: SsmFacts) -> Tensor:
        """``build_layer_attn_linear`` of qwen35 and qwen3next, with the fused operation."""
        inner, state = ssm.inner_size or 0, ssm.state_size or 0
        heads, groups = ssm.time_step_rank or 1, ssm.group_count or 1
        head, each, count = inner // heads, self._each, self._sequences
        mixed = inner + 2 * groups * state
        qkv, z = view(matmul(mixed, cur), mixed, each, count), matmul(inner, cur)
        beta = unary(view(matmul(heads, cur), 1, heads, each, count))
        decay = mul(unary(add(view(matmul(heads, cur), heads, each, count))))
        whole = self._convolved(qkv, ssm.conv_kernel or 1)
        before = view(self._read(head * inner), head, head, heads, count)
        whole = unary(whole)
        rows = (whole.nb[1], whole.nb[2])
        q, k = (result(view(whole, state, groups, each, count, strides=(state * F32, *rows))) for _ in range(2))
        v = view(whole, head, heads, each, count, strides=(head * F32, *rows))
        found = result(
            *(q, k, v, view(decay, 1, heads, each, count), beta, before),
            ne=(inner, each * count + head * count * self._kept),
        )
        self._write(view(found, head * inner, count))
        out = mul(norm(view(found, head, heads, each, count)), unary(view(z, head, heads, each, count)))
        cur = matmul(self._parts.width, view(out, inner, each, count))
        return view(cur, self._parts.width, each * count)
