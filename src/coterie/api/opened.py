"""Opens a composition's experts: models and tokenizers. In a folder, those that cannot be opened are left out.

In a composition file, which names its experts, one that cannot be opened or has no room is an error, unless the
composition `skips_unservable` such experts.
Knows nothing about queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from coterie.api.assemble import Options, as_served, is_synthetic, make_spec, open_models
from coterie.api.sampling import GREEDY, with_defaults
from coterie.api.texts import Text, open_texts
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.composition.composition import Composition
from coterie.composition.routing import Routing
from coterie.composition.validate import name_hint
from coterie.core.errors import LargestExpertError, UnsupportedError, UsageError
from coterie.engine.assembly import Plan, plan
from coterie.engine.experts import open_servable, without
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class Opened:
    """Models and tokenizers by expert. `composition`: the one requested, without the experts left out."""

    composition: Composition
    models: dict[str, Model]
    texts: dict[str, Text]


@dataclass(frozen=True, slots=True)
class MemberSetup:
    """What a Coterie gets as one of several.

    The shared opened experts, its device's memory plan, the shared counter of query ids, and the routing that another
    one has been taught; None: it must be taught.
    """

    opened: Opened
    made: Plan
    numbers: Iterator[int]
    routing: Routing | None = None


def open_all(composition: Composition, options: Options) -> Opened:
    """Open every expert, except those that may be left out and cannot be opened.

    On a synthetic device sampling defaults are greedy. Raises what `open_models`, `open_texts` and `without` do.
    """
    whose = GREEDY if is_synthetic(options.device) else options.sampling
    if not composition.skips_unservable:
        models = _sampled(open_models(composition, options), whose)
        texts = open_texts(models)
        return Opened(composition, _drafted(models, texts, options.draft), texts)
    texts = {}
    composition, found = open_servable(
        composition, lambda model: texts.update(open_texts({model.name: model})), is_synthetic(options.device)
    )
    models = _sampled(as_served(composition.name, found, options), whose)
    return Opened(composition, _drafted(models, texts, options.draft), texts)


def planned(opened: Opened, options: Options) -> tuple[Opened, Plan]:
    """The memory plan for these experts. Where the composition allows it, experts too large even alone are left out.

    Raises CapacityError; in that case only if none is left or the common draft expert is too large; or as `without`.
    """
    spec = make_spec(options)
    while True:
        try:
            return opened, plan(opened.models, spec, options)
        except LargestExpertError as error:
            name, found = error.expert, opened.composition
            if (
                not found.skips_unservable
                or found.names in ((), (name,))
                or name not in found.names
                or name == options.draft
            ):
                raise
            rest = {other: model for other, model in opened.models.items() if other != name}
            found, models = without(found, {**found.left_out, name: error}, rest)
            opened = Opened(found, models, {other: opened.texts[other] for other in models})


def planned_on_each(opened: Opened, each: Sequence[Options]) -> tuple[Opened, list[Plan]]:
    """The memory plan for each of several devices. An expert without room on one is left out of all; see `planned`."""
    while True:
        plans, before = list[Plan](), opened.composition.names
        for options in each:
            opened, made = planned(opened, options)
            plans.append(made)
        if opened.composition.names == before:
            return opened, plans


def with_draft(name: str, models: Mapping[str, Model], texts: Mapping[str, Text], default: str = "") -> Model:
    """An expert's model with its draft expert: the one the composition names, else `default` if that is suitable.

    Raises UnsupportedError if the named one is unsuitable, UsageError if there is no such expert.
    """
    model = models[name]
    draft = model.draft or ("" if name == default else default)
    if not draft:
        return model
    if draft not in models:
        raise UsageError("--draft", f"{draft!r} is not an expert of this composition", name_hint(draft, list(models)))
    why = _unfit(model, models[draft], texts[name].tokenizer, texts[draft].tokenizer)
    if why and model.draft:
        remedy = "name an expert with the same tokenizer that generates text, or leave draft out"
        raise UnsupportedError(f"{name}: draft", f"{draft} cannot be its draft: {why}", remedy)
    return replace(model, draft="" if why else draft)


def _unfit(model: Model, small: Model, its: Tokenizer | None, own: Tokenizer | None) -> str:
    """Why one model cannot be another's draft; empty: it can."""
    if not (model.samples_tokens and small.samples_tokens):
        return "one of them only gives embeddings"
    if model.kv.recurrent or small.kv.recurrent:
        return "one of them has recurrent state, which cannot be rolled back"
    if its is None or own is None:
        sizes = model.config.vocab_size, small.config.vocab_size
        return "" if sizes[0] == sizes[1] else f"their vocabularies have {sizes[0]} and {sizes[1]} tokens"
    apart = own.differs(its)
    return f"their vocabularies are not the same, as {apart}" if apart else ""


def _drafted(models: Mapping[str, Model], texts: Mapping[str, Text], default: str) -> dict[str, Model]:
    found = {name: with_draft(name, models, texts, default) for name in models}
    if default and not any(model.draft == default for model in found.values()):
        fact = f"{default} cannot be the draft of any expert of this composition"
        raise UsageError("--draft", fact, "name one that has the vocabulary of others, or leave it out")
    return found


def _sampled(models: Mapping[str, Model], whose: str) -> dict[str, Model]:
    return {name: with_defaults(model, whose) for name, model in models.items()}
