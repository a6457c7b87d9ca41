"""History: an answer's tokens so far, as penalties and biases need them; a device changes its logits accordingly.

Knows nothing about logits or devices.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from coterie.engine.request import ChoiceParams
from coterie.graph.sampling import BIAS_ONLY, Changes

ROOM = 64  # tokens, initially


class History:
    """The history of one answer to a prompt. Keeps only the tokens that a penalty or a bias concerns."""

    def __init__(self, params: ChoiceParams, prompt_ids: Seq[int]) -> None:
        self._params = params
        self._place: dict[int, int] = {}
        self._ids, self._times = np.zeros(ROOM, np.int32), np.zeros(ROOM, np.int32)
        self._bias = np.zeros(ROOM, np.float32)
        self._counts = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) != (0, 0, 1)
        for token, bias in params.logit_bias:
            place = self._of(token)  # first, since it may replace the array
            self._bias[place] = bias
        for token in dict.fromkeys(prompt_ids) if params.repetition_penalty != 1 else ():
            place = self._of(token)
            self._times[place] = 0

    def note(self, token: int) -> None:
        """Record a token of the answer."""
        if self._counts:
            place = self._of(token)
            self._times[place] = max(self._times[place], 0) + 1

    def changes(self, guesses: tuple[int, ...] = ()) -> Changes:
        """Changes to the next token's logits, or to those of the token after `guesses`; valid until the next `note`."""
        params, known = self._params, len(self._place)
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        each = self._ids[:known], self._times[:known], self._bias[:known]
        return Changes(*penalties, *each, guesses)

    def _of(self, token: int) -> int:
        """The token's index, assigned on first use."""
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = len(self._place)
            if place == len(self._ids):
                self._ids, self._times, self._bias = (
                    np.concatenate([array, np.zeros_like(array)]) for array in (self._ids, self._times, self._bias)
                )
            self._ids[place], self._times[place] = token, BIAS_ONLY
        return place
