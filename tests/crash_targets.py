"""Kill a child with SIGKILL at every journalled step of every place, then let fresh processes undo what it left.

Run as a program, so that forking happens in a process with one thread: `python tests/crash_targets.py DIRECTORY [URL]`
prints one JSON line for each kill; URL is an Ollama with the model `tiny-python`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tests.fake_winreg
from tests.crash import META, Snapshot, differing, snapshot, was_killed
from tests.fake_programs import programs_on_path
from velollm.apply import Write, apply_writes, undo_flight
from velollm.backends.ollama import OllamaBackend
from velollm.config import Paths
from velollm.facts import Facts, ServerFacts
from velollm.journal import Journal
from velollm.targets.base import State, target_from_address
from velollm.targets.docker import parse_inspect
from velollm.targets.docker_compose import ComposePlace
from velollm.targets.environment import EnvironmentPlace, Ground
from velollm.targets.file import FileTarget
from velollm.targets.launchd import LaunchdPlace
from velollm.targets.llama_config import LlamaConfig
from velollm.targets.ollama_places import OllamaPlaces
from velollm.targets.places import engine_places
from velollm.targets.run_environment import RunPlace
from velollm.targets.system import Done, System, run_program
from velollm.targets.systemd_system import SystemUnitPlace
from velollm.targets.systemd_user import UserUnitPlace
from velollm.targets.windows_environment import WindowsPlace

CHANGES: Mapping[str, str | None] = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": "1800s", "OLLAMA_GONE": None}
COMPOSE = (
    b"# mine\r\nservices:\r\n  ollama:\r\n    environment:  # tuned\r\n"
    b"      OLLAMA_NUM_PARALLEL: 1 # one\r\n      OLLAMA_GONE: x\r\n"
)
MODEL = "tiny-python"


@dataclass(frozen=True)
class Scene:
    """A place: the files that a user has there, and the writes of a flight."""

    name: str
    files: Mapping[str, bytes]
    writes: Callable[[Path], list[Write]]


def system_of(root: Path, platform: str = "linux", *, as_root: bool = False) -> System:
    return System(platform=platform, root=as_root, home=root / "home", etc=root / "etc", environ={})


def ground_of(root: Path, server: ServerFacts, system: System) -> Ground:
    paths = Paths(root / "velollm", root / "velollm", root / "velollm")
    return Ground(Facts(server=server), paths, system)


def as_writes(found: Sequence[tuple[object, State, State]]) -> list[Write]:
    return [Write(target, after, before) for target, before, after in found]  # type: ignore[arg-type]


def of_place(make: Callable[[Path], EnvironmentPlace | None]) -> Callable[[Path], list[Write]]:
    def writes(root: Path) -> list[Write]:
        place = make(root)
        assert place is not None
        return as_writes(place.writes(CHANGES))

    return writes


def unit(root: Path, *, user: bool = False, as_root: bool = False) -> EnvironmentPlace | None:
    own = {"systemctl show ollama.service": {"OLLAMA_GONE": "x"}}  # so that it has to be unset by name
    server = ServerFacts(managed="systemd", unit="ollama.service", user_unit=user, configured=own)
    kind = UserUnitPlace if user else SystemUnitPlace
    return kind.available(ground_of(root, server, system_of(root, as_root=as_root)))


def launchd(root: Path) -> EnvironmentPlace | None:
    return LaunchdPlace.available(ground_of(root, ServerFacts(managed="app"), system_of(root, "darwin")))


def windows(root: Path) -> EnvironmentPlace | None:
    return WindowsPlace.available(ground_of(root, ServerFacts(managed="by hand"), system_of(root, "win32")))


def compose(root: Path) -> EnvironmentPlace:
    container = parse_inspect('[{"Name": "/ollama", "Config": {"Image": "ollama/ollama"}}]')
    assert container is not None
    (root / "project").mkdir(exist_ok=True)
    return ComposePlace(container, root / "project", "ollama", system_of(root))


def run_file(root: Path) -> EnvironmentPlace:
    return RunPlace(root / "velollm" / "ollama.env", root / "velollm" / "run.json")


def config(root: Path) -> list[Write]:
    other = system_of(root)
    place = LlamaConfig(root / "home" / ".config" / "llama.cpp" / "config.ini", "ollama", other)
    return as_writes(place.writes({"poll": "0", "threads-batch": "2", "prio": None}))


def engine(root: Path) -> list[Write]:
    paths = Paths(root / "velollm", root / "velollm", root / "velollm")
    settings = [("engine", "slots", "2"), ("environment", "LLAMA_ARG_THREADS", "1")]
    return as_writes(engine_places(paths, "/m.gguf").writes(settings))


def model(root: Path, *, beside: bool) -> list[Write]:
    places = OllamaPlaces(OllamaBackend(os.environ["OLLAMA_HOST"]), MODEL, root / "velollm" / "x", beside=beside)
    return as_writes(places.writes([("model", "num_ctx", "1024"), ("model", "num_thread", "1")]))


DROPIN = "ollama.service.d/velollm.conf"
OLD_DROPIN = (
    b"# Written by VeloLLM: `velollm undo` takes it back. Put settings of your own into another file.\n"
    b'[Service]\nEnvironment="OLLAMA_GONE=1"\n'
)
SCENES = (
    Scene("systemd unit", {}, of_place(lambda root: unit(root, as_root=True))),
    Scene(
        "systemd unit, again", {f"etc/systemd/system/{DROPIN}": OLD_DROPIN}, of_place(lambda r: unit(r, as_root=True))
    ),
    Scene("systemd unit by sudo", {}, of_place(unit)),
    Scene("systemd unit by sudo, again", {f"etc/systemd/system/{DROPIN}": OLD_DROPIN}, of_place(unit)),
    Scene("systemd user unit", {"home/.config/link": b"->"}, of_place(lambda root: unit(root, user=True))),
    Scene("launchd", {"launchd/OLLAMA_NUM_PARALLEL": b"2", "launchd/OLLAMA_GONE": b"a b"}, of_place(launchd)),
    Scene(
        "windows",
        {"registry.json": b'{"Environment": {"Ollama_Num_Parallel": ["%X%", 2], "OLLAMA_GONE": ["1", 1]}}'},
        of_place(windows),
    ),
    Scene("compose override", {"project/docker-compose.override.yml": COMPOSE}, of_place(compose)),
    Scene("compose override, linked", {"dotfiles/over.yaml": COMPOSE}, of_place(compose)),
    Scene("compose override, new", {}, of_place(compose)),
    Scene("velollm run", {"velollm/ollama.env": b"# mine\r\nexport A='1'\r\nOLLAMA_GONE=2"}, of_place(run_file)),
    Scene("config.ini", {"home/.config/llama.cpp/config.ini": b"[*]\r\nprio = 2 ; x\r\npoll=50"}, config),
    Scene("config.ini, new", {}, config),
    Scene("engine", {"velollm/engine.yaml": b"models: {a: {slots: 3}}\n"}, engine),
)
MODEL_SCENES = (
    Scene("model in place", {}, lambda root: model(root, beside=False)),
    Scene("model beside", {}, lambda root: model(root, beside=True)),
)


def fresh(root: Path, scene: Scene) -> None:
    """The scene as its user has it: odd modes, an owner, and a link where the name says so."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("launchd", "home/.config", "etc", "velollm"):
        (root / name).mkdir(parents=True)
    (root / "registry.json").write_text('{"Environment": {}}')
    for name, content in scene.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o640)
        if os.geteuid() == 0 and not name.startswith("etc"):
            os.chown(path, 65534, 65533)
    if scene.name.endswith("linked"):
        (root / "project").mkdir()
        (root / "project" / "compose.override.yaml").symlink_to("../dotfiles/over.yaml")
    if scene.name.startswith("compose"):
        (root / "project").mkdir(exist_ok=True)


