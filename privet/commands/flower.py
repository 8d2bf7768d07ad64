"""``privet server flower``: let Flower's own command work with a federation's link.

The rule: what is written down opens the link's four routes for that command and nothing else, and
stands in a file that only its owner can read. That command minds proxies; ours do not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from privet import output
from privet.commands.federation import FederationOption
from privet.commands.options import FormatOption, QuietOption
from privet.commands.server import app
from privet.output import Format


@app.command("flower")
def flower(
    directory: Annotated[Path, typer.Argument(help="Where the app is written.", metavar="APP")],
    federation: FederationOption,
    name: Annotated[str, typer.Option(help="What Flower calls the link.")] = "privet",
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Let `flwr run`, `list`, `log` and `stop` work with a link: a connection, and a thin app."""
    from urllib.request import getproxies, proxy_bypass  # a web client: a tenth of any command

    from server import thin_app
    from server.federation.directory import Federation
    from server.link.place import LOOPBACK, Place
    from server.link.superlink.command import introduce

    place = Place(Federation.read(federation))
    address, token = place.inside(), place.flower_token()
    thin_app.check(directory)
    config = introduce(name, address, token)
    thin_app.write(directory)
    proxied = "http" in getproxies() and not proxy_bypass(LOOPBACK)
    data = {
        "connection": name,
        "address": address,
        "config": str(config),
        "app": str(directory),
        "proxied": proxied,
        "run": f"flwr run {directory} {name} --run-config '{thin_app.RUN}=\"/full/path/of/RUN\"'",
    }

    def text() -> None:
        print(f"{name} is {address}, in {config}; {directory} is an app without code")
        if not quiet:
            print(f"  {data['run']}")
            print(f"  flwr list {name}")
            print(f"  flwr log RUN-ID {name}")
            print(f"  flwr stop RUN-ID {name}")
        if proxied:
            print("set NO_PROXY=127.0.0.1, or flwr sends the token to a proxy", file=sys.stderr)

    output.show(format_, data, text)
