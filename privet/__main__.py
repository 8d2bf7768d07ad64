"""``python -m privet``: the same as the ``privet`` command."""

import sys

from privet.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
