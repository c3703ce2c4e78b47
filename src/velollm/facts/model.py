"""What is known of a model: its shape, and where its weights are. `velollm.facts` hands these out with the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from velollm.facts.base import Frozen


class MlaFacts(Frozen):
    """Multi-head latent attention: the compressed KV row is ``kv_lora_rank + rope_dims`` values.

    ``key_length`` and ``value_length``: of one head once it is decompressed.
    """

    kv_lora_rank: int
    rope_dims: int
    q_lora_rank: int | None = None
    key_length: int | None = None
    value_length: int | None = None


class SsmFacts(Frozen):
    """State-space (recurrent) layers of a model, GGUF ``ssm.*`` values."""

    conv_kernel: int | None = None
    inner_size: int | None = None
    state_size: int | None = None
    time_step_rank: int | None = None
    group_count: int | None = None


class MadeFacts(Frozen):
    """A model that VeloLLM made: random weights, and text without meaning.

    ``kind`` is ``random``, or ``predictable``: then each token has one that follows it with the probability
    ``predictability`` at temperature 1, the text repeats every ``period`` tokens, and a draft names the same follower
    as its model after the share ``agreement`` of the tokens, MTP layers after that of ``heads_agreement``. ``like``:
    the model whose twin it is.
    """

    kind: str
    predictability: float | None = None
    period: int | None = None
    agreement: float | None = None
    like: str | None = None
    heads_agreement: float | None = None


class PartFacts(Frozen):
    """Weights of one part of a model.

    ``bytes``: all its tensors. ``matrices``: bytes, by number format, of those that a processor may repack: matrices
    that are multiplied with, whose rows come in eights. ``spans``: where in the file's tensor data each of those
    formats begins and ends, and under the empty name all other tensors. ``largest_bytes``: its largest tensor.
    """

    bytes: int
    largest_bytes: int | None = None
    matrices: Mapping[str, int] = field(default_factory=dict)
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class ProjectorFacts(Frozen):
    """What turns pictures into embeddings: a transformer over patches, and what joins its result to the model.

    ``kind`` as ``clip.projector_type`` has it. ``patch`` and ``image``: sides in pixels; ``merge``: patches a side that
    become one token. ``hidden``: width between the two last matrices, ``out``: of the model's embeddings.
    ``positions``: places a side for which a position is learned. ``window_pattern``: every so-manieth layer attends to
    the whole picture, the others to windows; 0: all do. ``deepstack``: layers whose result is handed out too.
    ``gated``: feed-forward parts with a gate. ``bytes_of_patch`` and ``bytes_of_out``: of one value in the im2col of
    the patches and in the last matrix.
    """

    kind: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    patch: int
    image: int
    merge: int
    out: int
    hidden: int = 0
    positions: int = 0
    window_pattern: int = 0
    deepstack: tuple[int, ...] = ()
    gated: bool = False
    bytes_of_patch: int = 2
    bytes_of_out: int = 2


class ModelFacts(Frozen):
    """A model as its GGUF header describes it. Per-layer tuples have ``layers`` entries.

    ``shared_expert_feed_forward_length``: width of what all tokens go through beside their experts. ``expert_layers``:
    which layers have experts; where that is unknown, all but the first ``dense_layers``.

    Where the weights are, for whoever places them: ``layer_parts`` (without routed experts), ``feed_forward_parts``
    (what of these is feed-forward, shared experts included), ``expert_parts`` (the routed experts of each layer),
    ``mtp_parts`` (one for each MTP layer), ``input_part`` (the embedding, which stays in main memory), ``output_part``
    (output matrix, last norm and the like), ``projector_bytes`` (what turns pictures into embeddings), ``projector``
    (its shape). With ``tied_embeddings`` the file has no output matrix: the engine multiplies with the embedding, a
    second copy of it where the output layer is elsewhere.

    ``memory_factors``: by how much more than the arithmetic the engine at hand last allocated for it, by term; empty
    where it was not asked, or by no more than its log is rounded.
    """

    name: str
    path: str | None = None
    file_bytes: int | None = None
    architecture: str | None = None
    parameters: int | None = None
    layers: int | None = None
    embedding_length: int | None = None
    feed_forward_length: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    key_length: int | None = None
    value_length: int | None = None
    key_length_swa: int | None = None
    value_length_swa: int | None = None
    vocab: int | None = None
    context_train: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    expert_feed_forward_length: int | None = None
    shared_expert_feed_forward_length: int | None = None
    dense_layers: int | None = None
    expert_layers: tuple[bool, ...] | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    recurrent_layers: tuple[bool, ...] | None = None
    kv_shared_layers: int | None = None
    mla: MlaFacts | None = None
    ssm: SsmFacts | None = None
    mtp_layers: int | None = None
    file_type: str | None = None
    has_chat_template: bool | None = None
    tensor_bytes: int | None = None
    layer_parts: tuple[PartFacts, ...] | None = None
    feed_forward_parts: tuple[PartFacts, ...] | None = None
    expert_parts: tuple[PartFacts, ...] | None = None
    mtp_parts: tuple[PartFacts, ...] | None = None
    input_part: PartFacts | None = None
    output_part: PartFacts | None = None
    projector_bytes: int | None = None
    projector: ProjectorFacts | None = None
    tied_embeddings: bool | None = None
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)
    memory_factors: Mapping[str, float] = field(default_factory=dict)
    made: MadeFacts | None = None
