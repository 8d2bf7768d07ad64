"""Run every benchmark, one after the other, each in a process of its own."""

import subprocess
import sys

NAMES = (
    "aggregation",
    "audit",
    "audit_test",
    "byzantine",
    "compression",
    "crowd",
    "deployment",
    "device",
    "dpsgd",
    "grid",
    "personal",
    "serving",
    "smaller",
)

if __name__ == "__main__":
    for name in NAMES:
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
