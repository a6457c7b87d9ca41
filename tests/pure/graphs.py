"""Random small decoders, and the reference interpreter playing them step by step over a paged KV state.

Knows nothing about devices or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.closed import ClosedCost
from coterie.graph.compile import compile_graph
from coterie.graph.cost import region_cost
from coterie.graph.ir import Graph, Op
from coterie.graph.reference import KvState, Reference
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.families import FAMILIES
from coterie.models.family import FeedForward
from coterie.models.registry import decoder_graph, weight_shapes
from coterie.models.rope import Rope

# The same examples every time: a test that fails, fails for everyone.
STEADY = settings(deadline=None, derandomize=True, database=None)
FLOATS = (DType.F32, DType.F16, DType.BF16)


def decoder(dtypes=(DType.F32,), rotated=None, interleaved=False, **changes) -> Graph:
    """A decoder of two small layers; `changes` are fields of ModelConfig.

    `rotated`: channels of a head that are, if not all; `interleaved`: in pairs of neighbours.
    """
    config = ModelConfig(
        family="llama",
        vocab_size=37,
        hidden_size=12,
        intermediate_size=20,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        norm_eps=1e-5,
        rope=Rope("default", (), 1.0, 512),
        windows=(0, 0),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied_embeddings=False,
    )
    config = replace(config, **changes)
    pairs = (rotated or config.head_dim) // 2
    inv_freq = tuple(float(f) for f in np.float32(100.0) ** -np.linspace(0, 1, pairs, endpoint=False))
    config = replace(config, rope=replace(config.rope, inv_freq=inv_freq, interleaved=interleaved))
    names = weight_shapes(config)
    return decoder_graph(config, {name: dtypes[i % len(dtypes)] for i, name in enumerate(names)})


def of_family(name, **changes):
    """What makes a decoder one of this family, as changes of ModelConfig; its biases are on."""
    family = FAMILIES[name]
    keys = ("norm", "qk_norm", "qk_norm_all_heads", "feed_forward", "alibi", "parallel_norms", "position_offset")
    keys += ("names", "norm_offset")
    flags = {key: getattr(family, key) for key in keys}
    biases = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), True)
    return {"family": name, **flags, **biases, **changes}


def gemma(version, **changes):
    """Changes of ModelConfig that make a decoder a Gemma, with caps that bend its small numbers."""
    local = Rope("default", (0.9, 0.3, 0.05), 1.0, 512)
    caps = {"attention_cap": 0.8, "logits_cap": 0.5, "windows": (3, 0)} if version == 2 else {}
    own = {"windows": (3, 0), "local_rope": local} if version == 3 else caps
    name = {1: "gemma", 2: "gemma2", 3: "gemma3_text"}[version]
    no_biases = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), False)
    return of_family(name, **{**no_biases, **own, "embed_scale": 2.5, "attention_scale": 0.3, **changes})


# What a pass over graphs may get wrong of a decoder, a row each, as changes of ModelConfig.
VARIANTS = {
    "scaled": {"embed_scale": 3.5, "attention_scale": 0.2, "residual_scale": 0.6, "logits_scale": 0.25},
    "rotated in part": {"rotated": 4},
    "no gate": {"feed_forward": FeedForward.RELU_SQUARED},
    "interleaved": {"interleaved": True},
    "norm after rope": {"qk_norm": True, "qk_norm_after_rope": True},
    "interleaved in part": {"interleaved": True, "rotated": 4, "qk_norm": True},
    "not all rotated": {"layers_without_rope": (1,), "qk_norm": True},
    "everything": dict.fromkeys(("qk_norm", "qkv_bias", "o_bias", "mlp_bias", "tied_embeddings"), True),
}


def with_each(shapes, **changes):
    """The rows with these changes too."""
    return {name: {**changes, **shape} for name, shape in shapes.items()}


# Decoders that two and four ranks can split.
SPLIT = {
    **VARIANTS,
    "bloom": of_family("bloom", num_kv_heads=4),
    "opt": of_family("opt", num_kv_heads=4),
    "falcon": of_family("falcon", num_kv_heads=4, head_dim=4),
    "olmo2": of_family("olmo2"),
    **{f"gemma {n}": gemma(n) for n in (1, 2, 3)},
    "gqa": {},
    "mqa": {"num_kv_heads": 1},
    "window": {"windows": (3, 0)},
}
SPLIT = with_each(SPLIT, vocab_size=40)

# Decoders that training graphs are made of.
TRAINABLE = st.builds(
    decoder,
    num_kv_heads=st.sampled_from([1, 2, 4]),
    qkv_bias=st.booleans(),
    qk_norm=st.booleans(),
    windows=st.sampled_from([(0, 0), (3, 2)]),
    embed_scale=st.sampled_from([1.0, 3.5]),
    residual_scale=st.sampled_from([1.0, 0.6]),
    logits_scale=st.sampled_from([1.0, 0.25]),
    layers_without_rope=st.sampled_from([(), (1,)]),
    rotated=st.sampled_from([6, 4]),
    density=st.sampled_from([1.0, 0.25]),
)


def gpt(form, density):
    """Layer norms, biases, learned positions, gelu; its linears sparse."""
    shape = of_family("opt", num_kv_heads=4, density=density)
    return decoder(**{**shape, "feed_forward": FeedForward(form)})


GPTS = st.builds(gpt, st.sampled_from(["erf", "tanh"]), st.sampled_from([0.5, 1.0]))


@st.composite
def decoders(draw) -> Graph:
    """Decoders of any flags and sizes, with a type per weight."""
    kv_heads, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    flags = {name: draw(st.booleans()) for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "tied_embeddings")}
    scales = {name: draw(st.sampled_from((1.0, 0.6))) for name in ("embed_scale", "residual_scale", "logits_scale")}
    head_dim = 2 * draw(st.integers(1, 5))
    return decoder(
        dtypes=tuple(draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3))),
        vocab_size=draw(st.integers(1, 70)),
        hidden_size=draw(st.integers(1, 40)),
        intermediate_size=draw(st.integers(1, 60)),
        num_layers=layers,
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rotated=2 * draw(st.integers(1, head_dim // 2)),
        layers_without_rope=tuple(draw(st.sets(st.integers(0, layers - 1)))),
        windows=tuple(draw(st.lists(st.sampled_from((0, 1, 7)), min_size=layers, max_size=layers))),
        **flags,
        **scales,
    )


@st.composite
def any_decoders(draw) -> Graph:
    """Decoders of every family, those that only modelled machines run too."""
    name = draw(st.sampled_from(["llama", "bloom", "falcon", "opt"]))
    if name == "llama":
        return draw(decoders())
    kv_heads = draw(st.integers(1, 3))
    share = draw(st.integers(1, 3)) if name == "falcon" else 1
    changes = {"parallel_norms": draw(st.integers(1, 2))} if name == "falcon" else {}
    if name == "opt":
        changes = {"density": draw(st.sampled_from([1.0, 0.5, 0.125]))}
    return decoder(
        dtypes=(draw(st.sampled_from(FLOATS)),),
        **of_family(name, num_kv_heads=kv_heads, num_heads=kv_heads * share, **changes),
        hidden_size=draw(st.integers(1, 40)),
        head_dim=2 * draw(st.integers(1, 5)),
        tied_embeddings=draw(st.booleans()),
    )


@st.composite
def step_sizes(draw) -> Sizes:
    """Sizes of a step that can be: each sequence has new tokens behind cached ones; empty steps too."""
    sequences = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), max_size=4))
    return sizes_of(*sequences)


def sizes_of(*sequences) -> Sizes:
    """Sizes of a step, from (new tokens, cached tokens) per sequence; one row of each is sampled."""
    pairs = sum(cached + i + 1 for new, cached in sequences for i in range(new))
    context = sum(new + cached for new, cached in sequences)
    return Sizes(sum(new for new, _ in sequences), len(sequences), len(sequences), context, pairs)


def change_op(graph: Graph, name: str, /, **changes) -> Graph:
    """The graph with the op of this full name changed; `attrs` replaces all of them."""
    (found,) = [op for op in graph.ops if op.name == name]
    if "attrs" in changes:
        changes["attrs"] = MappingProxyType(dict(changes["attrs"]))
    return with_ops(graph, (replace(op, **changes) if op is found else op for op in graph.ops))


def change_operand(graph: Graph, name: str, position: int, value: str) -> Graph:
    """The graph whose op of this full name reads another value there."""
    inputs = list(the_op(graph, name).inputs)
    inputs[position] = value
    return change_op(graph, name, inputs=tuple(inputs))


def change_attributes(graph: Graph, name: str, /, **changes) -> Graph:
    """The graph whose op of this full name has these attributes changed, and its others as they are."""
    return change_op(graph, name, attrs={**the_op(graph, name).attrs, **changes})


def with_ops(graph: Graph, ops) -> Graph:
    """The graph with other ops."""
    return replace(graph, ops=tuple(ops))


def change_value(graph: Graph, name: str, /, **changes) -> Graph:
    """The graph with one value changed."""
    return with_values(graph, replace(graph.values[name], **changes))


def with_values(graph: Graph, *values) -> Graph:
    """The graph with more values, or others of the same names."""
    return replace(graph, values=MappingProxyType({**graph.values, **{value.name: value for value in values}}))


def the_op(graph: Graph, name: str) -> Op:
    """The op of this full name."""
    return next(op for op in graph.ops if op.name == name)


def random_weights(graph: Graph, seed=0):
    """Float32 arrays that hold only what each weight's type can hold; a sparse one has as many elements as it may."""
    rng = np.random.default_rng(seed)
    weights = {}
    for value in graph.weights:
        numbers = rng.standard_normal(value.shape) / value.shape[-1] ** 0.5
        if len(value.shape) == 1:
            numbers = 1 + 0.1 * rng.standard_normal(value.shape)
        if value.density != 1.0:
            numbers.flat[rng.permutation(numbers.size)[round(value.density * numbers.size) :]] = 0.0
        weights[value.name] = to_f32(from_f32(numbers.astype(np.float32), value.dtype), value.dtype)
    return weights


