"""How much memory a graph of tensor operations needs: the tensors without their values, and ggml's allocator.

`Graph.buffer_bytes` follows ``ggml_gallocr_alloc_graph_impl`` and ``ggml_dyn_tallocr_alloc`` of ggml/src/ggml-alloc.c,
llama.cpp b10488: best fit, an operation that may work in place takes over a parent's memory, a tensor is freed after
its last reader. The order of nodes is that of ``ggml_visit_parents_graph`` in ggml/src/ggml.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

F32, F16, I32, I64 = 4, 2, 4, 8  # bytes of one value
_ALIGNMENT = 32  # TENSOR_ALIGNMENT, ggml/src/ggml-impl.h
_ENDLESS = 1 << 62

Shape = tuple[int, int, int, int]


class Tensor:
    """A tensor: lengths ``ne`` and strides ``nb`` by dimension, what it was made from, and whose memory it looks at.

    ``owner`` is itself, or for a view the tensor that has the memory. ``external``: its memory is not the graph's.
    ``kept``: an output, whose memory is not used again.
    """

    __slots__ = (
        "children",
        "external",
        "home",
        "inplace",
        "kept",
        "nb",
        "ne",
        "offset",
        "owner",
        "size",
        "src",
        "views",
    )

    def __init__(
        self,
        ne: Shape,
        width: int,
        src: tuple[Tensor, ...] = (),
        *,
        view: Tensor | None = None,
        nb: Shape | None = None,
        inplace: bool = False,
        external: bool = False,
    ) -> None:
        self.ne = ne
        self.nb = nb or (width, width * ne[0], width * ne[0] * ne[1], width * ne[0] * ne[1] * ne[2])
        self.src = src
        self.owner: Tensor = self if view is None else view.owner
        self.inplace = inplace
        self.external: bool = external or (view is not None and view.owner.external)
        self.kept = False
        self.size = width * prod(ne)
        self.home = 0
        self.offset = -1
        self.children = 0
        self.views = 0

    @property
    def is_view(self) -> bool:
        """Does it look at another tensor's memory?"""
        return self.owner is not self


def new(*ne: int, width: int = F32) -> Tensor:
    """An input, filled before each step."""
    return Tensor(_shape(ne), width)


def weight(*ne: int) -> Tensor:
    """A tensor whose memory is not the graph's: a weight, or a cache."""
    return Tensor(_shape(ne), F32, external=True)


def _shape(ne: Iterable[int]) -> Shape:
    a, b, c, d = (*ne, 1, 1, 1)[:4]
    return a, b, c, d


def result(*src: Tensor, ne: Iterable[int] | None = None, width: int = F32, inplace: bool = False) -> Tensor:
    """What an operation on ``src`` gives, of the first one's shape where none is named.

    ``inplace``: the operation may write over a parent (``ggml_op_can_inplace``).
    """
    return Tensor(src[0].ne if ne is None else _shape(ne), width, src, inplace=inplace)


def view(of: Tensor, *ne: int, strides: tuple[int, ...] | None = None) -> Tensor:
    """A part of a tensor, or all of it in another shape; strides as in the parent where none are named."""
    shape = _shape(ne)
    width = of.nb[0]
    if strides is None:
        return Tensor(shape, width, (of,), view=of)
    filled = (width, *strides)
    while len(filled) < 4:
        filled = (*filled, filled[-1] * shape[len(filled) - 1])
    return Tensor(shape, width, (of,), view=of, nb=(filled[0], filled[1], filled[2], filled[3]))


def permute(of: Tensor, a: int, b: int, c: int, d: int) -> Tensor:
    """Dimension i of the parent becomes dimension (a, b, c, d)[i]."""
    ne, nb = [0] * 4, [0] * 4
    for i, to in enumerate((a, b, c, d)):
        ne[to], nb[to] = of.ne[i], of.nb[i]
    return Tensor(_shape(ne), of.nb[0], (of,), view=of, nb=(nb[0], nb[1], nb[2], nb[3]))


def transpose(of: Tensor) -> Tensor:
    """The first two dimensions change places."""
    return permute(of, 1, 0, 2, 3)


def cont(of: Tensor, *ne: int) -> Tensor:
    """A copy without gaps."""
    return result(of, ne=ne or None)


def matmul(rows: int, by: Tensor, through: Tensor | None = None) -> Tensor:
    """``by`` multiplied with a weight of that many rows (or with another tensor of the graph)."""
    parents = (weight(by.ne[0], rows),) if through is None else (through,)
    return result(*parents, by, ne=(rows, by.ne[1], by.ne[2], by.ne[3]))


def add(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Sum with another tensor, or with a weight."""
    return result(a, weight(a.ne[0]) if b is None else b, inplace=True)


def mul(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Product with another tensor, or with a weight."""
    return add(a, b)


def unary(a: Tensor) -> Tensor:
    """A function of each value."""
    return result(a, inplace=True)


def norm(a: Tensor) -> Tensor:
    """RMS norm, and its weight."""
    return mul(result(a, inplace=True))


def get_rows(of: Tensor, ids: Tensor) -> Tensor:
    """Rows of a matrix by their numbers."""
    return result(of, ids, ne=(of.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]))


