"""``privet release``: publish releases, and what goes before."""

from __future__ import annotations

import typer

app = typer.Typer(help="Publish releases, and look after whose keys count.", no_args_is_help=True)
