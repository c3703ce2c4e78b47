"""Write settings so that they can be taken back, and take them back: read, journal, write, read back, mark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from velollm.errors import VeloError
from velollm.journal import SCHEMA_VERSION, Change, Flight, FlightMeta, Journal
from velollm.targets.base import State, Target, canonical_json, target_from_address

Step = Callable[[str], None]
FOREIGN = "it was changed by somebody else since"


@dataclass(frozen=True)
class Write:
    """One change to make. ``expected_before`` is what the plan saw there; None: whatever is there.

    Mode and owner that ``after`` leaves open stay as they are.
    """

    target: Target
    after: State
    expected_before: State | None = None


@dataclass(frozen=True)
class Conflict:
    """A place that undo left alone, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class UndoResult:
    """What undo did.

    ``flight`` None: there was nothing to undo. ``restored`` are the places that were put back now. ``already``:
    the flight that was asked for had been undone before. ``notes``: what else was done or is left to do, in words.
    """

    flight: Flight | None
    restored: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    already: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pending:
    target: Target
    before: State
    after: State


def apply_writes(
    writes: Sequence[Write], journal: Journal, meta: FlightMeta, on_step: Step | None = None
) -> Flight | None:
    """Make all of these changes, or none of them; the flight that `undo_flight` takes back.

    Everything that can fail for want of space or rights is done beside the places before the first of them is
    touched. Places that are already as wanted are skipped; None where that leaves nothing to do. ``on_step`` hears
    ``before N``, ``stage N``, ``write N``, ``done N`` and ``end``, each after it was done (N: number of the change).

    Raises:
        VeloError: a place cannot be read or written, or was changed since the plan was made; whatever had been
            written of this flight is put back first. If even that fails the message says so, and `undo_flight`
            finishes it.
        ValueError: two writes are for the same place.
    """
    keys = [write.target.key for write in writes]
    if len(set(keys)) != len(keys):
        raise ValueError("two writes for the same place")
    step = on_step or _no_step
    with journal.lock():
        pending = [found for write in writes if (found := _read_pending(write)) is not None]
        if not pending:
            return None
        flight_id = journal.begin(meta)
        try:
            _announce(flight_id, pending, journal, step)
            for number, change in enumerate(pending):
                change.target.stage(change.after)
                step(f"stage {number}")
            for number, change in enumerate(pending):
                _commit(change)
                step(f"write {number}")
                journal.mark(flight_id, "done", number)
                step(f"done {number}")
            journal.end(flight_id)
            step("end")
        except BaseException as error:
            _roll_back(flight_id, pending, journal, error)
            raise
        finally:
            journal.release(flight_id)
        return journal.read_flight(flight_id)


def undo_flight(journal: Journal, flight_id: str | None = None, on_step: Step | None = None) -> UndoResult:
    """Put back what a flight changed, last change first; without an id, the newest flight with anything to undo.

    A place that somebody else changed since is left alone and reported. May be killed and repeated at any time.
    ``on_step`` hears ``restore N`` and ``undone N``, each after it was done.

    Raises:
        VeloError: there is no such flight, a later one changed the same place, or a place cannot be read or
            written (the others are put back first).
    """
    if flight_id is None and not any(flight.open for flight in journal.read_flights()):
        return UndoResult(None)
    with journal.lock():
        flight = _choose(journal, flight_id)
        if flight is None:
            return UndoResult(None)
        if flight.undone:
            return UndoResult(flight, already=True)
        _refuse_if_covered(flight, journal)
        return _undo(flight, journal, on_step or _no_step)


def _no_step(name: str) -> None:
    """Nobody listens."""


def _read_pending(write: Write) -> _Pending | None:
    """The change with the state before it; None where the place is already as wanted."""
    before = write.target.read()
    if write.expected_before is not None and not before.matches(write.expected_before):
        raise _changed_meanwhile(write.target)
    if before.matches(write.after):
        return None
    after = write.after
    if before.content is not None and after.content is not None:
        after = replace(
            after,
            mode=before.mode if after.mode is None else after.mode,
            uid=before.uid if after.uid is None else after.uid,
            gid=before.gid if after.gid is None else after.gid,
        )
    return _Pending(write.target, before, after)


def _announce(flight_id: str, pending: Sequence[_Pending], journal: Journal, step: Step) -> None:
    for number, change in enumerate(pending):
        target = change.target
        journal.before(flight_id, number, target.address(), target.label, change.before, change.after)
        step(f"before {number}")
    journal.reserve(flight_id, len(pending))


