"""`coterie bench serve`: what clients get over HTTP, from our own server or from others.

Knows nothing about how it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from coterie.api import Options
from coterie.api.opened import open_all
from coterie.bench.coe import SHAPES
from coterie.bench.http_stream import origin_of
from coterie.bench.serve import Own, random_names, serve_own, serve_url
from coterie.bench.serve_against import Against, common_models, serve_against, servers_of
from coterie.bench.serve_requests import Way
from coterie.bench.serve_started import models_at
from coterie.bench.shapes import shape_config
from coterie.cli.bench_print import print_report
from coterie.cli.opening import say_left_out
from coterie.cli.options import (
    JsonOpt,
    KvOpt,
    LowPriorityOpt,
    MaxBatchOpt,
    NearOpt,
    ThreadsOpt,
    err,
    report_errors,
)
from coterie.cli.simulate import ArrivalsOpt, MixOpt, RateOpt, SeedOpt
from coterie.composition.composition import load_composition
from coterie.core.errors import UsageError
from coterie.plan.mix import mix_named
from coterie.plan.workload import POISSON, Load, lengths_named
from coterie.server.keys import bearer

IN_FLIGHT, EXPERTS = (1, 32, 128), 6
LENGTHS = "uniform:16:64 and so on"

CompositionArg = Annotated[
    str | None, typer.Argument(metavar="[COMPOSITION]", help="As for coterie serve; default: random experts.")
]
UrlOpt = Annotated[
    list[str] | None, typer.Option(help="A running server with OpenAI's API, ours or another; repeatable.")
]
AgainstOpt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMMAND",
        help="Command that starts another server, on port {port}; servers are measured in turns. Repeatable.",
    ),
]
ColdOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="FOLDER", help="A folder whose files are kept out of the page cache meanwhile; repeatable."),
]
ModelOpt = Annotated[
    list[str] | None, typer.Option(help="Models to ask there; repeatable. Default: all in /v1/models.")
]
ApiKeyOpt = Annotated[str | None, typer.Option(envvar="COTERIE_API_KEY", help="That server's key, if it needs one.")]
EndsOpt = Annotated[bool, typer.Option("--ends", help="Let models end their answers: for servers without ignore_eos.")]


@report_errors
def bench_serve(
    composition: CompositionArg = None,
    url: UrlOpt = None,
    against: AgainstOpt = None,
    cold: ColdOpt = None,
    model: ModelOpt = None,
    api_key: ApiKeyOpt = None,
    ends: EndsOpt = False,
    raw: Annotated[bool, typer.Option("--raw", help="Text completions instead of chats.")] = False,
    rate: RateOpt = None,
    in_flight: Annotated[
        list[int] | None, typer.Option(help="Concurrent requests (closed loop); repeatable. Default: 1, 32 and 128.")
    ] = None,
    arrivals: ArrivalsOpt = POISSON,
    requests: Annotated[int, typer.Option(help="Requests per round.")] = 128,
    mix: MixOpt = "uniform",
    prompt: Annotated[str, typer.Option(metavar="TOKENS", help=f"Tokens of a prompt: 64, {LENGTHS}.")] = "64",
    max_tokens: Annotated[str, typer.Option(metavar="TOKENS", help=f"Tokens of an answer: 32, {LENGTHS}.")] = "32",
    seed: SeedOpt = 7,
    low_priority_share: LowPriorityOpt = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, after a warm-up round.")] = 3,
    experts: Annotated[int | None, typer.Option(min=1, help=f"How many random experts; {EXPERTS}.")] = None,
    shape: Annotated[str, typer.Option(help="One shape for all, instead of three architectures of 50 to 100 MB.")] = "",
    near: NearOpt = None,
    kv: KvOpt = None,
    threads: ThreadsOpt = None,
    max_batch: MaxBatchOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Streamed requests over HTTP; of our own server the same ones by its engine in process, to see what HTTP costs."""
    how = Way(raw, fixed=not ends)

    def loads(names: Sequence[str]) -> list[Load]:
        drawn = mix_named(mix, names), lengths_named(prompt, "--prompt"), lengths_named(max_tokens, "--max-tokens")
        loops: Sequence[int | None] = in_flight or (IN_FLIGHT if rate is None else (None,))
        return [Load(requests, *drawn, rate, at_once, arrivals, seed, low_priority_share) for at_once in loops]

    sizes = {"--near": near, "--kv": kv, "--threads": threads, "--max-batch": max_batch}
    if against or len(url or ()) > 1 or (url and composition):
        fact = "is of random experts, which other servers do not have"
        _left_out({"--experts": experts, "--shape": shape or None}, fact, "name a COMPOSITION")
        if composition is None:
            _left_out(sizes, "is of our own server", "name a COMPOSITION")
        origins = tuple(origin_of(one, bearer(api_key)) for one in url or ())
        who = Against(composition or "", _own_options(sizes), origins, tuple(against or ()), tuple(cold or ()))
        with servers_of(who, _say) as servers:
            asked = model or common_models(servers)
            print_report(serve_against(servers, asked, loads(asked), rounds, how, who, _say), json_)
        return
    _left_out({"--cold": cold}, "is for servers that are compared", "add --against")
    if url:
        _left_out(
            {"--experts": experts, "--shape": shape or None, **sizes},
            "is of a server that is started here",
            "leave --url out",
        )
        origin = origin_of(url[0], bearer(api_key))
        asked = model or models_at(origin)
        print_report(serve_url(origin, asked, loads(asked), rounds, how, _say), json_)
        return
    _left_out({"--model": model, "--ends": ends or None}, "is of a server that runs", "say with --url where it is")
    if composition is not None:
        _left_out({"--experts": experts, "--shape": shape or None}, "is of random experts", "leave the composition out")
        served = open_all(load_composition(composition), Options()).composition
        names = served.names
        say_left_out(served)
    else:
        names = random_names(experts or EXPERTS)
    own = Own(composition or "", names, (shape_config(shape),) if shape else SHAPES, near, kv, threads, max_batch)
    print_report(serve_own(own, loads(names), rounds, how, _say), json_)


def _own_options(given: Mapping[str, int | None]) -> tuple[str, ...]:
    """The given options, as arguments of `coterie serve`."""
    return tuple(word for name, value in given.items() if value is not None for word in (name, str(value)))


def _say(text: str) -> None:
    err.print(text, style="dim", markup=False)


def _left_out(given: Mapping[str, object], fact: str, remedy: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(name, fact, f"leave it out, or {remedy}")
