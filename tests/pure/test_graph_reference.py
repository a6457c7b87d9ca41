"""The reference: each op by an independent formula, and one answer however a sequence is stepped and paged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import (
    STEADY,
    VARIANTS,
    Choice,
    Player,
    any_decoders,
    change_value,
    decoder,
    gemma,
    of_family,
    random_weights,
    the_op,
)

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.graph.compile import compile_graph
from coterie.graph.ir import Kind
from coterie.graph.ops import BF16
from coterie.graph.reference import KvState, Reference, Step, run_op
from coterie.graph.rounding import with_rounding

CLOSE = 2e-5  # float32, relative to the largest logit: matrix products add in another order for other row counts
SHAPES = {
    "bloom": of_family("bloom", num_kv_heads=4),
    "falcon": of_family("falcon", num_kv_heads=2, head_dim=4),
    "olmo2": of_family("olmo2"),
    **{f"gemma {n}": gemma(n) for n in (1, 2, 3)},
    "gqa": {},
    "mqa": {"num_heads": 3, "num_kv_heads": 1},
    "mha": {"num_kv_heads": 4},
    **VARIANTS,
    "window": {"windows": (7, 0)},
    "narrow": {"windows": (1, 3)},
}
TYPES = {"f32": (DType.F32,), "bf16": (DType.BF16,)}


@pytest.fixture(params=[(shape, types) for shape in SHAPES for types in TYPES], ids="-".join)
def graph(request):
    shape, types = request.param
    return decoder(TYPES[types], **SHAPES[shape])


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, 37, length).tolist()


def assert_close(found, wanted, graph):
    """Float32 rounding where K and V are float32; else one of them may round the other way, by 2^-8 of itself."""
    bound = CLOSE if graph.values["kv"].dtype is DType.F32 else 4e-3
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0) <= bound * np.abs(wanted).max(initial=1)


@pytest.mark.parametrize("sizes", [(1,) * 20, (7, 13), (19, 1), (3, 3, 14)])
def test_chunks_and_steps_equal_the_whole(graph, sizes):
    tokens = prompt(20)
    whole = Player(graph).feed((0, tokens))
    player, parts, start = Player(graph, seed=1), [], 0
    for size in sizes:
        parts.append(player.feed((0, tokens[start : start + size])))
        start += size
    assert_close(np.concatenate(parts), whole, graph)


def test_a_ragged_batch_equals_each_alone(graph):
    a, b, c = prompt(11, 1), prompt(6, 2), prompt(9, 3)
    alone = [Player(graph).feed((0, tokens)) for tokens in (a, b, c)]
    player = Player(graph, seed=2)
    first = player.feed((0, a[:5]), (1, b[:1]), (2, c[:8]))
    second = player.feed((2, c[8:]), (0, a[5:]), (1, b[1:]))
    assert_close(np.concatenate([first[:5], second[1:7]]), alone[0], graph)
    assert_close(np.concatenate([first[5:6], second[7:]]), alone[1], graph)
    assert_close(np.concatenate([first[6:], second[:1]]), alone[2], graph)


@pytest.mark.parametrize("tokens_per_block", [1, 3, 16, 64])
def test_pages_change_nothing(graph, tokens_per_block):
    """To the bit: where a token's keys lie is no part of the arithmetic."""
    tokens = prompt(20)
    expected = Player(graph, tokens_per_block=4, seed=0).feed((0, tokens))
    for seed in (1, 2):
        player = Player(graph, tokens_per_block=tokens_per_block, seed=seed)
        np.testing.assert_array_equal(player.feed((0, tokens)), expected)


def test_pages_of_others_are_not_touched(graph):
    player = Player(graph)
    player.feed((0, prompt(9)))
    own = player.tables[0]
    before = player.state.pages[own].copy()
    player.feed((1, prompt(14, 5)))
    np.testing.assert_array_equal(player.state.pages[own], before)


def test_kv_holds_only_what_its_type_holds():
    for dtype, bits in ((DType.BF16, 16), (DType.F16, 13)):
        player = Player(decoder((dtype,)))
        player.feed((0, prompt(9)))
        used = player.state.pages.view(np.uint32)
        assert used.any()
        assert not (used & ((1 << bits) - 1)).any()


def test_a_window_forgets_what_is_behind_it():
    """One layer: the last token sees the last three only, so another beginning changes nothing, within it does."""
    graph = decoder(num_layers=1, windows=(3,))
    tokens = prompt(12)
    last = Player(graph).feed((0, tokens))[-1]
    for changed, same in ((8, True), (9, False)):
        other = [*tokens]
        other[changed] = (other[changed] + 1) % 37
        assert np.array_equal(Player(graph).feed((0, other))[-1], last) is same


