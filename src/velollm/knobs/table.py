"""The things that can be turned, in words that belong to no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Knob:
    """One thing to turn.

    ``purpose`` decides how it may be kept: ``speed`` only when measured faster, ``enables`` when the
    profile wants it and speed is not proved lower. ``changes_answer``: turning it can change what the
    model says, so only the user's own word turns it. ``scope``: ``server`` knobs hold for every model
    of a server, ``model`` knobs for one.
    """

    name: str
    unit: str
    purpose: Literal["speed", "enables"]
    scope: Literal["server", "model"]
    summary: str
    explain: str
    changes_answer: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None


KV_TYPES = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "f32")
QUANTIZED_KV_TYPES = frozenset(KV_TYPES) - {"f16", "bf16", "f32"}
NGRAM_KINDS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
DRAFT_KINDS = ("draft-simple", "draft-mtp", "draft-dflash")
SPECULATION_KINDS = ("none", *NGRAM_KINDS, *DRAFT_KINDS)
PRIORITIES = ("normal", "medium", "high", "realtime")  # common/arg.cpp:1562 of llama.cpp b10488: 0 to 3
LOAD_MODES = ("auto", "none", "mmap", "mlock")
PATH = "path of a GGUF file"

_ALL = (
    Knob(
        "threads",
        "threads",
        "speed",
        "server",
        "CPU threads that compute tokens",
        "Token generation on a CPU is bound by memory bandwidth, and all threads meet at a barrier after "
        "every operation, so the slowest one sets the pace. More threads than free physical cores make every "
        "barrier wait for the scheduler: one other busy process on one of two cores took decode from 52 to "
        "0.9 tokens/s. One thread for each usable, free physical core is the choice.",
        minimum=1,
    ),
    Knob(
        "batch_threads",
        "threads",
        "speed",
        "server",
        "CPU threads that compute prompts",
        "Prefill is bound by arithmetic, not by memory, so it can gain from threads that decode cannot use, such as "
        "the second one of each core. The engine's own: as many as compute tokens.",
        minimum=1,
    ),
    Knob(
        "context_tokens",
        "tokens per slot",
        "enables",
        "model",
        "tokens that one conversation can hold",
        "What does not fit the context is cut off without an error. The KV cache grows in step with it, "
        "so the plan takes what the profile wants, within the model's training context and free memory.",
        minimum=4,
    ),
    Knob(
        "slots",
        "slots",
        "enables",
        "model",
        "requests that are answered at the same time",
        "With one slot the second user waits until the first has the whole answer. Slots share each pass "
        "over the weights, so total tokens/s rises; each slot needs a KV cache of its own.",
        minimum=1,
    ),
    Knob(
        "kv_type_k",
        "type",
        "enables",
        "model",
        "number format of the keys in the KV cache",
        "A smaller format holds more context in the same memory and is read faster, but it can change "
        "answers, so f16 stays unless you choose otherwise with --set.",
        changes_answer=True,
        choices=KV_TYPES,
    ),
    Knob(
        "kv_type_v",
        "type",
        "enables",
        "model",
        "number format of the values in the KV cache",
        "As for the keys. A quantized V needs flash attention; without it the engine refuses to load.",
        changes_answer=True,
        choices=KV_TYPES,
    ),
    Knob(
        "flash_attention",
        "auto, on or off",
        "speed",
        "server",
        "fused attention kernel",
        "Keeps attention scores out of memory: faster on long contexts, and required by a quantized V. "
        "The engine's `auto` turns it on wherever the device can do it.",
        choices=("auto", "on", "off"),
    ),
    Knob(
        "batch",
        "tokens",
        "speed",
        "model",
        "prompt tokens that are taken in one logical step",
        "Prefill works through the prompt in steps of this size.",
        minimum=1,
    ),
    Knob(
        "ubatch",
        "tokens",
        "speed",
        "model",
        "prompt tokens that are computed in one go",
        "The physical batch: larger ones keep a GPU full but need more memory for intermediate results; "
        "a CPU gains nothing above a few hundred.",
        minimum=1,
    ),
    Knob(
        "keep_alive_s",
        "seconds (-1: for ever)",
        "enables",
        "server",
        "how long an idle model stays in memory",
        "After it the next request loads the model again, which costs seconds to minutes.",
        minimum=-1,
    ),
    Knob(
        "load_mode",
        "mode",
        "enables",
        "server",
        "how the weights get into memory",
        "`none` reads them once; `mmap` maps the file, which on a CPU keeps a second, repacked copy; "
        "`mlock` also pins it.",
        choices=LOAD_MODES,
    ),
    Knob(
        "repack",
        "on or off",
        "speed",
        "server",
        "weights are laid out anew for the CPU's widest instructions when they are loaded",
        "Prefill took 130 tokens/s with it and 87 without, decode 46 and 33; loading takes longer, and together with "
        "`mmap` the weights are in memory twice.",
        choices=("on", "off"),
    ),
    Knob(
        "openmp_wait",
        "how",
        "speed",
        "server",
        "what a thread of an engine built with OpenMP does while it waits for the others",
        "`active` threads go round in circles, quickest while each has a core of its own; `passive` ones sleep, "
        "which holds when another program takes a core: with one of two cores busy decode was 27 tokens/s in place of "
        "0.7, and idle 28 in place of 43. It does nothing to an engine without OpenMP, such as Ollama's on Linux.",
        choices=("active", "passive"),
    ),
    Knob(
        "speculation",
        "kind",
        "speed",
        "server",
        "guess the next tokens and check them together",
        "The n-gram kinds look for the last words earlier in the text and propose what followed then. On text "
        "that repeats itself (edits, code, agents) several tokens are accepted for one pass over the weights; "
        "on text that does not, checking costs up to 13%. `draft-simple` asks a small model with the same vocabulary, "
        "`draft-mtp` the layers for it that some models bring along, `draft-dflash` a draft made for the model. "
        "The answer stays the same.",
        choices=SPECULATION_KINDS,
    ),
    Knob(
        "speculation_tokens",
        "tokens",
        "speed",
        "server",
        "most tokens that are guessed at once",
        "A longer guess gains more where it holds and costs more where it does not: with half of a draft's tokens "
        "accepted, 3 at once gave 1.3 times the speed and 8 at once 0.57 of it. The engine's own: 3 of a draft, 48 or "
        "64 of earlier text.",
        minimum=1,
    ),
    Knob(
        "speculation_match",
        "tokens",
        "speed",
        "server",
        "how many tokens must be as they were before for an n-gram kind to guess",
        "A short match guesses often and is wrong more often. The engine's own: 24 for `ngram-mod`, 12 for the others; "
        "`ngram-cache` has none.",
        minimum=1,
    ),
    Knob(
        "draft_model",
        PATH,
        "speed",
        "server",
        "small model that guesses tokens for `draft-simple` and `draft-dflash`",
        "It must have the vocabulary of the model that it guesses for; the engine turns off all guessing where it has "
        "not. In Ollama it is set for the server, so it is loaded beside every model.",
    ),
    Knob(
        "polling",
        "percent",
        "speed",
        "server",
        "how long the engine's waiting threads go round in circles before they sleep",
        "Threads that wait awake are there at once, but keep their cores from others. A draft has threads of its own: "
        "on two cores those of the waiting model took the cores from it, and decode with a draft was 0.77 times that "
        "without one; with 0 it was 1.87 times. The engine's own: 50. In Ollama it goes through llama.cpp's "
        "config.ini, and it does nothing to an engine with OpenMP.",
        minimum=0,
    ),
    Knob(
        "priority",
        "level",
        "speed",
        "server",
        "how the system schedules the engine's threads",
        "A level above normal lets the engine's threads go before those of other programs, so that a busy neighbour "
        "takes less from them; on an idle machine it gains nothing. It needs a right that services seldom have (root "
        "or CAP_SYS_NICE on Linux); without it the engine warns and runs as before. Other programs then wait for the "
        "engine, so it is turned by your word alone. Ollama passes it on only through llama.cpp's config.ini, since "
        "0.32.15.",
        choices=PRIORITIES,
    ),
    Knob(
        "max_loaded_models",
        "models",
        "enables",
        "server",
        "models that may be in memory together",
        "More models than memory holds evict each other, and each eviction is a cold load.",
        minimum=1,
    ),
    Knob(
        "gpu_layers",
        "layers",
        "speed",
        "model",
        "layers that are kept on GPUs, counted from the last",
        "The output matrix counts as the last layer. What is not on a GPU is computed by the CPU, at the speed of "
        "main memory. The engine's own choice is all of them, or as many as it thinks fit.",
        minimum=0,
    ),
    Knob(
        "cpu_moe_layers",
        "layers",
        "enables",
        "model",
        "layers, from the first, whose routed experts stay in main memory",
        "Of a mixture of experts only a few work on each token, so they lose least by staying in main memory: the "
        "rest of a model that is larger than the card can then be on it.",
        minimum=0,
    ),
    Knob(
        "cpu_ffn_layers",
        "layers",
        "speed",
        "model",
        "layers, from the first, whose dense feed-forward part stays in main memory",
        "A feed-forward part is most of a dense layer, and has no state: away from the card it leaves attention and "
        "the whole KV cache there, and moves in finer steps than whole layers. Shared experts count as such a part, "
        "routed ones do not. The engine's `--fit` does not do it by itself, and gives up where it is set. It is one "
        "pattern of LLAMA_ARG_OVERRIDE_TENSOR, so in Ollama it holds for every model of the server, and only your "
        "word sets it there.",
        minimum=0,
    ),
    Knob(
        "kv_unified",
        "on or off",
        "enables",
        "model",
        "one KV cache that all slots share",
        "A conversation may then take more than its share while others take less, and a sliding window is kept "
        "once, not once for each slot; every step looks at the cells of all slots.",
        choices=("on", "off"),
    ),
    Knob(
        "cache_reuse",
        "tokens",
        "speed",
        "server",
        "least length of a piece of the prompt that is taken from the cache although the text before it changed",
        "Where the beginning of a prompt was edited, what follows need not be computed again: the engine moves its "
        "entries to their new places. They still say what they said after the old beginning, so answers can change. "
        "The engine's own: 0, never.",
        changes_answer=True,
        minimum=0,
    ),
    Knob(
        "kv_offload",
        "on or off",
        "enables",
        "model",
        "the KV cache of a layer is kept where the layer is",
        "Off keeps it in main memory: room on the card for more layers, paid with attention at the speed of main "
        "memory.",
        choices=("on", "off"),
    ),
)
KNOBS: dict[str, Knob] = {knob.name: knob for knob in _ALL}