def store(into: Tensor, *src: Tensor) -> Tensor:
    """Writing into another tensor's memory."""
    return Tensor(into.ne, into.nb[0], (*src, into), view=into, nb=into.nb)


class Graph:
    """Operations in the order in which they run."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()
        self.device = 0

    def expand(self, tensor: Tensor) -> Tensor:
        """Append what the tensor needs and is not there yet, parents first; then the tensor."""
        stack = [(tensor, iter(tensor.src))]
        if id(tensor) in self._seen:
            return tensor
        self._seen.add(id(tensor))
        while stack:
            node, parents = stack[-1]
            for parent in parents:
                if id(parent) not in self._seen:
                    self._seen.add(id(parent))
                    stack.append((parent, iter(parent.src)))
                    break
            else:
                stack.pop()
                if node.src:
                    node.home = self.device
                    self.nodes.append(node)
                elif not node.external:
                    self.leafs.append(node)
        return tensor

    def copy_between(self, input_copies: int) -> None:
        """Give each device its own copy of what it reads from another, as ``ggml_backend_sched_split_graph`` does.

        ``input_copies``: of each input, more than one where several GPUs work on different steps at once.
        """
        copies: dict[tuple[int, int], Tensor] = {}
        nodes: list[Tensor] = []
        for node in self.nodes:
            node.src = tuple(self._brought(parent, node, copies, nodes, input_copies) for parent in node.src)
            nodes.append(node)
        self.nodes = nodes

    def _brought(
        self, parent: Tensor, node: Tensor, copies: dict[tuple[int, int], Tensor], nodes: list[Tensor], count: int
    ) -> Tensor:
        if parent.external or parent.owner.home == node.home or node.is_view:
            return parent
        key = (id(parent), node.home)
        if key not in copies:
            given = not parent.owner.src
            copy = Tensor(parent.ne, parent.nb[0], () if given else (parent,))
            copy.home = node.home
            copies[key] = copy
            (self.leafs if given else nodes).append(copy)
            for _ in range(count - 1 if given else 0):
                more = Tensor(parent.ne, parent.nb[0])
                more.home = node.home
                self.leafs.append(more)
        return copies[key]

    def buffer_bytes(self, alignments: tuple[int, ...] = (_ALIGNMENT,)) -> tuple[int, ...]:
        """Bytes of the buffer on each device. A graph can be measured once."""
        return _Allocation(self, alignments).run()


class _Blocks:
    """Free memory of one device, as blocks sorted by offset; the last one has no end."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.most = 0
        self._free: list[list[int]] = [[0, _ENDLESS]]

    def take(self, size: int) -> int:
        size = self._aligned(size)
        best, best_size = len(self._free) - 1, _ENDLESS
        for i, (_, free) in enumerate(self._free[:-1]):
            if size <= free <= best_size:
                best, best_size = i, free
        block = self._free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self._free[best]
        self.most = max(self.most, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        size = self._aligned(size)
        free = self._free
        for i, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += size
                if i + 1 < len(free) and block[0] + block[1] == free[i + 1][0]:
                    block[1] += free[i + 1][1]
                    del free[i + 1]
                return
            if offset + size == block[0]:
                block[0] = offset
                block[1] += size
                if i > 0 and free[i - 1][0] + free[i - 1][1] == offset:
                    free[i - 1][1] += block[1]
                    del free[i]
                return
        at = next((i for i, block in enumerate(free) if block[0] > offset), len(free))
        free.insert(at, [offset, size])

    def _aligned(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment


class _Allocation:
    """One run of the allocator."""

    def __init__(self, graph: Graph, alignments: tuple[int, ...]) -> None:
        self._graph = graph
        self._blocks = [_Blocks(alignment) for alignment in alignments]

    def run(self) -> tuple[int, ...]:
        nodes = self._graph.nodes
        for leaf in self._graph.leafs:
            self._allocate(leaf, leaf.home)
        for node in nodes:
            if node.is_view:
                node.owner.views += 1
            for parent in node.src:
                parent.children += 1
        for node in nodes:
            self._allocate(node, node.home)
            for parent in node.src:
                self._release(parent)
        return tuple(blocks.most for blocks in self._blocks)

    def _allocate(self, node: Tensor, home: int) -> None:
        if node.external or node.is_view or node.offset >= 0:
            return
        if node.inplace:
            for parent in node.src:
                if self._take_over(node, parent):
                    return
        node.home = home
        node.offset = self._blocks[home].take(node.size)

    def _take_over(self, node: Tensor, parent: Tensor) -> bool:
        """Use a parent's memory where nobody else still needs it."""
        if parent.external or parent.offset < 0 or parent.ne != node.ne or parent.nb != node.nb:
            return False
        if parent.is_view or parent.kept or parent.children != 1 or parent.views != 0:
            return False
        node.home, node.offset = parent.home, parent.offset
        parent.offset = -1
        return True

    def _release(self, parent: Tensor) -> None:
        parent.children -= 1
        if parent.children or parent.views:
            return
        owner = parent.owner
        if parent.is_view:
            owner.views -= 1
            if owner.views or owner.children:
                return
        if not owner.external and not owner.kept and owner.offset >= 0:
            self._blocks[owner.home].give(owner.offset, owner.size)
            owner.offset = -1