def test_the_future_is_not_seen(graph):
    tokens = prompt(12)
    other = [*tokens[:11], (tokens[11] + 1) % 37]
    one, two = Player(graph).feed((0, tokens)), Player(graph).feed((0, other))
    np.testing.assert_array_equal(one[:11], two[:11])
    assert not np.array_equal(one[11], two[11])


def test_positions_matter(graph):
    tokens = [5, 6, 7, 8, 9, 10, 11]
    one, two = Player(graph).feed((0, tokens)), Player(graph).feed((0, [6, 5, *tokens[2:]]))
    assert not np.allclose(one[2], two[2], rtol=0, atol=1e-7)


def test_an_empty_step(graph):
    values = Player(graph).play()
    assert values["next_tokens"].shape == (0,)
    assert values["head/logits"].shape == (0, 37)
    assert values["layers.1/attention"].shape[0] == 0


def test_only_the_rows_asked_for_are_sampled(graph):
    tokens = prompt(9)
    whole = Player(graph).feed((0, tokens))
    player = Player(graph)
    rows = player.rows((0, tokens)) | {"rows": np.array([8, 2], np.int32)}
    values = player.reference.run(rows, [Choice()] * 2, player.state)
    assert_close(values["head/logits"], whole[[8, 2]], graph)
    np.testing.assert_array_equal(values["next_tokens"], values["head/logits"].argmax(axis=-1))


def test_the_random_number_is_that_of_the_sampled_position():
    """A sequence draws the same tokens whatever shares its batch and however it is chunked."""
    graph, tokens = decoder(vocab_size=37), prompt(9)
    warm = [Choice(temperature=5.0, seed=s) for s in range(9)]
    whole = Player(graph).play((0, tokens), settings=warm)["next_tokens"]
    player = Player(graph)
    first = player.play((0, tokens[:4]), settings=warm[:4])["next_tokens"]
    second = player.play((1, [3]), (0, tokens[4:]), settings=[Choice(), *warm[4:]])["next_tokens"]
    np.testing.assert_array_equal(np.concatenate([first, second[1:]]), whole)


@settings(STEADY, max_examples=15)
@given(any_decoders())
def test_each_region_alone_gives_what_the_whole_step_gives(graph):
    V = graph.values["head/logits"].shape[-1]
    tokens = [t % V for t in prompt(7)]
    for rule_set in ("none", "cache", "served"):
        player = Player(graph)
        player.feed((0, tokens[:3]))
        rows = player.rows((0, tokens[3:]))
        sampling = [Choice(temperature=1.0, seed=7)] * 4
        program = compile_graph(graph, rule_set)
        again = KvState(graph, player.num_blocks, player.tokens_per_block)
        again.pages[:] = player.state.pages
        values = player.reference.run(rows, sampling, player.state)
        for region in program.regions:
            out = player.reference.run_region(region, values, sampling, again)
            kinds = (Kind.TENSOR, Kind.OUTPUT)
            assert set(out) == {name for name in region.outputs if graph.values[name].kind in kinds}
            for name, found in out.items():
                np.testing.assert_array_equal(found, values[name], err_msg=name)
        np.testing.assert_array_equal(again.pages, player.state.pages)


def test_a_region_sees_its_inputs_only():
    graph = decoder()
    player = Player(graph)
    values = player.play((0, prompt(3)))
    region = next(r for r in compile_graph(graph, "cache").regions if r.kernel == "norm_gate_up_silu_mul")
    del values["layers.0/attention_out"]
    with pytest.raises(KeyError, match="attention_out"):
        player.reference.run_region(region, values, [], player.state)


def test_weights_that_are_missing_or_of_another_shape_are_named():
    graph = decoder(qkv_bias=True)
    weights = random_weights(graph)
    bias = weights.pop("model.layers.1.self_attn.k_proj.bias")
    with pytest.raises(UsageError, match=r"k_proj\.bias is None, not \(12,\)"):
        Reference(graph, weights)
    with pytest.raises(UsageError, match=r"k_proj\.bias is \(11,\), not \(12,\)"):
        Reference(graph, {**weights, "model.layers.1.self_attn.k_proj.bias": bias[:11]})


def run_one(graph, name, **values):
    """The output of one op of the graph, in float64."""
    op = the_op(graph, name)
    step = Step(graph, values, KvState(graph, 4, 4))
    run_op(step, op)
    assert step.values[op.outputs[0]].dtype == np.float32
    return step.values[op.outputs[0]].astype(np.float64)


