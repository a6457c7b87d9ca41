"""The given router: asks what another router asks, and then routes where it was told.

For workloads that name each request's expert on devices that compute no numbers: what the router's own model answers
there means nothing, but its request is run, and takes its time. Knows nothing about workloads.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.composition.router import Ask, Prompt, Result, Route, Router


class GivenRouter:
    """`router` says what is asked; None asks nothing."""

    def __init__(self, router: Router | None, expert: str) -> None:
        self._router, self._expert = router, expert

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """As the other router."""
        return () if self._router is None else self._router.ask(prompt)

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """Where it was told."""
        return Route(self._expert, 1.0, (), "the route was given")