@dataclass(frozen=True)
class Choice:
    """Settings of a sampled row; greedy unless told otherwise."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    changes: None = None


@dataclass
class Player:
    """Plays a graph: sequences own pages drawn from a shuffled pile, and remember how long they are."""

    graph: Graph
    tokens_per_block: int = 4
    num_blocks: int = 64
    seed: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        self.reference = Reference(self.graph, random_weights(self.graph))
        self.state = KvState(self.graph, self.num_blocks, self.tokens_per_block)
        self.pile = np.random.default_rng(self.seed).permutation(self.num_blocks).tolist()
        self.logits = next(op.inputs[0] for op in self.graph.ops if op.kind == "sample")

    def rows(self, *chunks):
        """Rows of a step that feeds (sequence id, tokens) pairs; every token is sampled."""
        tokens, positions, sequence, tables = [], [], [], []
        for row, (name, chunk) in enumerate(chunks):
            start = self.lengths.get(name, 0)
            self.lengths[name] = start + len(chunk)
            table = self.tables.setdefault(name, [])
            while len(table) * self.tokens_per_block < self.lengths[name]:
                table.append(self.pile.pop())
            tokens += list(chunk)
            positions += range(start, start + len(chunk))
            sequence += [row] * len(chunk)
            tables.append(table)
        width = max((len(table) for table in tables), default=0)
        named = {
            "tokens": tokens,
            "positions": positions,
            "sequence": sequence,
            "block_tables": [table + [0] * (width - len(table)) for table in tables] or np.zeros((0, 0)),
            "rows": range(len(tokens)),
        }
        return {name: np.array(values, dtype=np.int32) for name, values in named.items()}

    def greedy(self, rows):
        """Settings that draw the likeliest token for each row."""
        return [Choice()] * len(rows["rows"])

    def play(self, *chunks, settings=None):
        """Every value of a step."""
        rows = self.rows(*chunks)
        return self.reference.run(rows, settings or self.greedy(rows), self.state)

    def feed(self, *chunks):
        """The logits of every token fed."""
        return self.play(*chunks)[self.logits]


def check_refused(graph: Graph, change, facts) -> None:
    """The changed graph is refused in a sentence with these facts."""
    with pytest.raises(UsageError) as error:
        verify(change(graph))
    assert all(fact in str(error.value) for fact in facts), error.value


def check_pieces(graph: Graph) -> None:
    """A prompt in pieces, in other blocks and beside others, has the logits that it has as a whole."""
    rng = np.random.default_rng(0)
    prompt, other = ([int(t) for t in rng.integers(0, 37, count)] for count in (17, 9))
    whole, player = Player(graph).feed((0, prompt)), Player(graph, seed=1)
    found = [player.feed((0, prompt[:1])), player.feed((1, other), (0, prompt[1:3]))[len(other) :]]
    found += [player.feed((0, prompt[3:16]), (1, [5]))[:13], player.feed((2, [1]), (0, prompt[16:]))[1:]]
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=0, atol=5e-5)


def check_closed_costs(graph: Graph, rule_set: str) -> None:
    """Each region's cost by its form is what counting gives, and none is counted anew."""
    program = compile_graph(graph, rule_set)
    for region in program.regions:
        form = ClosedCost(program, region)
        for sizes in (sizes_of((1, 7)), sizes_of((1, 3), (1, 30)), sizes_of((9, 0), (4, 6), (1, 1))):
            assert form.of(sizes) == region_cost(program, region, sizes)
        assert not form.is_counted, region.name