def numbers(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


ONE_OP = settings(STEADY, max_examples=10)


@ONE_OP
@given(st.integers(0, 5), st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm(rows, scale):
    graph, x, w = decoder(), numbers(rows, 12, scale=scale), numbers(12, seed=1)
    found = run_one(graph, "layers.0/input_norm", **{"embed/x": x, "model.layers.0.input_layernorm.weight": w})
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).sum(-1, keepdims=True) / 12 + 1e-5) * w
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_flattens_heads_and_adds_the_bias(bias):
    graph = decoder(qkv_bias=bias)
    x, w, b = numbers(5, 12), numbers(24, 12, seed=1), numbers(24, seed=2)
    names = {"weight": w, "bias": b} if bias else {"weight": w}
    given_ = {f"model.layers.0.self_attn.q_proj.{name}": array for name, array in names.items()}
    found = run_one(graph, "layers.0/q", **{"layers.0/input_norm": x}, **given_)
    wanted = np.array(
        [[sum(map(float, x[t] * w[n])) + (float(b[n]) if bias else 0) for n in range(24)] for t in range(5)]
    )
    np.testing.assert_allclose(found, wanted.reshape(5, 4, 6), rtol=1e-5, atol=1e-5)


def test_linear_rounds_each_number_to_the_nearest_bfloat16_and_of_two_to_the_even_one():
    """Which has 8 bits: 1 + 1/256 is in the middle between 1 and 1 + 1/128."""
    ulp, weight = 2.0**-7, "model.layers.0.self_attn.q_proj.weight"
    graph = with_rounding(change_value(decoder(), weight, dtype=DType.BF16), BF16)
    x = [
        1 + ulp / 2,
        1 + 1.5 * ulp,
        1 + 0.51 * ulp,
        -1 - ulp / 2,
        -0.3,
        1 / 3,
        2.0**-130,
        3.4e38,
        np.nan,
        0.0,
        257.0,
        -3.0,
    ]
    wanted = [1, 1 + 2 * ulp, 1 + ulp, -1, -0.30078125, 0.333984375, 2.0**-130, np.inf, np.nan, 0, 256, -3]
    for column, number in enumerate(wanted):  # each by itself: what is no number is no number's product with 0 either
        w, row = np.zeros((24, 12), np.float32), np.zeros((1, 12), np.float32)
        w[:, column], row[0, column] = 1, x[column]
        found = run_one(graph, "layers.0/q", **{"layers.0/input_norm": row, weight: w})
        np.testing.assert_array_equal(found, np.full((1, 4, 6), number))


def test_rope_is_a_rotation_of_complex_pairs():
    graph = change_value(decoder(), "inv_freq", data=(1.0, 0.1, 0.01))
    x, positions = numbers(4, 4, 6), np.array([0, 1, 17, 400], np.int32)
    found = run_one(
        graph,
        "layers.0/q_rope",
        **{"layers.0/q": x, "positions": positions, "inv_freq": np.array([1.0, 0.1, 0.01], np.float32)},
    )
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * positions[:, None, None] * np.array([1.0, 0.1, 0.01]))
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-4)
    np.testing.assert_array_equal(found[0], x[0])


@ONE_OP
@given(st.sampled_from([1e-2, 1.0, 30.0, 1e4]))
def test_silu_never_overflows(scale):
    x = numbers(3, 20, scale=scale)
    found = run_one(decoder(), "layers.0/silu", **{"layers.0/gate": x})
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, wide * 0.5 * (1 + np.tanh(wide / 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 1, 4, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_masked_dense_formula(window, kv_heads):
    S, H, C = 10, 4, 6
    graph = decoder(num_layers=1, windows=(window,), num_kv_heads=kv_heads)
    append = next(op for op in graph.ops if op.kind == "kv_append")
    q, k, v = numbers(S, H, C), numbers(S, kv_heads, C, seed=1), numbers(S, kv_heads, C, seed=2)
    state, table = KvState(graph, 5, 3), np.array([[4, 0, 2, 1]])
    for t in range(S):
        for which, one in enumerate((k, v)):
            state.append(append, which, table[0], t, one[t])
    rows = {"positions": np.arange(S), "sequence": np.zeros(S, int), "block_tables": table}
    step = Step(graph, {"layers.0/q_rope": q, **rows}, state)
    run_op(step, the_op(graph, "layers.0/attention"))
    wide_k, wide_v = (np.repeat(x.astype(np.float64), H // kv_heads, axis=1) for x in (k, v))
    scores = np.einsum("thc,shc->hts", q, wide_k) / np.sqrt(C)
    ago = np.arange(S)[:, None] - np.arange(S)[None]
    scores[:, (ago < 0) | ((ago >= window) if window else False)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = np.einsum("hts,shc->thc", p / p.sum(-1, keepdims=True), wide_v)
    np.testing.assert_allclose(step.values["layers.0/attention"], wanted, atol=2e-6)