def state_of(root: Path, scene: Scene) -> Snapshot:
    """All that a user can see: the files; of the fake registry and session the values; of a server's models digests."""
    found = snapshot(root)
    for name in [name for name in found if name.startswith(("launchd/", "registry.json"))]:
        found[name] = found[name][-1:]
    found["registry.json"] = (json.loads((root / "registry.json").read_text()),)
    if scene in MODEL_SCENES:
        api = OllamaBackend(os.environ["OLLAMA_HOST"]).api
        found.update({f"model {tag['name']}": (tag["digest"],) for tag in api.tags()})
        api.close()
    return found


class Killer:
    """Ends the process for good at one step, or before the n-th program that it runs; counts both."""

    def __init__(self, wanted: str | None = None) -> None:
        self.wanted, self.names = wanted, list[str]()
        self.programs = 0

    def __call__(self, name: str) -> None:
        self.names.append(name)
        if name == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self, argv: Sequence[str], data: bytes | None = None, environ: Mapping[str, str] | None = None) -> Done:
        self.programs += 1
        self(f"program {self.programs}")
        return run_program(argv, data, environ)


def act(root: Path, scene: Scene, what: str, killer: Killer) -> None:
    journal = Journal(root / "journal")
    if what == "undo":
        undo_flight(journal, on_step=killer)
        return
    writes = scene.writes(root)
    for write in writes:
        if (system := getattr(write.target, "_system", None)) is not None:
            write.target._system = System(**{**vars(system), "run": killer.run})  # type: ignore[attr-defined]
    apply_writes(writes, journal, META, killer)


def in_child(action: Callable[[], object]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


def steps(root: Path, scene: Scene) -> tuple[list[str], list[str]]:
    """Steps of a whole apply and of a whole undo."""
    fresh(root, scene)
    apply, undo = Killer(), Killer()
    act(root, scene, "apply", apply)
    act(root, scene, "undo", undo)
    return apply.names, undo.names


def kills(root: Path, scene: Scene) -> Iterator[dict[str, object]]:
    apply_steps, undo_steps = steps(root, scene)
    for what, names in (("apply", apply_steps), ("undo", undo_steps)):
        for name in names:
            fresh(root, scene)
            before = state_of(root, scene)
            if what == "undo":
                in_child(lambda: act(root, scene, "apply", Killer()))
            status = in_child(lambda: act(root, scene, what, Killer(name)))  # noqa: B023 - it runs at once
            changed = bool(differing(before, state_of(root, scene)))
            undone = in_child(lambda: act(root, scene, "undo", Killer()))
            yield {
                "place": scene.name,
                "step": f"{what} {name}",
                "killed": was_killed(status),
                "changed": changed,
                "undo": undone,
                "differs": differing(before, state_of(root, scene)),
            }


def main() -> None:
    base = Path(sys.argv[1])
    root = base / "scene"
    sys.modules["winreg"] = tests.fake_winreg
    os.environ.update(FAKE_LAUNCHD=str(root / "launchd"), FAKE_REGISTRY=str(root / "registry.json"))
    target_from_address(FileTarget(root).address())  # loads the modules once, not in every child
    scenes: tuple[Scene, ...] = SCENES
    if len(sys.argv) > 2:
        os.environ["OLLAMA_HOST"] = sys.argv[2]
        scenes = MODEL_SCENES
    with programs_on_path(base / "bin"):
        for scene in scenes:
            for result in kills(root, scene):
                print(json.dumps(result))


if __name__ == "__main__":
    main()
