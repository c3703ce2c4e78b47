"""`velollm tune` that is ended from outside: what it had found is kept, nothing runs on, and `--resume` goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.autopilot.test_flight import Passenger
from tests.cli.test_bad_input import FLAGS, stray_engines
from tests.program import left_alive, running_cli
from velollm.autopilot import Order, RaceWish, chart, tune
from velollm.autopilot.racing import kept_race
from velollm.cli.shared import parse_pins
from velollm.tune.heat import Race

KNOBS = ("flash_attention", "openmp_wait")
# Groups in the order of the race; the second has begun when the first is done.
FIRST, SECOND = KNOBS


def kept(order: Order) -> Race:
    found = kept_race(chart(order, Passenger()))
    assert found is not None
    assert not found.is_final
    files = [path.name for path in order.paths.data.rglob("*") if "races" in path.parts]
    assert len(files) == 2  # the folder and one race, no part of another
    return found.race


@pytest.mark.flight
def test_a_race_that_is_ended_from_outside_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("tune", tiny, *FLAGS, "--knobs", ",".join(KNOBS), "--budget", "25s")
    order = Order(str(tiny), "embedded", pins=parse_pins([*FLAGS[3::2]]), budget_s=15.0, quick=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    with running_cli(*command) as cli:
        cli.wait_for(f"starting {SECOND}=")
        engines = cli.engines()
        cli.process.kill()
        assert cli.finish().returncode == -signal.SIGKILL
    assert engines
    assert left_alive(engines) == []
    first = kept(order)
    assert FIRST in first.done
    assert SECOND not in first.done

    with running_cli(*command, "--resume", own_group=True) as cli:
        cli.wait_for(f"starting {SECOND}=")
        engines = cli.engines()
        os.killpg(cli.process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
        done = cli.finish()
    assert (done.returncode, "Error" in done.stderr) == (130, False)
    assert f"starting {FIRST}=on" not in done.stderr
    assert f"{FIRST}=on" in done.stdout
    assert "Interrupted: this led, and is not confirmed; --resume goes on." in done.stdout
    assert left_alive(engines) == []
    second = kept(order)
    assert second.interrupted
    assert second.tried[: len(first.tried)] == first.tried

    with running_cli(*command, "--resume", "--json") as cli:
        cli.wait_for(f"starting {SECOND}=")
        engines = cli.engines()
        cli.process.terminate()
        done = cli.finish()
    assert done.returncode == 130
    assert '"interrupted": true' in done.stdout
    assert left_alive(engines) == []

    cockpit = Passenger()
    monkeypatch.setattr("velollm.autopilot.tuning._LEAST_CONFIRM_S", 3.0)
    monkeypatch.setattr("velollm.autopilot.aftermath._MOST_BUSY_S", 1.0)
    found = tune(order, RaceWish(frozenset(KNOBS), resume=True), cockpit)
    assert not any("another plan" in note for note in cockpit.notes)
    assert not any(f"starting {FIRST}=on" in text for text in cockpit.texts)
    assert any(f"starting {SECOND}=" in text for text in cockpit.texts)
    assert found.race.tried[: len(first.tried)] == first.tried
    assert found.kept is not None
    assert found.kept.is_final
    assert left_alive(stray_engines()) == []
    assert list(tmp_path.iterdir()) == []
