"""What is known of an inference server and of its work."""

from __future__ import annotations

from collections.abc import Mapping

from velollm.facts.base import Frozen


class LoadedModelFacts(Frozen):
    """A model in a server's memory. ``gpu_bytes`` is what the server counts as GPU memory.

    A machine without a GPU can count some too (a buffer for AMX), so it proves no GPU. ``keep_alive_left_s`` -1
    is for ever. ``argv`` is the command line of the engine's process that holds it.
    """

    name: str
    size_bytes: int | None = None
    gpu_bytes: int | None = None
    context_tokens: int | None = None
    slots: int | None = None
    keep_alive_left_s: int | None = None
    argv: tuple[str, ...] | None = None


class UnreadFacts(Frozen):
    """Something of a server that could not be read, why, and what would help."""

    what: str
    why: str
    help: str


class FailedLoad(Frozen):
    """A model that a server could not load, and the engine's own words for why."""

    model: str
    reason: str | None = None


class OptionReload(Frozen):
    """A load of a model that was in memory already, because a request came with other options.

    ``changes``: what differs on the engine's command line, as (before, now) by the flag's name without its dashes
    (``c``: context of all slots together); None: the flag is not there. ``load_s``: how long the client waited for it.
    """

    model: str
    changes: Mapping[str, tuple[str | None, str | None]]
    load_s: float | None = None


class GuessingFacts(Frozen):
    """What the engine's lines tell of the newest answers for which it guessed tokens ahead.

    ``kinds``: what guesses (``draft-simple``, ``ngram-mod`` …). Of the ``answers`` looked at: ``tokens`` that were
    written in ``passes`` of the model within ``decode_s``, tokens ``drafted`` and ``accepted``, and ``drafting_s``,
    what of the time went into the guesses alone (None: the engine did not say). ``earlier_acceptance``: the share that
    was accepted in answers before these (None: there were none).
    """

    kinds: tuple[str, ...] = ()
    answers: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    decode_s: float = 0.0
    drafting_s: float | None = None
    earlier_acceptance: float | None = None

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that was accepted; None where none was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def break_even(self) -> float | None:
        """The share that must be accepted at least: what a guess took by what a pass of the model took.

        Less than that loses even where checking several tokens takes no longer than making one, which on a processor
        it does: so this is the least that can be asked. None where the engine did not say how long the guesses took.
        """
        if self.drafting_s is None or not self.drafted or not self.passes or self.decode_s <= self.drafting_s:
            return None
        return (self.drafting_s / self.drafted) / ((self.decode_s - self.drafting_s) / self.passes)


class EngineFacts(Frozen):
    """What the engine's own lines tell of the newest load that succeeded, and of its answers since.

    ``mapped_bytes``, ``repacked_bytes`` and ``plain_bytes`` are weights in main memory: the mapped file, a copy in the
    processor's own order, and others. ``gpu_weights_bytes`` is what of the weights is on GPUs, ``gpu_used_bytes`` with
    KV cache and work space; ``gpu_free_bytes`` was free there before. ``best_decode_tokens_per_s`` is the fastest of
    its ``timed_answers`` answers of 16 tokens and more. A ``prompt_cache_limit_bytes`` of -1 is none.
    ``openmp``: whether its threads wait for work by OpenMP. ``draft_weights_bytes``: weights of a draft model.
    """

    model: str | None = None
    load_s: float | None = None
    mapped_bytes: int = 0
    repacked_bytes: int = 0
    plain_bytes: int = 0
    gpu_weights_bytes: int = 0
    gpu_used_bytes: int = 0
    gpu_free_bytes: int | None = None
    prompt_cache_limit_bytes: int | None = None
    prompt_cache_bytes: int | None = None
    best_decode_tokens_per_s: float | None = None
    timed_answers: int = 0
    openmp: bool | None = None
    draft_weights_bytes: int = 0
    guessing: GuessingFacts | None = None

    @property
    def weights_bytes(self) -> int:
        """Weights that are read for a token: a mapped file that was repacked counts once."""
        host = self.plain_bytes + max(self.mapped_bytes, self.repacked_bytes)
        return host + self.gpu_weights_bytes


