"""Table IV: Llama 3.1 on 16 sockets, one user, 8K tokens of context; the two larger models with speculative decoding.

In a speculative step the draft model generates k tokens one by one, and the model verifies them, adding one more. With
acceptance rate a, a step gives (1 - a^(k+1)) / (1 - a) tokens. Neither the draft model nor a is published.

Predicted: one token per step. Fitted: the exposed share of launches and exchange latency, to the 8B row; then a, to the
other two.

Knows nothing about how a step is priced.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from coterie.core.shapes import Sizes
from coterie.plan.paper.machine import SECTION, Expert, spec
from coterie.plan.paper.published import compare, published
from coterie.plan.paper.row import Exhibit, Fitted, Kind, Method, bars

NAME, TITLE = "table-4", "Table IV"
RACK, CONTEXT = "sn40l-rack", 8192
DRAFT = "llama-3.1-8b"
DRAFTED = 8  # draft tokens per step: SambaNova names such programs `sd9`, presumably for 9 verified tokens
NO_DRAFT = "one token a step: the paper used speculative decoding"
BOUND = 0.999999
HALVINGS = 30
STEP = Sizes.decode(1, CONTEXT)
ENDS = tuple(f"peers.latency={end},program_device={end}" for end in ("high", "low"))


def expert(model: str) -> Expert:
    """A model on the rack, with whole decoder layers as sections, launched by the hardware."""
    return Expert(spec(RACK), model, SECTION, "device")


@cache
def step_s(model: str, sizes: Sizes, left: float = 1.0) -> float:
    """Time of a step in which only the share `left` of launches and exchange latency is exposed."""
    machine = spec(RACK)
    if machine.peers is not None:
        machine = replace(machine, peers=replace(machine.peers, latency_s=left * machine.peers.latency_s))
    step = replace(expert(model), spec=machine).step(sizes)
    return step.seconds - (1.0 - left) * sum(row.launch_s for row in step.rows)


@cache
def overhead_left() -> float:
    """The exposed share of launches and exchange latency, 0 to 1, that reproduces the draft model's published rate."""
    wanted_s, low, high = 1.0 / published(NAME)[DRAFT].value, 0.0, 1.0
    for _ in range(HALVINGS):
        # How much latency is exposed depends on the overlapped traffic: the step time is monotonic, but not linear.
        middle = (low + high) / 2
        low, high = (middle, high) if step_s(DRAFT, STEP, middle) < wanted_s else (low, middle)
    return (low + high) / 2


def tokens_per_step(accepted: float, drafted: int) -> float:
    """Expected tokens per speculative step."""
    return (1.0 - accepted ** (drafted + 1)) / (1.0 - accepted)


def speculative_per_s(model: str, accepted: float) -> float:
    """Tokens per second with DRAFTED draft tokens per step."""
    return tokens_per_step(accepted, DRAFTED) / speculative_step_s(model)


def speculative_step_s(model: str) -> float:
    """Time of a speculative step: k steps of the draft model, and one of the model over k + 1 tokens."""
    seen, left = DRAFTED + 1, overhead_left()
    verify = Sizes(T=seen, B=1, R=seen, context_tokens=CONTEXT, pairs=seen * CONTEXT)
    return DRAFTED * step_s(DRAFT, STEP, left) + step_s(model, verify, left)


def acceptance(*models: str) -> float:
    """The acceptance rate that reproduces the published rates of these models best (least squares of logarithms)."""
    low, high = 0.0, BOUND
    for _ in range(60):
        # Rates grow with acceptance, so the mean log error has at most one zero within the bounds.
        middle = (low + high) / 2
        product = 1.0
        for model in models:
            product *= speculative_per_s(model, middle) / published(NAME)[model].value
        low, high = (middle, high) if product < 1 else (low, middle)
    return (low + high) / 2


def table_4() -> Exhibit:
    """The three rates: predicted without speculation; with it, using one fitted acceptance rate for both models."""
    rows = []
    large = [model for model in published(NAME) if model != DRAFT]
    accepted = acceptance(*large)
    left = overhead_left()
    for model, value in published(NAME).items():
        note = NO_DRAFT if model in large else ""
        rows.append(compare(TITLE, value, 1.0 / step_s(model, STEP), Kind.PREDICTED, Method.MACHINE, note))
        ours, note = 1.0 / step_s(model, STEP, left), f"{left:.0%} of launches and of exchanges' latency, fitted to it"
        if model in large:
            ours = speculative_per_s(model, accepted)
            note = f"{DRAFT} drafts {DRAFTED} tokens a step; acceptance {accepted:.3f}, fitted to both larger models"
        rows.append(compare(TITLE, value, ours, Kind.FITTED, Method.MACHINE, note))
    left_out = [
        abs(speculative_per_s(model, acceptance(*(m for m in large if m != model))) / published(NAME)[model].value - 1)
        for model in large
    ]
    overhead = Fitted(
        "launches and exchanges' latency on the rack that the work does not hide",
        left,
        "share",
        f"{DRAFT} of Table IV (one value, one constant)",
    )
    fitted = Fitted(
        "chance that a drafted token is accepted",
        accepted,
        "share",
        f"{' and '.join(large)} of Table IV (two values, one constant); that {DRAFT} drafts, and {DRAFTED} tokens, "
        "is assumed",
        sum(left_out) / len(left_out),
    )
    about = "Tokens a second for one user, Llama 3.1 on 16 sockets, BF16, 8K tokens of context"
    slow, fast = (1 / Expert(spec(f"{RACK}:{ends}"), DRAFT, SECTION, "device").step(STEP).seconds for ends in ENDS)
    looped = ", ".join(f"{1 / expert(model).step(STEP).looped_s:.0f}" for model in published(NAME))
    notes = (
        f"One token a step in kernels that loop over equal layers (arXiv 2410.23668; this paper does not say that it "
        f"has them): {looped} tokens/s for {', '.join(published(NAME))}",
        f"{DRAFT} makes {slow:.0f} to {fast:.0f} tokens/s as the latency of exchanges and the hardware's program load, "
        "which nobody published, go from the high to the low end of their ranges",
        f"A step of {large[-1]} with speculation takes {speculative_step_s(large[-1]) * 1e3:.1f} ms and gives "
        f"{tokens_per_step(accepted, DRAFTED):.1f} tokens",
    )
    return Exhibit(NAME, TITLE, about, tuple(rows), (overhead, fitted), (bars("Llama 3.1", "tokens/s", rows),), notes)
