"""Is a federation's link at work? Exit code 0 if it answers on its loopback interface, else 1.

    python health.py FEDERATION

The rule: it asks the link itself, and reads nothing but where that listens. Standard library only,
and a fraction of a second: it is asked every half minute.
"""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path

SECONDS = 4.0


def is_well(federation: Path) -> bool:
    """Whether the link of this federation's directory answers."""
    try:
        port = int(json.loads((federation / "link" / "ports.json").read_bytes())["inside"])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(not is_well(Path(sys.argv[1])))
