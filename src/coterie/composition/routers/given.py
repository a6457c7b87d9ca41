"""The given router: asks what another router would ask, but routes to a given expert.

For workloads that name each request's expert, on devices that compute no numbers: an answer of the router's own model
is meaningless there, but its request is still run and timed.
Knows nothing about workloads.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.composition.router import Ask, Prompt, Result, Route, Router


class GivenRouter:
    """`router` provides the questions; None asks nothing."""

    def __init__(self, router: Router | None, expert: str) -> None:
        self._router, self._expert = router, expert

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """The questions of the other router."""
        return () if self._router is None else self._router.ask(prompt)

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """A route to the given expert."""
        return Route(self._expert, 1.0, (), "the route was given")
