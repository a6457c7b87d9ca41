"""Encoders whose attention has biases by distance: MPNet beside transformers, Jina's BERT (embeddings v2), of
which that has no class, beside its equations in float64.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from tests.model.runner import BACKENDS, NUM_BLOCKS, ReferenceBackend, Stepper, by_name
from tests.model.test_encoders import make, rows_of, wanted
from tests.model.test_encoders import save as save_sentence_model
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.graph.compile import compile_graph
from coterie.graph.reference import KvState, Reference, run_ranks
from coterie.graph.shard import Split, split_graph
from coterie.graph.vectors import row_values
from coterie.models.distance import FARTHEST, distance_buckets
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_biases_of_attention_by_distance_reach_far(tmp_path):
    """Behind the farthest bucket, over several spans, with the vectors of a batch those of each text alone."""
    for heads in (1, 4):
        model = make("mpnet", max_position_embeddings=702, num_attention_heads=heads)
        folder = save_sentence_model(tmp_path / str(heads), model, "mean_tokens")
        texts = ["".join(chr(97 + (7 * i * i) % 26) for i in range(count)) for count in (700, 257, 1, 320, 129)]
        with Coterie.open(folder) as coterie:
            found = coterie.embed(texts)
            for text, vector in zip(texts, found, strict=True):
                np.testing.assert_allclose(vector, wanted(model, text, "mean_tokens"), rtol=5e-4, atol=5e-5)
                np.testing.assert_array_equal(coterie.embed(text)[0], vector)


@pytest.mark.parametrize("count", [4, 8, 20, 32, 64])
def test_buckets_of_distances_are_those_of_transformers(count):
    behind = torch.arange(-FARTHEST, FARTHEST + 1)
    theirs = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(behind, num_buckets=count)
    assert list(distance_buckets(count)) == theirs.tolist()


def test_other_buckets_than_those_that_transformers_has_are_refused(tmp_path):
    """Whose MPNet has a table as its config says, and reads 32 rows of it."""
    make("mpnet").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "relative_attention_num_buckets": 64}))
    with pytest.raises(UnsupportedError, match="relative_attention_num_buckets = 64"):
        open_model(tmp_path)


D, F, LAYERS = 36, 28, 2
QUERY, DOCUMENTS = "What is 47?", ["A number.", "x", ""]
CODE = "jinaai/jina-bert-implementation--modeling_bert.JinaBert"
CONFIG = {
    **{"model_type": "bert", "architectures": ["JinaBertForMaskedLM"], "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    **{"vocab_size": 259, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS, "type_vocab_size": 2},
    **{"max_position_embeddings": 700, "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
    **{"emb_pooler": "mean", "auto_map": {"AutoModel": f"{CODE}Model", "AutoModelForMaskedLM": f"{CODE}ForMaskedLM"}},
}


def tensors_of(rng, prefix=""):
    """Random tensors under the names of a released file."""
    linear = {"attention.self.query": (D, D), "attention.self.key": (D, D), "attention.self.value": (D, D)}
    linear |= {"attention.output.dense": (D, D), "mlp.wo": (D, F)}
    shapes = {"embeddings.word_embeddings.weight": (259, D), "embeddings.token_type_embeddings.weight": (2, D)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        norms += [at + "attention.output.LayerNorm", at + "mlp.layernorm"]
        shapes[at + "mlp.gated_layers.weight"] = (2 * F, D)
        for name, shape in linear.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    shapes |= {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}
    shapes |= {"pooler.dense.weight": (D, D), "pooler.dense.bias": (D,)}
    centre = {name: float("Norm.weight" in name or "norm.weight" in name) for name in shapes}
    return {
        prefix + name: (centre[name] + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def slopes(heads):
    whole = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return np.array([*first, *[2 ** (-4 * i / whole) for i in range(1, 2 * whole, 2)]][:heads])


def hidden(w, heads, ids, types=None):
    """[T, D] in float64."""

    def linear(x, name):
        return x @ w[name + ".weight"].T.astype(np.float64) + w.get(name + ".bias", 0)

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    ids, types = np.asarray(list(ids)), np.zeros(len(ids), int) if types is None else np.asarray(types)
    words = w["embeddings.word_embeddings.weight"].astype(np.float64)
    x = norm(words[ids] + w["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
    apart = np.abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        parts = (linear(x, f"{at}attention.self.{one}") for one in ("query", "key", "value"))
        q, k, v = (part.reshape(len(ids), heads, -1) for part in parts)
        scores = np.einsum("thc,shc->hts", q, k) / math.sqrt(D // heads) - slopes(heads)[:, None, None] * apart
        p = np.exp(scores - scores.max(-1, keepdims=True))
        seen = np.einsum("hts,shc->thc", p / p.sum(-1, keepdims=True), v).reshape(len(ids), D)
        x = norm(x + linear(seen, at + "attention.output.dense"), at + "attention.output.LayerNorm")
        gate, up = np.split(linear(x, at + "mlp.gated_layers"), 2, axis=1)
        erf = np.frompyfunc(math.erf, 1, 1)(gate / math.sqrt(2)).astype(np.float64)
        x = norm(x + linear(gate * 0.5 * (1 + erf) * up, at + "mlp.wo"), at + "mlp.layernorm")
    return x


def save(folder, tensors, heads=3, **config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_attention_heads": heads, **config}))
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("row", "degree"), [("bert", 8), ("mpnet", 2), ("mpnet", 8), ("jina", 2)])
def test_units_of_a_modelled_machine_share_it(row, degree, tmp_path, rng):
    """All ranks together give what the whole gives: they share tables of words, positions and biases by head."""
    if row == "jina":
        save(tmp_path, tensors_of(rng), heads=6)
    else:
        make(row, num_attention_heads=8, hidden_size=48, intermediate_size=56).save_pretrained(tmp_path)
    model, ranks = open_model(tmp_path), []
    whole = ReferenceBackend(model)
    for rank in range(degree):
        found = split_graph(model.graph, degree, rank, odd_vocabulary=True)
        compile_graph(found.graph, "cache")
        everywhere, weights = Split(0, 1), load_weights_f32(model)
        own = {
            name: array[found.splits.get(name, everywhere).of_rank(array.shape, rank, degree)]
            for name, array in weights.items()
        }
        ranks.append(Reference(found.graph, own))
    stepper = Stepper(whole)
    step = stepper.rows(*[(stepper.sequence(), text) for text in ([7, 3, 250, 9, 9], [17], list(range(2, 42)))])
    states = [KvState(rank.graph, NUM_BLOCKS, whole.state.tokens_per_block) for rank in ranks]
    wanted = rows_of(whole, step)
    for values in run_ranks(ranks, by_name(step), step.sampling, states):
        found = values[row_values(model.graph)]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [1, 3, 6])
def test_rows_are_those_of_its_equations(heads, backend, make_backend, tmp_path, rng):
    tensors = tensors_of(rng)
    model = open_model(save(tmp_path / "e", tensors, heads))
    stepper = Stepper(make_backend(backend, model))
    texts = [[7, 3, 250, 9, 9], [17], list(range(2, 66)), [5, 4]]
    wanted = np.concatenate([hidden(tensors, heads, text) for text in texts])
    found = rows_of(stepper.backend, stepper.rows(*[(stepper.sequence(), text) for text in texts]))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_vectors_of_texts_of_several_spans(tmp_path, rng):
    tensors = tensors_of(rng)
    folder = save(tmp_path / "e", tensors)
    texts = ["".join(chr(97 + (7 * i * i) % 26) for i in range(count)) for count in (700, 1, 257)]
    packed = quantize_folder(folder, tmp_path / "packed", Packing(DType.Q8, DType.Q8)).folder
    with Coterie.open(folder) as coterie, Coterie.open(packed) as rounded:
        found = coterie.embed(texts)
        for text, vector in zip(texts, found, strict=True):
            mean = hidden(tensors, 3, text.encode()).mean(0)
            np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=5e-4, atol=5e-5)
            np.testing.assert_array_equal(coterie.embed(text)[0], vector)
        assert 0 < np.abs(rounded.embed(texts) - found).max() < 0.1


def test_a_reranker_scores_the_first_row(tmp_path, rng):
    tensors = tensors_of(rng, "bert.")
    tensors |= {"classifier.weight": rng.standard_normal((1, D), np.float32), "classifier.bias": np.ones(1, np.float32)}
    kind = "JinaBertForSequenceClassification"
    more = {"architectures": [kind], "auto_map": {"AutoModelForSequenceClassification": f"{CODE}.{kind}"}}
    more["sentence_transformers"] = {"activation_fn": "torch.nn.Identity"}
    folder = save(tmp_path / "r", tensors, **more)
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    with Coterie.open(folder) as coterie:
        found = {one.index: one.score for one in coterie.rerank(QUERY, DOCUMENTS)}
    for place, document in enumerate(DOCUMENTS):
        first = hidden(bare, 3, (QUERY + document).encode())[0]
        pooled = np.tanh(first @ bare["pooler.dense.weight"].T + bare["pooler.dense.bias"])
        assert found[place] == pytest.approx((pooled @ bare["classifier.weight"].T)[0] + 1, abs=1e-4)


def test_others_of_its_kind_are_refused(tmp_path, rng):
    """Another feed-forward block; norms of queries and keys, as in jina-embeddings-v2-base-code."""
    tensors = tensors_of(rng)
    with pytest.raises(UnsupportedError, match="feed_forward_type = 'reglu'"):
        open_model(save(tmp_path / "reglu", tensors, feed_forward_type="reglu"))
    other = {name.replace("gated_layers", "up_gated_layer"): tensor for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match="mlp"):
        open_model(save(tmp_path / "code", other))