class ServerActivity(Frozen):
    """What a server's log tells of its work since it started (or as far back as the log was read).

    ``overlapping_requests``: answers that surely began before an earlier one had ended, ``overlap_s`` for how long
    together. ``failures``: models whose last load failed. ``reload_gaps_s``: idle seconds before each load of a
    model that had been unloaded though nothing else had changed. ``option_reloads``: loads of a model in memory with
    other options. ``compute``: libraries of the ``inference compute`` lines (``cpu`` alone: no GPU was found).
    ``gpu_errors``: why the engine could not begin with a GPU, in its words. ``default_context_tokens`` is what the
    server takes where nobody asks for a context. ``clients``: other machines that were answered.
    """

    requests: int = 0
    overlapping_requests: int = 0
    overlap_s: float = 0.0
    models: int = 0
    loads: int = 0
    failed_loads: int = 0
    failures: tuple[FailedLoad, ...] = ()
    truncated: int = 0
    longest_truncated_tokens: int | None = None
    smallest_kept_tokens: int | None = None
    reload_gaps_s: tuple[float, ...] = ()
    option_reloads: tuple[OptionReload, ...] = ()
    engine: EngineFacts | None = None
    default_context_tokens: int | None = None
    compute: tuple[str, ...] | None = None
    gpu_errors: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


class InstalledModelFacts(Frozen):
    """An installed model as its server shows it.

    ``parameters``: pairs of name and value as Ollama prints them, text in quotes. ``draft_kind``: architecture of its
    draft; ``draft_has_mtp``: whether that has layers for multi-token prediction.
    """

    name: str
    blob: str | None = None
    file_bytes: int | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    draft: str | None = None
    draft_kind: str | None = None
    draft_has_mtp: bool | None = None


class StorageFacts(Frozen):
    """Where the models lie: the file system, whether it is on another machine, and whether the disk turns."""

    mount: str | None = None
    filesystem: str | None = None
    network: bool | None = None
    device: str | None = None
    rotational: bool | None = None


class TruncationFacts(Frozen):
    """What a server did with a prompt that was longer than its context.

    ``prompt_tokens`` by the engine's own count, ``kept_tokens`` by the reply, which had the HTTP status ``status``.
    """

    model: str
    context_tokens: int
    prompt_tokens: int
    kept_tokens: int | None = None
    status: int = 200


class ServerFacts(Frozen):
    """A running inference server and what it really runs with; or one that is installed and does not answer.

    ``generation``: what runs the models, ``runner`` or ``llama-server``. ``environment`` and ``argv`` are of the
    server's process; ``logged_environment`` is what its log says it took, defaults included. ``configured`` are
    variables by the place that sets them (a service's unit, an environment file), effective or not. ``managed``:
    ``systemd``, ``launchd``, ``container``, ``app``, ``velollm run`` or ``by hand``. ``elsewhere``: addresses where
    other servers of its kind listen. ``log``: where its log is. ``models``: installed models as `/api/show` tells them,
    a limited number. ``truncation`` is known only where it was tried.
    """

    engine: str | None = None
    runner: str | None = None
    version: str | None = None
    context_tokens: int | None = None
    slots: int | None = None
    flash_attention: str | None = None
    kv_type: str | None = None
    batch: int | None = None
    ubatch: int | None = None
    gpu_layers: int | None = None
    total_layers: int | None = None
    threads: int | None = None
    kv_cache_bytes: int | None = None
    url: str | None = None
    reachable: bool | None = None
    remote: bool | None = None
    generation: str | None = None
    binary: str | None = None
    pid: int | None = None
    user: str | None = None
    argv: tuple[str, ...] | None = None
    environment: Mapping[str, str] | None = None
    logged_environment: Mapping[str, str] | None = None
    configured: Mapping[str, Mapping[str, str]] | None = None
    keep_alive_s: int | None = None
    managed: str | None = None
    unit: str | None = None
    unit_state: str | None = None
    user_unit: bool | None = None
    needs_reload: bool | None = None
    listens: tuple[str, ...] | None = None
    elsewhere: tuple[str, ...] | None = None
    log: str | None = None
    models_dir: str | None = None
    storage: StorageFacts | None = None
    installed: tuple[str, ...] | None = None
    models: tuple[InstalledModelFacts, ...] | None = None
    loaded: tuple[LoadedModelFacts, ...] | None = None
    activity: ServerActivity | None = None
    truncation: TruncationFacts | None = None
    unreadable: tuple[UnreadFacts, ...] = ()
