"""What does work cost in joules? A counter of the machine's, or an estimate that says it is one.

The rules: joules are called measured only where a real counter was read: Intel's and AMD's RAPL, by
the kernel's powercap interface, which counts the whole processor package and so everything else
that ran, too. Where it cannot be read, the reason is said, and what is given is CPU time multiplied
by an assumed power of one busy core, with the assumption and a range. Two estimates, or estimates
of two machines, say nothing about each other.

The interface: https://docs.kernel.org/power/powercap/powercap.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
WATTS = 5.0  # of a busy core: an assumption
LEAST_WATTS, MOST_WATTS = 1.0, 15.0  # a small board's core, a server's at full clock

_ZONES = "intel-rapl:*"  # AMD's have this name as well; intel-rapl-mmio counts packages again


@dataclass(frozen=True)
class Zone:
    """A counter of microjoules that begins again at zero after ``greatest``."""

    name: str
    file: Path
    greatest: int

    def read(self) -> int:
        return int(self.file.read_text())

    def between(self, before: int, after: int) -> int:
        """Microjoules from one reading to another, if it began again at most once."""
        return after - before if after >= before else self.greatest - before + after


@dataclass(frozen=True)
class Rapl:
    """The counters of a machine that add up to its processors and their memory.

    Args:
        zones: packages, and memory that no package counts; empty if none can be read.
        why_not: why there is none, in words.
    """

    zones: tuple[Zone, ...]
    why_not: str = ""

    @classmethod
    def find(cls, root: Path = POWERCAP) -> Rapl:
        """What there is under ``root`` and can be read."""
        zones = []
        try:
            for folder in sorted(root.glob(_ZONES)):
                name = (folder / "name").read_text().strip()
                if not (name.startswith("package") or name == "dram"):
                    continue  # parts of a package, and psys, which holds packages
                greatest = int((folder / "max_energy_range_uj").read_text())
                zone = Zone(name, folder / "energy_uj", greatest)
                zone.read()
                zones.append(zone)
        except PermissionError as error:
            return cls((), f"{error.filename} can be read by root alone")
        except (OSError, ValueError) as error:
            return cls((), f"a counter under {root} cannot be read: {error}")
        if not any(zone.name.startswith("package") for zone in zones):
            return cls((), f"there is no RAPL counter of a package under {root}")
        return cls(tuple(zones))

    def read(self) -> dict[Zone, int] | None:
        """Each counter now; None if there are none, or they cannot be read any more."""
        with contextlib.suppress(OSError, ValueError):
            return {zone: zone.read() for zone in self.zones} or None
        return None


@dataclass(frozen=True)
class Energy:
    """What some work cost.

    Args:
        source: ``rapl``, measured; or ``estimate``.
        joules: of the work; measured ones with whatever else ran in that time.
        low, high: the range of an estimate; ``joules`` of a measurement.
        watts_per_core: the assumption of an estimate; None of a measurement.
        why: why nothing was measured; "" of a measurement.
    """

    source: str
    joules: float
    low: float
    high: float
    watts_per_core: float | None
    why: str

    @classmethod
    def measured(cls, before: Mapping[Zone, int], after: Mapping[Zone, int]) -> Energy:
        """From two readings of the same counters."""
        total = sum(zone.between(before[zone], after[zone]) for zone in before)
        joules = total / 1e6
        return cls("rapl", joules, joules, joules, None, "")

    @classmethod
    def estimated(cls, cpu_seconds: float, watts: float, why: str) -> Energy:
        """From CPU time and an assumed power of one busy core, > 0."""
        low, high = min(watts, LEAST_WATTS), max(watts, MOST_WATTS)
        return cls(
            "estimate", cpu_seconds * watts, cpu_seconds * low, cpu_seconds * high, watts, why
        )
