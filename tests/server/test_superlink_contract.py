"""What flwr does not promise and we use: if an upgrade breaks it, this says what and where."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest

# Flower's migrations configure Alembic the old way.
quiet = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent.parent
PROMISED = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
# One adapter a side; and two constants and an exception-free class that others need to name errors.
ADAPTERS = {"client": {"client/link/fleet.py"}, "server": {"server/link/superlink/"}}
KNOWN = {
    ("client/link/node.py", "flwr.common.constant"),
}


def private_imports(side: str) -> set[tuple[str, str]]:
    found = set()
    for file in (ROOT / side).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name and name.split(".")[0] == "flwr" and name not in PROMISED:
                    found.add((str(file.relative_to(ROOT)), name))
    return found


@pytest.mark.parametrize("side", ["client", "server"])
def test_flowers_private_parts_are_imported_in_one_place_a_side(side: str) -> None:
    outside = {
        (file, name)
        for file, name in private_imports(side) - KNOWN
        if not any(file.startswith(adapter) for adapter in ADAPTERS[side])
    }
    assert not outside


def test_this_is_the_flower_that_was_read() -> None:
    assert version("flwr") == "1.41.0"


def test_the_superlink_still_takes_what_we_set() -> None:
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    assert {field.name for field in fields(SuperLinkLifespanConfig)} == {
        *("control_address", "health_server_address", "host", "port", "insecure", "certificates"),
        *("superexec_auth_secret", "authn_plugin", "event_log_plugin", "fleet_event_log_plugin"),
        *("enable_event_log", "artifact_provider", "enable_supernode_auth", "fleet_api_type"),
        *("fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile", "ssl_keyfile"),
        *("database", "isolation", "runtime_dependency_install"),
    }


@quiet
def test_the_handlers_still_take_what_we_give(tmp_path: Path) -> None:
    from flwr.superlink.servicer.control import control_handlers
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.superlink.servicer.runtime import runtime_handlers

    from server.link.superlink.app import superlink_app

    for handler, names in (
        (fleet_handlers.pull_messages, ["request", "state", "store"]),
        (fleet_handlers.push_messages, ["request", "state"]),
        (runtime_handlers.pull_messages, ["request", "state", "task"]),
        (runtime_handlers.push_messages, ["request", "state", "task"]),
        (control_handlers.list_runs, ["request", "account", "state"]),
        (
            control_handlers.start_run,
            ["request", "account", "state", "fleet_api_type", "source"],
        ),
    ):
        assert list(inspect.signature(handler).parameters) == names
    state = superlink_app(tmp_path / "state.db", b"s" * 32).state.linkstate_factory.state()
    for name in (
        *("create_node", "delete_node", "get_node_info", "get_node_id_by_public_key"),
        *(
            "acknowledge_node_heartbeat",
            "deactivate_node",
            "get_object",
            "store_object",
            "get_task_by_token",
        ),
        *("session", "object_store", "get_run_info", "finish_task"),
    ):
        assert hasattr(state, name), name


@quiet
def test_the_routes_that_we_let_through_are_still_flowers(tmp_path: Path) -> None:
    from fastapi.routing import APIRoute, iter_route_contexts

    from server.link.gate import ROUTES
    from server.link.superlink.app import KEY_HEADER, superlink_app
    from server.link.waking import TOKEN_HEADER

    app = superlink_app(tmp_path / "state.db", b"s" * 32)
    routes = {
        c.route.path for c in iter_route_contexts(app.routes) if isinstance(c.route, APIRoute)
    }
    assert {route for route in ROUTES if route.startswith("/v1/")} <= routes | {
        f"/v1/fleet{route}" for route in routes
    }
    assert KEY_HEADER == "flwr-public-key"
    from flwr.supercore.constant import TASK_TOKEN_HEADER

    assert TOKEN_HEADER == TASK_TOKEN_HEADER


def test_flowers_command_still_keeps_a_token_by_the_links_address_and_sends_it() -> None:
    from flwr.cli import cli_account_auth_interceptor, constant, utils

    for key in ("AUTHN_TYPE", "ACCESS_TOKEN", "REFRESH_TOKEN"):
        assert getattr(constant, f"{key}_STORE_KEY") % "host:1" != getattr(
            constant, f"{key}_STORE_KEY"
        )
    sent = inspect.getsource(cli_account_auth_interceptor.CliAccountAuthHttpInterceptor)
    assert '"Authorization": f"Bearer {access_token}"' in sent
    assert "_format_flower_error" in inspect.getsource(utils.flwr_cli_exc_handler)


def test_a_task_still_has_to_be_asked_for_with_the_secret() -> None:
    from flwr.supercore.dependencies.superexec import authenticate_superexec_request

    assert "superexec_auth_secret" in inspect.getsource(authenticate_superexec_request)


def test_asyncio_still_takes_the_size_of_a_connections_buffer_from_where_we_set_it() -> None:
    from asyncio import sslproto

    assert "bytearray(self.max_size)" in inspect.getsource(sslproto.SSLProtocol.__init__)
