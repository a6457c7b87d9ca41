"""/v1/models: the composition and its experts, each with its state, in the formats of OpenAI and Anthropic.

Also the commands on an expert (load, unload, pin, unpin), the rescan, and /v1/status.
Knows nothing about how experts are loaded, or about threads beyond `Worker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Any

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.api import Serving
from coterie.api.sampling import defaults_of
from coterie.core.errors import CoterieError, NotFoundError, RequestError, shown
from coterie.server.guard import check_origin
from coterie.server.log import LOG
from coterie.server.worker import Worker

LENGTH = "max_model_len"  # the name in vLLM, which clients look for
_ACTS = ("load", "unload", "pin", "unpin")
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}


def context_lengths(coterie: Serving) -> dict[str, int]:
    """The most tokens, of prompt and answer together, that each expert takes."""
    pools = [one.parts.kv for one in coterie.members]
    models = {name: coterie.models[name] for name in coterie.composition.names}  # without the router's own
    return {n: min(model.max_context, max([kv.tokens_held(model.kv) for kv in pools])) for n, model in models.items()}


def model_list(coterie: Serving) -> list[dict[str, Any]]:
    """A row for the composition, whose name stands for its router, for each expert, and for each alias.

    `created`: when an expert's weights were written, for the composition the newest's; 0 without bytes. LENGTH: the
    most tokens, of prompt and answer together, that it takes; for the composition the largest of any expert.
    """
    head = {"object": "model", "type": "model", "owned_by": "coterie"}
    composition = coterie.composition
    lengths = context_lengths(coterie)
    created = {name: coterie.models[name].written_s for name in lengths}
    states = {state.name: state for state in coterie.status().experts}
    about: dict[str, Any] = {"kind": "composition", "experts": len(composition.experts)}
    about["left_out"] = {name: str(why) for name, why in composition.left_out.items()}
    whole = {"created": max(created.values()), LENGTH: max(lengths.values()), "coterie": about}
    rows: list[dict[str, Any]] = [{"id": composition.name, **head, **whole}]
    for expert in composition.experts:
        found = states[expert.name]
        detail = {
            "kind": "expert",
            "description": expert.description,
            "aliases": list(expert.aliases),
            "sampling": defaults_of(coterie.models[expert.name]),
            "chat_template": coterie.texts[expert.name].template is not None,
            "resident": found.state != "absent",
            **{name: value for name, value in found.to_dict().items() if name != "name"},
        }
        if expert.name == composition.name:
            about |= {**detail, **about}  # a folder that is itself a checkpoint: both have one name, and one row
        else:
            own = {"created": created[expert.name], LENGTH: lengths[expert.name], "coterie": detail}
            rows.append({"id": expert.name, **head, **own})
            as_alias = {**own, "coterie": {**detail, "kind": "alias", "alias_of": expert.name}}
            rows += [{"id": alias, **head, **as_alias} for alias in expert.aliases]
    return [_by_both(row) for row in rows]


def _by_both(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the fields that Anthropic's clients read: display name, creation time, input limit."""
    made = datetime.fromtimestamp(int(row["created"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**row, "display_name": row["id"], "created_at": made, "max_input_tokens": row[LENGTH]}


def routes(worker: Worker, origins: Collection[str] = ()) -> list[Route]:
    """GET of the list, of one model and of the whole status; POST of commands on one, answered with its row afterwards.

    Commands are refused to pages of other sites, except those of `origins`.
    """

    one_at_a_time = asyncio.Lock()

    async def models(_: Request) -> Response:
        rows = await worker.look(model_list)
        page = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"], "has_more": False}  # Anthropic's: one page
        return JSONResponse({"object": "list", "data": rows, **page})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            return JSONResponse(await _row(worker, name))
        except NotFoundError:
            expert, _, act = name.rpartition("/")
            if expert and act in _ACTS:  # the path of a command, which takes POST; not an alias
                raise HTTPException(405, headers={"Allow": "POST"}) from None
            raise

    async def rescan(request: Request) -> Response:
        check_origin(request.scope, origins)
        async with one_at_a_time:  # else an older look might be applied last
            looked = await worker.run_in_pool(lambda coterie: coterie.look_again())
            found = await worker.call(lambda coterie: coterie.rescan(looked))
        changes = [f"{what} {', '.join(names)}" for what, names in found.to_dict().items() if names]
        LOG.info("rescan: %s", "; ".join(changes) or "nothing is new")
        return JSONResponse({"object": "rescan", **found.to_dict()})

    async def status(_: Request) -> Response:
        found = await worker.status()
        return JSONResponse({"object": "status", **found.to_dict()})

    async def load(request: Request) -> Response:
        check_origin(request.scope, origins)
        name, wait = request.path_params["name"], _flag(request, "wait")
        if wait:
            await worker.wait_for_callback(lambda coterie, tell: coterie.load_soon(name, tell))
        else:
            await worker.call(lambda coterie: coterie.load_soon(name, _log_failure))
        row = await _row(worker, name)
        return JSONResponse(row, 200 if wait or row["coterie"]["state"] == "resident" else 202)

    def act(function: Callable[[Serving, str], None]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            check_origin(request.scope, origins)
            name = request.path_params["name"]
            await worker.call(lambda coterie: function(coterie, name))
            return JSONResponse(await _row(worker, name))

        return endpoint

    one = "/v1/models/{name:model}"
    return [
        Route("/v1/status", status, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/rescan", rescan, methods=["POST"]),
        Route(f"{one}/load", load, methods=["POST"]),
        Route(f"{one}/unload", act(lambda coterie, name: coterie.unload(name)), methods=["POST"]),
        Route(f"{one}/pin", act(lambda coterie, name: coterie.pin(name)), methods=["POST"]),
        Route(f"{one}/unpin", act(lambda coterie, name: coterie.unpin(name)), methods=["POST"]),
        Route(one, model, methods=["GET"]),
    ]


class _Name(PathConvertor):
    """An alias may contain slashes but not end with one, so `/v1/models/` leads to the list."""

    regex = "[^/](?:.*[^/])?"


register_url_convertor("model", _Name())


async def _row(worker: Worker, name: str) -> dict[str, Any]:
    rows = await worker.look(model_list)
    for row in rows:
        if row["id"] == name:
            return row
    if missing := await worker.look(lambda coterie: coterie.composition.missing(name)):
        raise missing
    raise NotFoundError(name, f"no such model among {len(rows)}", "GET /v1/models names them")


def _flag(request: Request, name: str) -> bool:
    said = request.query_params.get(name, "false").lower()
    if said not in _FLAGS:
        raise RequestError(name, f"is {shown(said)}", "give true or false")
    return _FLAGS[said]


def _log_failure(error: CoterieError | None) -> None:
    if error is not None:
        LOG.error("a load failed: %s", error)
