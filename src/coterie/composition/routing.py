"""From a prompt to a Route: makes the router, and adds the rules that hold for every kind of router.

    model = an expert's name ──▶ that expert, with the prompt unchanged
    "@expert ..."            ──▶ that expert, with the address removed; without a router it keeps the conversation
    anything else            ──▶ the router decides; then, in this order:
                                 a conversation stays with its expert unless another leads by the margin;
                                 otherwise an expert in memory is preferred to one that is not and hardly leads;
                                 an expert that can take the request is preferred to one that cannot

Knows nothing about engines: what a router asks of a model is answered by the caller, between `begin` and `finish`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from coterie.composition.composition import Composition, RouterSpec
from coterie.composition.expert import is_expert_name
from coterie.composition.router import Ask, Prompt, Result, Route, Router, fall_back
from coterie.composition.routers.knn import THRESHOLD, KnnRouter, KnnSettings
from coterie.composition.routers.lexical import LexicalRouter, read_weights
from coterie.composition.routers.llm import LlmRouter
from coterie.composition.routers.rules import RulesRouter
from coterie.composition.validate import MAX_NAMES, name_hint, nearest
from coterie.core.errors import CompositionError, NotFoundError, RequestError, UnsupportedError, UsageError
from coterie.core.text import first_few

_ADDRESS = re.compile(r"\s*@([A-Za-z0-9][A-Za-z0-9._/:-]*?)([:,]?)(?=\s|$)\s*")
_LIKE_A_NAME = 0.75  # from this similarity on, an unknown @name is a misspelt expert, not part of the prompt


def make_router(composition: Composition) -> Router | None:
    """The composition's router, or None if it has none.

    Raises CompositionError if the file of a trained router is damaged or was trained for other experts.
    """
    if composition.router is None:
        return None
    return ROUTERS[composition.router.kind](composition.router, composition)


def _make_lexical(spec: RouterSpec, composition: Composition) -> Router:
    if spec.weights is None:
        raise CompositionError(composition.name, "the lexical router has no weights", "give router.weights")
    weights = read_weights(spec.weights)
    unknown = [name for name in weights.experts if name not in (*composition.names, *composition.left_out)]
    if unknown:
        fact = f"it was trained for {', '.join(map(repr, unknown))}, which this composition does not have"
        raise CompositionError(str(spec.weights), fact, "train the router again for the experts of this composition")
    return LexicalRouter(weights, spec.fallback, spec.threshold)


def _knn_settings(spec: RouterSpec) -> KnnSettings:
    threshold = THRESHOLD if spec.threshold is None else spec.threshold
    return KnnSettings(spec.num_neighbours, spec.similarity, threshold)


def _make_llm(spec: RouterSpec, composition: Composition) -> Router:
    experts = {expert.name: expert.description for expert in composition.experts}
    return LlmRouter(experts, spec.fallback, spec.question, spec.max_tokens)


ROUTERS: Mapping[str, Callable[[RouterSpec, Composition], Router]] = {
    "rules": lambda spec, _: RulesRouter(spec.rules, spec.fallback, spec.threshold or 0.0, spec.match),
    "lexical": _make_lexical,
    "knn": lambda spec, _: KnnRouter(spec.examples, spec.fallback, _knn_settings(spec), spec.model is not None),
    "llm": _make_llm,
}


Unfit: TypeAlias = Callable[[str], str]


def always_fits(expert: str) -> str:
    """Every expert can take the request."""
    return ""


@dataclass(frozen=True, slots=True)
class Pending:
    """A routing between its two steps. `prompt` is for the chosen expert, without the address; `asks` await answers.

    `route` is set if the request named the expert. `previous` is the expert of the conversation so far, `resident` are
    those in memory. `unfit` says why an expert cannot take the request ("takes no tools"), or returns "" if it can.
    """

    prompt: Prompt
    asks: tuple[Ask, ...]
    route: Route | None
    previous: str | None
    resident: Collection[str] = ()
    unfit: Unfit = always_fits


class Routing:
    """Chooses the expert for a prompt. Pure: equal prompt, model, previous and resident experts give an equal Route."""

    def __init__(self, composition: Composition, router: Router | None = None) -> None:
        """`router`: the composition's router, if it was made before."""
        self.composition = composition
        self.router = router or make_router(composition)

    def tuned(self, spec: RouterSpec) -> Routing:
        """A copy with other router settings; the index of a knn router's examples is reused."""
        composition = replace(self.composition, router=spec)
        router = self.router.tuned(_knn_settings(spec)) if isinstance(self.router, KnnRouter) else None
        return Routing(composition, router)

    def tuned_for(self, composition: Composition) -> Routing:
        """A copy for a composition in which experts may be left out.

        The router is reused, except that an llm router asks only about the experts that are left.
        """
        router = self.router.among(composition.names) if isinstance(self.router, LlmRouter) else self.router
        return Routing(composition, router)

    def taught(self, vectors: Sequence[Sequence[float]]) -> Routing:
        """A copy whose knn router has the embeddings of its examples, in the order of `to_teach`."""
        router = self.router.taught(vectors) if isinstance(self.router, KnnRouter) else self.router
        return Routing(self.composition, router)

    @property
    def to_teach(self) -> tuple[Ask, ...]:
        """The embeddings that `taught` needs before the first decision; empty for most routers."""
        return self.router.asks_for_examples if isinstance(self.router, KnnRouter) else ()

    @property
    def prefers_resident(self) -> bool:
        """Whether the choice depends on which experts are in memory."""
        return self.composition.router is not None and self.composition.router.prefer_resident > 0

    def begin(
        self,
        prompt: Prompt,
        model: str | None = None,
        previous: str | None = None,
        resident: Collection[str] = (),
        unfit: Unfit = always_fits,
    ) -> Pending:
        """First step. `model`: the composition's name (or None) to let the router choose, or an expert's name or alias.

        Without `previous`, a conversation's earlier user messages are routed in turn to find its current expert; this
        works only for routers that ask nothing. `resident`: the experts in memory. `unfit`: see Pending.

        Raises NotFoundError (an unknown model or previous expert; an @name that is close to an expert's, or names an
        expert that was left out), RequestError (no text).
        """
        if model is not None and model != self.composition.name:
            name = self._named(model)
            return Pending(prompt, (), Route(name, 1.0, (), f"{name} was named as the model"), None)
        addressed, addressee = self._take_address(prompt)
        if not addressed.text.strip():
            raise RequestError("prompt", "the last user message has no text", "write a question")
        if addressee is not None:
            return Pending(addressed, (), Route(addressee, 1.0, (), f"the prompt is addressed to @{addressee}"), None)
        if previous is not None:
            previous = self.composition.expert(previous).name
        asks = self.router.ask(addressed) if self.router is not None else ()
        if previous is None and not asks:
            previous = self._replay(prompt, resident)
        if self.router is None and previous is not None:
            stays = Route(previous, 1.0, (), f"the conversation is with {previous}, and there is no router")
            return Pending(addressed, (), stays, None)
        return Pending(addressed, asks, None, previous, resident, unfit)

    def finish(self, pending: Pending, results: Sequence[Result] = ()) -> Route:
        """Second step: the route, given the answers to `pending.asks` in their order.

        Raises UsageError if there is no router and more than one expert.
        """
        if pending.route is not None:
            return pending.route
        spec, names = self.composition.router, self.composition.names
        if self.router is None or spec is None:
            if len(names) == 1:
                return Route(names[0], 1.0, (), "it is the only expert")
            fact = f"there is no router to choose among {len(names)} experts"
            named = f"name an expert ({first_few(names, MAX_NAMES)})"
            raise UsageError(self.composition.name, fact, f"{named}, or start the prompt with @ and its name")
        route = _settled(
            self._restrict_to_served(self.router.decide(pending.prompt, results)),
            pending.previous,
            pending.resident,
            spec,
        )
        return with_capability(route, pending.unfit, self.others)

    def _restrict_to_served(self, route: Route) -> Route:
        """The route restricted to experts that are served: the fallback replaces one that was left out."""
        names = self.composition.names if self.composition.left_out else ()
        spec, there = self.composition.router, {name: share for name, share in route.runners_up if name in names}
        if not names or spec is None:
            return route
        if route.expert in names:
            return replace(route, runners_up=tuple(there.items()))
        return fall_back(spec.fallback, there, f"{route.expert} is left out; {route.reason}")

    @property
    def others(self) -> tuple[str, ...]:
        """Candidates for a request that neither the chosen expert nor a runner-up can take: the fallback first."""
        spec = self.composition.router
        return self.composition.names if spec is None else (spec.fallback, *self.composition.names)

    def route(self, prompt: Prompt, model: str | None = None, previous: str | None = None) -> tuple[Route, Prompt]:
        """Both steps at once, for routers that ask nothing: the route, and the prompt for the expert.

        Raises UnsupportedError if a model must be asked first.
        """
        pending = self.begin(prompt, model, previous)
        if pending.asks:
            fact = "its router asks a model, whose answers nobody gives here"
            raise UnsupportedError(self.composition.name, fact, "name the expert, or ask through the engine")
        return self.finish(pending), pending.prompt

    def _named(self, model: str) -> str:
        try:
            return self.composition.expert(model).name
        except NotFoundError as error:
            if self.router is None:
                raise
            routed = f"{self.composition.name} lets the router choose"
            raise NotFoundError(error.where, error.fact, f"{error.remedy}; {routed}") from None

    def _take_address(self, prompt: Prompt) -> tuple[Prompt, str | None]:
        """The prompt without @addresses, and the expert that its last user message is addressed to, if any."""
        text, name = self.split_address(prompt.text)
        if name is None:
            self._refuse_misspelt(prompt.text)
        messages = tuple(
            {**m, "content": self.split_address(m["content"])[0]} if m["role"] == "user" else m for m in prompt.messages
        )
        return Prompt(text, messages), name

    def split_address(self, text: str) -> tuple[str, str | None]:
        """A message without a leading @name, and the name of that expert; None if it begins with no expert's @name."""
        match = _ADDRESS.match(text)
        expert = None if match is None else self.composition.named(match[1])
        if match is None or expert is None:
            return text, None
        return text[match.end() :], expert.name

    def _refuse_misspelt(self, text: str) -> None:
        """Refuse an @name close to an expert's; any other unknown @name is part of the prompt (a handle, code)."""
        match, known = _ADDRESS.match(text), self.composition
        if match is None:
            return
        if missing := known.missing(match[1]):
            raise missing
        # @scope/package resembles an expert called scope-package, but is not a misspelling
        alike = [n for n in (*known.names, *known.aliases) if is_expert_name(n) == is_expert_name(match[1])]
        if nearest(match[1], alike, cutoff=_LIKE_A_NAME):
            remedy = f"{name_hint(match[1], alike)} (with a space after the @ it is ordinary text)"
            raise NotFoundError("prompt", f"there is no expert @{match[1]}", remedy)

    def _replay(self, prompt: Prompt, resident: Collection[str]) -> str | None:
        """The expert of the conversation before its last user message, found by routing each earlier one in turn.

        Without a router it is the expert addressed last.
        """
        spec, previous = self.composition.router, None
        for message in [m for m in prompt.messages if m["role"] == "user"][:-1]:
            text, name = self.split_address(message["content"])
            if name is not None:
                previous = name
            elif self.router is not None and spec is not None:
                previous = _settled(
                    self._restrict_to_served(self.router.decide(Prompt(text))), previous, resident, spec
                ).expert
        return previous


