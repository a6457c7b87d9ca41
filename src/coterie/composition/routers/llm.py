"""The llm router: asks a model which expert should answer, and routes to the expert that its answer names.

    ask     the question, with the experts and the prompt filled in       one request to the router's own model
    decide  the expert that the answer names; the fallback if it names none or several

Knows nothing about engines or tokenizers: the caller runs what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from coterie.composition.router import Ask, Prompt, Result, Route, fall_back

ROUTER = "(router)"  # names the router's own model; not a valid expert name
MAX_TOKENS = 20
QUESTION = (
    "Which of these experts should answer the prompt?\n{experts}\n\nPrompt: {prompt}\n\n"
    "Answer with the name of one expert."
)


class LlmRouter:
    """Asks a model. `experts`: name -> description. `question`: a text with {prompt} and, optionally, {experts}."""

    def __init__(
        self, experts: Mapping[str, str], fallback: str, question: str = QUESTION, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.fallback, self.max_tokens, self._experts, self._form = fallback, max_tokens, dict(experts), question
        lines = [f"{name}: {about}" if about else name for name, about in experts.items()]
        self._question = question.replace("{experts}", "\n".join(lines))
        # Longer names first, so that "law-chat" does not match as "law".
        names = "|".join(re.escape(name) for name in sorted(experts, key=len, reverse=True))
        self._names = re.compile(rf"(?<![\w.-])(?:{names})(?![\w-])", re.IGNORECASE)
        self._by_folded = {name.casefold(): name for name in experts}

    def among(self, names: Collection[str]) -> LlmRouter:
        """A copy that asks only about those of its experts that are in `names`."""
        there = {name: about for name, about in self._experts.items() if name in names}
        return LlmRouter(there, self.fallback, self._form, self.max_tokens)

    @property
    def instructions(self) -> str:
        """The question without the prompt: the text that every prompt adds to."""
        return self._question.replace("{prompt}", "")

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """The question to the router's own model."""
        return (Ask(ROUTER, self._question.replace("{prompt}", prompt.text), self.max_tokens),)

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """The expert that the answer names. A name does not tell how sure the model was: confidence is 1 or 0."""
        answer = " ".join(map(str, results))
        named = dict.fromkeys(self._by_folded[match.casefold()] for match in self._names.findall(answer))
        if len(named) == 1:
            (name,) = named
            return Route(name, 1.0, (), f"the router's model answered {_short(answer)}")
        fact = f"names {' and '.join(named)}" if named else "names no expert"
        return fall_back(self.fallback, {}, f"the answer of the router's model, {_short(answer)}, {fact}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
