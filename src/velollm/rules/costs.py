"""What each layer of a model takes, so that layers can be shared out among devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from velollm.facts import ModelFacts
from velollm.knobs import Knobs, KnobValue
from velollm.models.memory import CPU, DEFAULT_UBATCH, DeviceMemory, estimate_memory
from velollm.models.mtp import loaded
from velollm.rules.room import weight_bytes

# Knobs that say what goes where.
PLACING = ("gpu_layers", "cpu_moe_layers", "cpu_ffn_layers")


@dataclass(frozen=True)
class Costs:
    """Bytes of a model under certain knobs, each layer by itself. Tuples have one entry a layer, MTP layers last.

    ``layers``: weights without routed experts, ``feed_forward``: what of these is dense feed-forward; ``cache``: KV
    cache and recurrent state of all ``slots``. ``output``: the output matrix, which goes where the last layer goes.
    ``card``: buffers on each GPU that takes part; ``guest``: on the first also one for weights of main memory that it
    computes with in large steps. ``main``: what main memory has in any case;
    ``all_main``: what it has where the CPU computes everything. ``active``: share of the experts that one token reads.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    cache: tuple[int, ...]
    output: int
    card: int
    guest: int
    main: int
    all_main: int
    active: float = 1.0
    feed_forward: tuple[int, ...] = ()
    slots: int = 1

    @property
    def on_cards(self) -> int:
        """Everything that goes to GPUs where all layers do, on one of them."""
        return sum(self.layers) + sum(self.experts) + sum(self.cache) + self.output + self.card

    def scaled(self, factor: float) -> Costs:
        """The same model with its weights in a format of ``factor`` times the bytes."""
        if factor == 1:
            return self
        weights = sum(self.layers) + sum(self.experts) + self.output
        return replace(
            self,
            layers=tuple(round(size * factor) for size in self.layers),
            experts=tuple(round(size * factor) for size in self.experts),
            feed_forward=tuple(round(size * factor) for size in self.feed_forward),
            output=round(self.output * factor),
            all_main=self.all_main - round(weights * (1 - factor)),
        )

    def read_bytes(self, layer: int) -> int:
        """Weights of one layer that the computation of one token reads."""
        return self.layers[layer] + round(self.experts[layer] * self.active)


def estimate_costs(model: ModelFacts, knobs: Knobs, *, gpus: int) -> Costs | None:
    """Costs by layer, from the estimate of the whole model on that many GPUs or, without any, on the CPU.

    KV cache and states are shared out in proportion to the cells and heads of each layer, weights of unknown places
    evenly. None where the model's shape is not known well enough.
    """
    # What is mapped twice can be dropped, so it is not needed.
    asked: dict[str, KnobValue] = {**knobs, "load_mode": "none", **dict.fromkeys(PLACING)}
    model = loaded(model, str(knobs.get("speculation") or "none"))
    if None in (model.layer_parts, model.expert_parts, model.input_part, model.output_part):
        gpus = 0
    estimate = estimate_memory(model, asked, gpus=tuple(f"GPU {number}" for number in range(gpus)))
    total = weight_bytes(model)
    if estimate is None or model.layers is None or total is None:
        return None
    host, cards = (estimate.devices[0], estimate.devices[1:]) if gpus else (DeviceMemory(CPU), estimate.devices)
    dense, experts = _weights(model, total)
    cache = _shares(sum(card.kv_bytes for card in cards), _kv_weights(model, knobs), len(dense))
    states = _shares(
        sum(card.recurrent_bytes for card in cards), [int(r) for r in model.recurrent_layers or ()], len(dense)
    )
    return Costs(
        layers=dense,
        experts=experts,
        cache=tuple(kv + state for kv, state in zip(cache, states, strict=True)),
        output=max(0, sum(card.weights_bytes + card.repack_bytes for card in cards) - sum(dense) - sum(experts)),
        card=max(card.compute_bytes + card.output_bytes + card.draft_bytes for card in cards),
        guest=_largest_tensor(model),
        main=host.total_bytes,
        all_main=estimate.total_bytes,
        active=(model.experts_used or 1) / model.experts if model.experts else 1.0,
        feed_forward=_feed_forward(model, len(dense)),
        slots=slots if isinstance(slots := knobs.get("slots"), int) and slots > 0 else 1,
    )


def _largest_tensor(model: ModelFacts) -> int:
    """The largest tensor of a layer; a third of its part, as of three matrices, where it is not known by itself."""
    parts = [*(model.layer_parts or ()), *(model.expert_parts or ())]
    sizes = (part.bytes // 3 if part.largest_bytes is None else part.largest_bytes for part in parts)
    return max(sizes, default=0)


def _weights(model: ModelFacts, total: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Dense weights and experts by layer; without known parts every layer, and the output, has the same."""
    assert model.layers is not None
    if model.layer_parts is None or model.expert_parts is None:
        count = model.layers + (model.mtp_layers or 0)
        return (total // (count + 1),) * count, (0,) * count
    more = tuple(part.bytes for part in model.mtp_parts or ())
    dense = tuple(part.bytes for part in model.layer_parts) + more
    return dense, tuple(part.bytes for part in model.expert_parts) + (0,) * len(more)


def _feed_forward(model: ModelFacts, count: int) -> tuple[int, ...]:
    """Dense feed-forward weights by layer; 0 where it is not known which these are, and in MTP layers."""
    if model.layer_parts is None or model.feed_forward_parts is None:
        return (0,) * count
    found = tuple(part.bytes for part in model.feed_forward_parts)
    return (*found, *(0,) * (count - len(found)))


def _kv_weights(model: ModelFacts, knobs: Knobs) -> list[int]:
    """Relative size of the KV cache in each layer: cells times heads times head size."""
    context, ubatch = knobs.get("context_tokens"), knobs.get("ubatch")
    full = context if isinstance(context, int) else 1
    step = ubatch if isinstance(ubatch, int) else DEFAULT_UBATCH
    window = full if model.sliding_window is None else model.sliding_window + step
    with_kv = (model.layers or 0) - (model.kv_shared_layers or 0)
    found = []
    for layer, heads in enumerate(model.kv_heads or ()):
        slides = model.sliding_layers is not None and model.sliding_layers[layer]
        key = (model.key_length_swa if slides else None) or model.key_length or 1
        value = (model.value_length_swa if slides else None) or model.value_length or 1
        cells = min(full, window) if slides else full
        found.append(cells * (1 if model.mla else heads * (key + value)) if heads and layer < with_kv else 0)
    return found


def _shares(total: int, weights: list[int], count: int) -> tuple[int, ...]:
    """A total shared out by weights, rounded up; evenly where there are none."""
    weights = [*weights, *[0] * (count - len(weights))][:count]
    if not any(weights):
        weights = [1] * count
    return tuple(-(-total * weight // sum(weights)) for weight in weights)
