"""A world of one large expert and others that may guess for it."""

from __future__ import annotations

import engine_world
from engine_world import GuessedDevice, world

from coterie.engine.policy import Policy
from coterie.engine.speculate.guess import BETWEEN_RUNS_BYTES, Price

# The sum of a name's letters is what an expert draws by: the first two say the same, the third does two times of five.
LARGE, TWIN, OTHER = "few-ad", "few-bc", "few-ag"
SIZES = {LARGE: 20, TWIN: 1, OTHER: 7}


def drafting(small=TWIN, near=40, kv_blocks=64, **how):
    policy = how.pop("policy", None) or Policy(max_guesses=15, **how)
    return world(SIZES, near, kv_blocks, policy, drafts={LARGE: small})


def drafted(w):
    return w.engine.metrics.drafted_tokens, w.engine.metrics.accepted_drafted_tokens


def priced(monkeypatch):
    """A step takes as long as an expert is large, and a row more nearly nothing; nothing is looked up."""
    monkeypatch.setattr(engine_world, "TellingDevice", GuessedDevice)
    monkeypatch.setattr("coterie.engine.speculate.guess._sources", lambda sequence, tally: ())
    large = 100 * BETWEEN_RUNS_BYTES

    def price(expert, balance):
        first = expert.layout.size_bytes / 2**12 / 20 * large
        return Price(first, first / 20, first / 20, 0.0, 0.0)

    monkeypatch.setattr(Price, "of", price)
