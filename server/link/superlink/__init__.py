"""What of Flower's SuperLink do we use? The one place on this side that knows its private parts.

The rule: everything that flwr 1.41 does not promise is imported in this package, and
``tests/server/test_superlink_contract.py`` says which of it an upgrade broke.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