def _settled(route: Route, previous: str | None, resident: Collection[str], spec: RouterSpec) -> Route:
    stayed = with_affinity(route, previous, spec.fallback, spec.margin)
    # the conversation's own expert may still hold its KV cache, so residency does not count against it
    return stayed if stayed.expert == previous else with_residency(stayed, resident, spec.prefer_resident)


def with_residency(route: Route, resident: Collection[str], margin: float) -> Route:
    """Redirect to the best runner-up in memory, if the chosen expert is not in memory and leads it by at most `margin`.

    A route to the fallback because no expert fits is left unchanged.
    """
    if route.is_fallback or route.expert in resident or margin <= 0:
        return route
    for name, share in route.runners_up:
        if name in resident and route.confidence - share <= margin:
            lead = route.confidence - share
            reason = f"{name} is in memory, {route.expert} is not and leads by {lead:.0%} only; {route.reason}"
            return route.moved(name, reason)
    return route


def with_capability(route: Route, unfit: Unfit, others: Sequence[str]) -> Route:
    """Redirect a request that the chosen expert cannot take to the best runner-up, or else the first other, that can.

    `unfit` is called at most once per expert, up to the first that fits. If none does, the route stays, and the chosen
    expert reports the error.
    """
    if not (why := unfit(route.expert)):
        return route
    for name in dict.fromkeys((*[name for name, _ in route.runners_up], *others)):
        if name != route.expert and not unfit(name):
            return route.moved(name, f"{route.expert} {why}; {route.reason}")
    return route


def with_affinity(route: Route, previous: str | None, fallback: str, margin: float) -> Route:
    """Keep a conversation with its expert unless the new one leads by at least `margin` of confidence.

    A conversation with the fallback is free to move: the fallback was not chosen for it.
    """
    if previous is None or previous in (route.expert, fallback):
        return route
    lead = route.confidence - route.confidence_in(previous)
    if lead >= margin:
        return route
    return route.moved(previous, f"the conversation stays: {route.expert} leads by {lead:.0%}, less than {margin:.0%}")
