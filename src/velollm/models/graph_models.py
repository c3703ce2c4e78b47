"""The graph of a model's worst step, by architecture.

Source: llama.cpp b10488, src/models/*.cpp, ``graph::graph``. What differs between architectures is held as data; an
architecture that is not named is taken for a plain transformer (as llama's), which is right for most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from velollm.facts import ModelFacts
from velollm.models.graph import I32, Graph, Tensor, add, get_rows, matmul, mul, new, norm, result, unary, view, weight
from velollm.models.graph_parts import Cache, Heads, Parts, Step
from velollm.models.graph_states import States

_MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS, src/llama-hparams.h


@dataclass(frozen=True)
class Recipe:
    """How an architecture differs from llama's.

    ``turned``: Q and K go through an operation before they are stored (rotary embedding, norms). ``scaled_embedding``,
    ``post_norms``: as in gemma. ``softcap`` and ``logit_softcap``: scores and logits pass tanh. ``late_outputs``: all
    tokens go through the last layer, and rows are chosen after it. ``state``: what a recurrent layer is.
    """

    turned: bool = True
    scaled_embedding: bool = False
    scaled_residual: bool = False
    scaled_logits: bool = False
    post_norms: bool = False
    softcap: bool = False
    logit_softcap: bool = False
    gated: bool = True
    fused_qkv: bool = False
    fused_gate: bool = False
    gated_attention: bool = False
    gating: str = "softmax"
    normed_experts: bool = True
    biased_choice: bool = False
    gated_experts: bool = True
    weighted_first: bool = False
    gated_shared: bool = False
    late_outputs: bool = False
    keeps_hidden: bool = False
    positions: int = 1
    state: str = "mamba2"


PLAIN = Recipe()
_GEMMA = Recipe(scaled_embedding=True, post_norms=True)
_GRANITE = Recipe(scaled_embedding=True, scaled_residual=True, scaled_logits=True)
_QWEN35 = Recipe(
    gated_attention=True, gated_shared=True, late_outputs=True, keeps_hidden=True, positions=4, state="delta_net"
)
RECIPES: dict[str, Recipe] = {
    "gemma": Recipe(scaled_embedding=True),
    "gemma2": replace(_GEMMA, softcap=True, logit_softcap=True),
    "gemma3": _GEMMA,
    "phi3": Recipe(fused_qkv=True, fused_gate=True),
    "starcoder2": Recipe(gated=False),
    "nemotron": Recipe(gated=False),
    "gpt-oss": Recipe(gating="late", normed_experts=False, late_outputs=True, keeps_hidden=True),
    "llama4": Recipe(gating="sigmoid", normed_experts=False, weighted_first=True),
    "qwen2moe": Recipe(normed_experts=False, gated_shared=True),
    "deepseek2": Recipe(normed_experts=False, keeps_hidden=True),
    "glm4moe": Recipe(gating="sigmoid", biased_choice=True),
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "granitehybrid": replace(_GRANITE, turned=False),
    "nemotron_h": Recipe(turned=False, gated=False, late_outputs=True, keeps_hidden=True),
    "nemotron_h_moe": Recipe(
        turned=False,
        gated=False,
        gating="sigmoid",
        biased_choice=True,
        gated_experts=False,
        late_outputs=True,
        keeps_hidden=True,
    ),
    "lfm2": Recipe(state="short_convolution"),
    "lfm2moe": Recipe(state="short_convolution", gating="sigmoid", biased_choice=True),
    "mamba": Recipe(state="mamba1"),
    "jamba": Recipe(turned=False, state="mamba1", normed_experts=False),
    "qwen35": _QWEN35,
    "qwen35moe": _QWEN35,
    "qwen3next": _QWEN35,
}


def build_graph(
    model: ModelFacts, step: Step, homes: tuple[int, ...] = (), feed_forward: tuple[int, ...] = ()
) -> Graph | None:
    """The graph of one step; None where the model's shape is not known well enough.

    ``homes``: the device of each layer, and of the output, for a model that is on several; ``feed_forward``: that of
    each layer's dense feed-forward part.
    """
    if model.embedding_length is None or model.layers is None or model.vocab is None:
        return None
    if model.layers < 1 or model.recurrent_layers is None:
        return None
    try:
        return _Model(model, step, homes, feed_forward).build()
    except _UnknownError:
        return None


def build_heads_graph(layer: ModelFacts, step: Step) -> Graph | None:
    """The graph of one step of MTP layers (``graph_mtp`` in src/models/qwen35.cpp); None as for `build_graph`.

    ``layer``: what one such layer is, as a model of it alone.
    """
    if layer.embedding_length is None or layer.layers != 1 or layer.vocab is None:
        return None
    try:
        return _Model(layer, step, (), ()).build_heads()
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """Something of the shape is not known."""


class _Model:
    """Builds one graph."""

    def __init__(self, model: ModelFacts, step: Step, homes: tuple[int, ...], feed_forward: tuple[int, ...]) -> None:
        self._model = model
        self._recipe = RECIPES.get(model.architecture or "", PLAIN)
        self._step = step
        self._homes = homes
        self._inner_homes = feed_forward or homes
        self._parts = Parts(step, model.embedding_length or 0)
        self._graph = self._parts.graph
        self._layers = model.layers or 0
        self._recurrent = model.recurrent_layers or (False,) * self._layers
        self._sliding = model.sliding_layers or (False,) * self._layers
        self._caches: dict[bool, Cache] = {}
        self._states: States | None = None
        self._positions: Tensor | None = None

    def build(self) -> Graph:
        recipe, parts = self._recipe, self._parts
        cur = parts.embedding()
        if recipe.scaled_embedding:
            cur = unary(cur)
        if any(self._recurrent):
            self._states = States(parts)
        if any(self._attends(layer) for layer in range(self._layers)):
            self._positions = parts.positions(recipe.positions)
            self._caches = self._make_caches()
        outputs = parts.output_ids()
        for layer in range(self._layers):
            self._enter(layer)
            last = layer == self._layers - 1 and not recipe.late_outputs
            cur = self._layer(cur, layer, outputs if last else None)
            if self._homes:
                self._graph.expand(cur)
        self._enter(self._layers)
        cur = norm(cur)
        if recipe.keeps_hidden:
            cur.kept = True
        if recipe.late_outputs:
            cur = get_rows(cur, outputs)
        cur.kept = True
        cur = matmul(self._model.vocab or 0, cur)
        if recipe.scaled_logits or recipe.logit_softcap:
            cur = unary(cur)
        cur.kept = True
        self._graph.expand(cur)
        return self._graph

    def build_heads(self) -> Graph:
        """A token and the state before it, joined, through one layer; what comes out is the next state too."""
        parts, tokens = self._parts, self._step.tokens
        embedding = get_rows(weight(parts.width, 1), new(tokens, width=I32))
        state = new(parts.width, tokens)
        self._positions = parts.positions(self._recipe.positions)
        self._caches = self._make_caches()
        joined = result(norm(embedding), norm(state), ne=(2 * parts.width, tokens))
        cur = norm(self._layer(matmul(parts.width, joined), 0, None))
        cur.kept = True
        cur = matmul(self._model.vocab or 0, get_rows(cur, parts.output_ids()))
        cur.kept = True
        self._graph.expand(cur)
        return self._graph

    def _enter(self, layer: int) -> None:
        if self._homes:
            self._graph.device = self._homes[layer]

    def _attends(self, layer: int) -> bool:
        return bool(self._model.kv_heads and self._model.kv_heads[layer])

    def _make_caches(self) -> dict[bool, Cache]:
        """Inputs for full layers, then for sliding ones; both where the architecture slides at all."""
        attending = [layer for layer in range(self._layers) if self._attends(layer)]
        mla = self._model.mla is not None
        every = [self._heads(layer) for layer in attending]
        values = max(heads.kv * heads.value for heads in every)
        kinds = (False, True) if any(self._sliding) else (False,)
        found = {}
        for slides in kinds:
            cells = self._step.sliding_cells if slides else self._step.cells
            heads = next(
                (h for h, layer in zip(every, attending, strict=True) if self._sliding[layer] == slides), every[0]
            )
            found[slides] = self._parts.cache(cells, heads, values=values, mla=mla)
        return found

    def _heads(self, layer: int) -> Heads:
        model = self._model
        key, value = model.key_length, model.value_length
        if self._sliding[layer]:
            key = key if model.key_length_swa is None else model.key_length_swa
            value = value if model.value_length_swa is None else model.value_length_swa
        if model.heads is None or model.kv_heads is None or key is None or value is None:
            raise _UnknownError
        return Heads(model.heads[layer], model.kv_heads[layer], key, value)

    def _layer(self, cur: Tensor, layer: int, outputs: Tensor | None) -> Tensor:
        """One layer with its residual connections; ``outputs`` picks rows after attention in the last one."""
        recipe, before = self._recipe, cur
        normed = norm(cur)
        mixes = self._recurrent[layer] or self._attends(layer)
        if not mixes:
            return self._residual(self._inner(normed, layer), before, outputs)
        if self._recurrent[layer] and self._attends(layer):
            mixed = add(self._attention(normed, layer), self._recur(norm(before)))
        elif self._recurrent[layer]:
            mixed = self._recur(normed)
        else:
            mixed = self._attention(normed, layer)
        if outputs is not None:
            mixed, before = get_rows(mixed, outputs), get_rows(before, outputs)
        if recipe.scaled_residual:
            mixed = unary(mixed)
        if recipe.post_norms:
            mixed = norm(mixed)
        cur = add(mixed, before)
        if not self._has_inner(layer):
            return cur
        found = self._elsewhere(norm(cur), layer)
        if recipe.scaled_residual:
            found = unary(found)
        if recipe.post_norms:
            found = norm(found)
        return add(found, cur)

    def _elsewhere(self, normed: Tensor, layer: int) -> Tensor:
        """The feed-forward part, on a device of its own where the layer's dense one has been put elsewhere."""
        if not self._homes or self._inner_homes[layer] == self._homes[layer] or self._has_experts(layer):
            return self._inner(normed, layer)
        self._graph.expand(normed)
        self._graph.device = self._inner_homes[layer]
        found = self._graph.expand(self._inner(normed, layer))
        self._enter(layer)
        return found

    def _residual(self, cur: Tensor, before: Tensor, outputs: Tensor | None) -> Tensor:
        if outputs is not None:
            cur, before = get_rows(cur, outputs), get_rows(before, outputs)
        return add(cur, before)

    def _attention(self, cur: Tensor, layer: int) -> Tensor:
        cache = self._caches[self._sliding[layer]]
        if self._model.mla is not None:
            return self._latent_attention(cur, cache, layer)
        heads, recipe = self._heads(layer), self._recipe
        gate = None
        if recipe.gated_attention:
            q, k, v, gate = self._gated_qkv(cur, heads)
        else:
            q, k, v = self._parts.qkv(cur, heads, fused=recipe.fused_qkv)
        if recipe.turned and self._positions is not None:
            q, k = (result(part, self._positions, inplace=True) for part in (q, k))
        found = self._parts.attend(cache, heads, q, k, v, softcap=recipe.softcap)
        if gate is not None:
            found = mul(found, unary(gate))
        return matmul(self._parts.width, found)

    def _gated_qkv(self, cur: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``build_layer_attn`` of qwen35: the query projection gives a gate too."""
        tokens = self._step.tokens
        both = matmul(2 * heads.query * heads.key, cur)
        strides = (2 * heads.key * 4, both.nb[1])
        q = norm(view(both, heads.key, heads.query, tokens, strides=strides))
        k, v = matmul(heads.kv * heads.key, cur), matmul(heads.kv * heads.value, cur)
        k = norm(view(k, heads.key, heads.kv, tokens))
        gate = result(view(both, heads.key, heads.query, tokens, strides=strides), ne=(heads.key * heads.query, tokens))
        return q, k, view(v, heads.value, heads.kv, tokens), gate

    def _latent_attention(self, cur: Tensor, cache: Cache, layer: int) -> Tensor:
        """MLA with the compressed cache (src/models/deepseek2.cpp)."""
        model, mla, tokens = self._model, self._model.mla, self._step.tokens
        assert mla is not None
        if model.heads is None or mla.key_length is None or mla.value_length is None or self._positions is None:
            raise _UnknownError
        heads, rank, rope = model.heads[layer], mla.kv_lora_rank, mla.rope_dims
        plain = mla.key_length - rope
        query = norm(matmul(mla.q_lora_rank, cur)) if mla.q_lora_rank else cur
        q = matmul(heads * mla.key_length, query)
        strides = (mla.key_length * 4, q.nb[1])
        q_plain, q_rope = (view(q, size, heads, tokens, strides=strides) for size in (plain, rope))
        compressed = matmul(rank + rope, cur)
        kv = view(compressed, rank, tokens, strides=(compressed.nb[1],))
        k_rope = view(compressed, rope, 1, tokens, strides=(compressed.nb[1], compressed.nb[1]))
        q_rope = result(q_rope, self._positions, inplace=True)
        k_rope = result(k_rope, self._positions, inplace=True)
        kv = norm(kv)
        absorbed = self._parts.absorb(q_plain, rank)
        whole = result(absorbed, q_rope, ne=(rank + rope, heads, tokens))
        k = result(view(kv, rank, 1, tokens), k_rope, ne=(rank + rope, 1, tokens))
        found = self._parts.attend_latent(cache, whole, k, rank, mla.value_length)
        return matmul(self._parts.width, found)

    def _recur(self, cur: Tensor) -> Tensor:
        ssm, states = self._model.ssm, self._states
        if ssm is None or states is None or ssm.inner_size is None or ssm.conv_kernel is None:
            raise _UnknownError
        if self._recipe.state == "short_convolution":
            return states.short_convolution(cur, ssm.conv_kernel)
        if ssm.state_size is None or ssm.time_step_rank is None:
            raise _UnknownError
        if self._recipe.state == "mamba1":
            return states.mamba1(cur, ssm)
        if ssm.group_count is None:
            raise _UnknownError
        return states.delta_net(cur, ssm) if self._recipe.state == "delta_net" else states.mamba2(cur, ssm)

    def _has_inner(self, layer: int) -> bool:
        widths = self._model.feed_forward_length
        if self._has_experts(layer):
            return True
        if widths is None and self._caches:
            # Only a model without attention may have no feed-forward part at all.
            raise _UnknownError
        return bool(widths and widths[layer])

    def _has_experts(self, layer: int) -> bool:
        model = self._model
        if not (model.experts and model.experts_used):
            return False
        if model.expert_layers is not None:
            return model.expert_layers[layer]
        return layer >= (model.dense_layers or 0)

    def _inner(self, cur: Tensor, layer: int) -> Tensor:
        """The feed-forward part, or experts and what all tokens share beside them."""
        model, recipe = self._model, self._recipe
        if not self._has_experts(layer):
            if model.feed_forward_length is None:
                raise _UnknownError
            return self._parts.feed_forward(
                cur, model.feed_forward_length[layer], gated=recipe.gated, fused=recipe.fused_gate
            )
        widths = model.feed_forward_length
        inner = model.expert_feed_forward_length or (widths[layer] if widths else None)
        if not inner or (model.experts_used or 0) > _MOST_EXPERTS:
            raise _UnknownError
        found = self._parts.experts(
            cur,
            model.experts or 0,
            model.experts_used or 0,
            inner,
            normed=recipe.normed_experts,
            gating=recipe.gating,
            biased=recipe.biased_choice,
            gated=recipe.gated_experts,
            weighted_first=recipe.weighted_first,
        )
        if not model.shared_expert_feed_forward_length:
            return found
        shared = self._parts.feed_forward(cur, model.shared_expert_feed_forward_length, gated=recipe.gated_experts)
        if recipe.gated_shared:
            shared = mul(shared, unary(matmul(1, cur)))
        return add(found, shared)
