"""Table IV: Llama 3.1 on 16 sockets, one user, 8K tokens of context; the two larger models with speculative decoding.

A step of speculation: the draft model writes k tokens one by one, the model verifies them and one more in one step.
When each is accepted with chance a, a step gives (1 - a^(k+1)) / (1 - a) tokens. Neither the draft model nor a is
published.

Knows nothing about how a step is priced.
"""

from __future__ import annotations

from coterie.core.shapes import Sizes
from coterie.plan.paper.machine import SECTION, Expert, spec
from coterie.plan.paper.published import beside, published
from coterie.plan.paper.row import Exhibit, Fitted, Kind, Method, bars

NAME, TITLE = "table-4", "Table IV"
RACK, CONTEXT = "sn40l-rack", 8192
DRAFT = "llama-3.1-8b"
DRAFTED = 8  # tokens drafted a step: SambaNova names such programs `sd9`, which we read as 9 verified tokens
NO_DRAFT = "one token a step: the paper used speculative decoding"
BOUND = 0.999999


def expert(model: str) -> Expert:
    """A model on the rack, whole decoder layers as sections, started by the hardware."""
    return Expert(spec(RACK), model, SECTION, "device")


def plain_per_s(model: str) -> float:
    """Tokens a second, one a step."""
    return 1.0 / expert(model).step(Sizes.decode(1, CONTEXT)).seconds


def tokens_per_step(accepted: float, drafted: int) -> float:
    """Tokens that a step of speculation gives, on average."""
    return (1.0 - accepted ** (drafted + 1)) / (1.0 - accepted)


def speculative_per_s(model: str, accepted: float) -> float:
    """Tokens a second with DRAFTED tokens of the draft model a step."""
    return tokens_per_step(accepted, DRAFTED) / speculative_step_s(model)


def speculative_step_s(model: str) -> float:
    """A step: k of the draft model, and one of the model that sees k + 1 new tokens of one sequence."""
    seen = DRAFTED + 1
    verify = Sizes(T=seen, B=1, R=seen, context_tokens=CONTEXT, pairs=seen * CONTEXT)
    return DRAFTED / plain_per_s(DRAFT) + expert(model).step(verify).seconds


def acceptance(*models: str) -> float:
    """The chance of acceptance at which the published rates of these models come out best (least squares of logs)."""
    low, high = 0.0, BOUND
    for _ in range(60):
        # Rates grow with acceptance, so the mean log error has one zero, or lies outside the bounds.
        middle = (low + high) / 2
        product = 1.0
        for model in models:
            product *= speculative_per_s(model, middle) / published(NAME)[model].value
        low, high = (middle, high) if product < 1 else (low, middle)
    return (low + high) / 2


def table_4() -> Exhibit:
    """The three rates: predicted without speculation, and with it, one fitted acceptance for both larger models."""
    rows = []
    large = [model for model in published(NAME) if model != DRAFT]
    accepted = acceptance(*large)
    for model, value in published(NAME).items():
        note = NO_DRAFT if model in large else ""
        rows.append(beside(TITLE, value, plain_per_s(model), Kind.PREDICTED, Method.MACHINE, note))
        if model in large:
            note = f"{DRAFT} drafts {DRAFTED} tokens a step; acceptance {accepted:.3f}, fitted to both larger models"
            ours = speculative_per_s(model, accepted)
            rows.append(beside(TITLE, value, ours, Kind.FITTED, Method.MACHINE, note))
    left_out = [
        abs(speculative_per_s(model, acceptance(*(m for m in large if m != model))) / published(NAME)[model].value - 1)
        for model in large
    ]
    fitted = Fitted(
        "chance that a drafted token is accepted",
        accepted,
        "share",
        f"{' and '.join(large)} of Table IV (two values, one constant); that {DRAFT} drafts, and {DRAFTED} tokens, "
        "is assumed",
        sum(left_out) / len(left_out),
    )
    about = "Tokens a second for one user, Llama 3.1 on 16 sockets, BF16, 8K tokens of context"
    notes = (
        f"A step of {large[-1]} with speculation takes {speculative_step_s(large[-1]) * 1e3:.1f} ms and gives "
        f"{tokens_per_step(accepted, DRAFTED):.1f} tokens",
    )
    return Exhibit(NAME, TITLE, about, tuple(rows), (fitted,), (bars("Llama 3.1", "tokens/s", rows),), notes)