def _commit(change: _Pending) -> None:
    if not change.target.read().matches(change.before):
        raise _changed_meanwhile(change.target)
    change.target.write(change.after)
    if not change.target.read().matches(change.after):
        raise VeloError(
            f"{change.target.label} did not keep what was written to it",
            "something else writes there too, or its file system does not keep modes and owners",
        )


def _changed_meanwhile(target: Target) -> VeloError:
    return VeloError(f"{target.label} was changed since the plan was made", "plan again: run the same command again")


def _roll_back(flight_id: str, pending: Sequence[_Pending], journal: Journal, error: BaseException) -> None:
    """Put everything back after ``error``; raises `VeloError` where a place could not be put back."""
    stuck: list[str] = []
    # Last first: what was only staged goes away before old contents, which may need its space, come back.
    for number, change in reversed(list(enumerate(pending))):
        try:
            written = _put_back(change.target, change.before, change.after)
        except VeloError as failure:
            stuck.append(f"{change.target.label} could not be put back: {failure.message}")
            continue
        with contextlib.suppress(VeloError):  # undo finds the place as it was, with or without this mark
            if written is None:
                journal.conflict(flight_id, number, FOREIGN)
            else:
                journal.mark(flight_id, "undone", number)
    with contextlib.suppress(VeloError):
        journal.failed(flight_id, str(error) or type(error).__name__)
    if stuck:
        raise VeloError(f"{error}; {'; '.join(stuck)}", f"mend that, then run `velollm undo {flight_id}`") from error


def _put_back(target: Target, before: State, after: State) -> bool | None:
    """Restore a place: True where it was written, False where it was as before, None where it is somebody else's.

    A mode or owner that somebody changed while the content stayed ours is kept.
    """
    now = target.read()
    if now.matches(before):
        target.tidy(before)
        return False
    if now.content != after.content:
        target.tidy(before)
        return False if now.content == before.content else None
    wanted = before if before.content is None else _with_kept_owner(now, before, after)
    target.write(wanted)
    if not target.read().matches(wanted):
        raise VeloError(f"{target.label} did not keep what was written to it", "something else writes there too")
    target.tidy(before)
    return True


def _with_kept_owner(now: State, before: State, after: State) -> State:
    """The state before, with mode and owner that somebody else has set since."""

    def pick(have: int | None, was: int | None, ours: int | None) -> int | None:
        return was if ours is None or have == ours else have

    return replace(
        before,
        mode=pick(now.mode, before.mode, after.mode),
        uid=pick(now.uid, before.uid, after.uid),
        gid=pick(now.gid, before.gid, after.gid),
    )


def _choose(journal: Journal, flight_id: str | None) -> Flight | None:
    if flight_id is not None:
        return journal.read_flight(flight_id)
    return next((flight for flight in reversed(journal.read_flights()) if flight.open), None)


def _refuse_if_covered(flight: Flight, journal: Journal) -> None:
    """Flights over the same place come off in the order in which they went on, last first."""
    if flight.schema_version > SCHEMA_VERSION:
        raise VeloError(
            f"flight {flight.id} was recorded by a newer VeloLLM ({flight.meta.version})", "undo it with that version"
        )
    keys = {_key(change) for change in flight.changes if not change.undone}
    for later in reversed(journal.read_flights()):
        if later.id > flight.id and any(not c.settled and _key(c) in keys for c in later.changes):
            raise VeloError(
                f"flight {later.id} changed the same place after {flight.id}", f"run `velollm undo {later.id}` first"
            )


def _key(change: Change) -> str:
    try:
        return target_from_address(change.address).key
    except VeloError:  # no place of ours, so no other change can be to the same one
        return canonical_json(change.address).decode("ascii")


def _undo(flight: Flight, journal: Journal, step: Step) -> UndoResult:
    restored: list[str] = []
    conflicts: list[Conflict] = []
    failures: list[VeloError] = []
    for change in reversed(flight.changes):
        if change.undone:
            continue
        try:
            written = _put_back(target_from_address(change.address), change.before, change.after)
        except VeloError as error:
            failures.append(error)
            continue
        step(f"restore {change.number}")
        if written is None:
            conflicts.append(Conflict(change.label, FOREIGN))
            journal.conflict(flight.id, change.number, FOREIGN)
            continue
        restored += [change.label] if written else []
        journal.mark(flight.id, "undone", change.number)
        step(f"undone {change.number}")
    journal.release(flight.id)
    if failures:
        why = "; ".join(error.message for error in failures)
        raise VeloError(f"flight {flight.id} is not wholly undone: {why}", failures[0].hint)
    return UndoResult(journal.read_flight(flight.id), tuple(restored), tuple(conflicts))
