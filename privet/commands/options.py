"""The options that commands share.

The rule: every command takes ``--format`` and ``--quiet``, and they mean the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet.output import Format

FormatOption = Annotated[
    Format, typer.Option("--format", help="text for people, json for scripts.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one value of the file.", metavar="KEY=VALUE"),
]
TrustOption = Annotated[
    Path | None, typer.Option(help="Fingerprints that came by another way.", metavar="FILE")
]
OutOption = Annotated[Path, typer.Option(help="Where to write it; must not exist.", metavar="DIR")]
LossOption = Annotated[
    float, typer.Option(help="Accuracy that a smaller model may lose, a share.", min=0, max=1)
]
AgreementOption = Annotated[
    float, typer.Option(help="Share of records whose class it has to keep.", min=0, max=1)
]
