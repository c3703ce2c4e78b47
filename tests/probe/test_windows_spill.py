"""Windows' counter of GPU memory that lies in main memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import GpuFacts
from velollm.probe.source import TextSource
from velollm.probe.windows_spill import add_spill, parse_shared_usage

# As `typeperf "\\GPU Process Memory(*)\\Shared Usage" -sc 1` prints it.
_NAME = r"\\PC\GPU Process Memory(pid_{}_luid_0x00000000_0x0000E4C6_phys_{})\Shared Usage"
_NAMES = [_NAME.format(pid, number) for pid, number in ((4120, 0), (88, 0), (4120, 1))]
TEXT = "\n".join(
    [
        "",
        ",".join(f'"{name}"' for name in ("(PDH-CSV 4.0)", *_NAMES)),
        '"11/25/2026 12:00:00.000","2147483648.000000","99000000.000000","1048576.000000"',
        "The command completed successfully.",
    ]
)


def test_only_the_engines_count() -> None:
    assert parse_shared_usage(TEXT, {4120}) == 2147483648 + 1048576
    assert parse_shared_usage(TEXT, {88, 4120}) == 2147483648 + 1048576 + 99000000
    assert parse_shared_usage(TEXT, {1}) is None
    assert parse_shared_usage("Error: No valid counters.\n", {4120}) is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_shared_usage(text, {1})


def test_a_captured_machine_is_not_asked() -> None:
    gpus = (GpuFacts(vendor="nvidia", integrated=False),)
    assert add_spill(TextSource(commands={}), gpus) == gpus
