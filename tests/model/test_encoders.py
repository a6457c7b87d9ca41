"""Encoders agree with transformers: rows of every backend, and the vectors that a folder's files say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tests.model.runner import BACKENDS, Stepper
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie, Options
from coterie.core.errors import CheckpointError, CoterieError, RequestError, UnsupportedError
from coterie.engine.policy import Policy
from coterie.graph.vectors import row_values
from coterie.models.model import open_model

BASE = {
    **{"vocab_size": 259, "hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "layer_norm_eps": 1e-6},
}
GEMMA = {
    **{"head_dim": 10, "num_key_value_heads": 2, "query_pre_attn_scalar": 10, "tie_word_embeddings": True},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MODERN = {
    **{"local_attention": 14, "num_hidden_layers": 4, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1},
    **{"eos_token_id": 2, "norm_eps": 1e-5},
}
ROWS = {
    "bert": ("Bert", {}),
    "bert-one-head": ("Bert", {"num_attention_heads": 1, "hidden_act": "gelu_new", "num_hidden_layers": 1}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}),
    "mpnet": ("MPNet", {"pad_token_id": 1, "max_position_embeddings": 66}),
    "jina-v3": ("JinaEmbeddingsV3", {"type_vocab_size": 1, "pad_token_id": 1}),
    "eurobert": ("EuroBert", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}),
    "nomic": ("NomicBert", {}),
    "gte": ("Gte", {"type_vocab_size": 1, "pad_token_id": 1}),
    "gte-no-types": ("Gte", {"type_vocab_size": 0, "hidden_act": "gelu_pytorch_tanh", "num_hidden_layers": 1}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert-biases": ("ModernBert", {**MODERN, "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2}),
    "gemma3-both-ways": ("Gemma3Text", {"use_bidirectional_attention": True, "sliding_window": 21, **GEMMA}),
}
TEXTS = ("What is 47 plus 85?", "x", "Write 149 in Roman numerals, please: " + "again " * 4)


def make(row, **more):
    """A random model whose norms and biases are no ones and zeros."""
    name, own = ROWS[row]
    torch.manual_seed(5)
    kind = getattr(transformers, f"{name}Model")
    model = kind(getattr(transformers, f"{name}Config")(**{**BASE, **own, **more})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def opened_again(folder):
    """The model that transformers reads: Gemma 3 halves its window each time."""
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def hidden(model, ids, **more):
    """What transformers has behind the last layer, [T, D]."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), **more).last_hidden_state[0].numpy()


def rows_of(backend, step):
    """The rows that a step leaves."""
    if hasattr(backend, "device"):
        found = backend.device.inspect(backend._inspected, backend.binding(step))
    else:
        found = backend._run(step)
    return np.array(found[row_values(backend.model.graph)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_rows_are_the_hidden_states_of_transformers(row, backend, make_backend, tmp_path):
    make(row).save_pretrained(tmp_path)
    theirs, model = opened_again(tmp_path), open_model(tmp_path)
    stepper = Stepper(make_backend(backend, model))
    texts = [[7, 3, 250, 9, 9], [17], list(range(2, 66)), [5, 4]]
    assert model.max_context == 64
    wanted = np.concatenate([hidden(theirs, text) for text in texts])
    found = rows_of(stepper.backend, stepper.rows(*[(stepper.sequence(), text) for text in texts]))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    for text in texts[:2]:
        alone = rows_of(stepper.backend, stepper.rows((stepper.sequence(), text)))
        np.testing.assert_allclose(alone, hidden(theirs, text), rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_pairs_are_those_of_transformers(backend, make_backend, tmp_path):
    """Of the second text tokens have another type; one of the texts in the step is no pair."""
    make("bert").save_pretrained(tmp_path)
    theirs, model = opened_again(tmp_path), open_model(tmp_path)
    stepper = Stepper(make_backend(backend, model))
    texts = [[7, 3, 250, 9, 9], [17, 18], [1, 2, 3], [40]]
    types = [[0, 0, 1, 1, 1], [0, 0], [0, 1, 0], [1]]
    step = stepper.rows(*[(stepper.sequence(), text) for text in texts])
    found = rows_of(stepper.backend, replace(step, types_T=[kind for kinds in types for kind in kinds]))
    pairs = zip(texts, types, strict=True)
    wanted = np.concatenate([hidden(theirs, ids, token_type_ids=torch.tensor([kinds])) for ids, kinds in pairs])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    for wrong in ([2], [-1], [0, 1]):
        with pytest.raises(ValueError, match="types are"):
            rows_of(stepper.backend, replace(stepper.rows((stepper.sequence(), [40])), types_T=wrong))


def save(folder, model, pooling="cls_token", modules=("Transformer", "Pooling", "Normalize"), **reading):
    """A folder as sentence-transformers saves it."""
    model.save_pretrained(folder)
    write_tokenizer(folder)
    kinds = [{"path": f"{i}_{kind}" if i else "", "type": f"a.models.{kind}"} for i, kind in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": None, **reading}))
    return folder


def wanted(model, text, pooling="cls_token"):
    rows = hidden(model, text.encode())
    found = {"cls_token": rows[0], "lasttoken": rows[-1], "mean_tokens": rows.mean(axis=0)}[pooling]
    return found / np.linalg.norm(found)


@pytest.mark.parametrize("pooling", ["cls_token", "lasttoken", "mean_tokens"])
def test_vectors_are_what_the_files_say(pooling, tmp_path):
    model = make("bert")
    folder = save(tmp_path / "vec", model, pooling)
    # Fewer tokens in a step than a text has: it has a step of its own.
    with Coterie.open(folder, Options(policy=Policy(max_batch=4, max_step_tokens=21))) as coterie:
        found = coterie.embed([*TEXTS, *TEXTS])
        for text, vector in zip(TEXTS * 2, found, strict=True):
            np.testing.assert_allclose(vector, wanted(model, text, pooling), rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(found[:3], found[3:])
        np.testing.assert_array_equal(coterie.embed(TEXTS[1]), found[1:2])
        longer = coterie.embed(TEXTS[0] + " And then?")[0]  # it begins as one that was just read
        np.testing.assert_allclose(longer, wanted(model, TEXTS[0] + " And then?", pooling), rtol=2e-4, atol=2e-5)
        assert coterie.parts.engine.metrics.cached_tokens == 0
        with pytest.raises(RequestError, match=r"only gives vectors"):
            coterie.ask("What is 47 plus 85?")
        with pytest.raises(CoterieError, match="64 tokens or fewer"):
            coterie.embed("y" * 65)
        np.testing.assert_allclose(coterie.embed("y" * 64)[0], wanted(model, "y" * 64, pooling), rtol=2e-4, atol=2e-5)


def test_long_texts_and_windows_of_any_size(tmp_path):
    """Contexts of several spans, windows smaller and larger than one."""
    for local in (6, 300, 1200):
        model = make("modernbert", max_position_embeddings=700, local_attention=local)
        folder = save(tmp_path / str(local), model, "mean_tokens")
        texts = ["".join(chr(97 + (7 * i * i) % 26) for i in range(count)) for count in (700, 257, 1, 320)]
        with Coterie.open(folder) as coterie:
            for text, vector in zip(texts, coterie.embed(texts), strict=True):
                np.testing.assert_allclose(vector, wanted(model, text, "mean_tokens"), rtol=5e-4, atol=5e-5)


def test_a_text_is_cut_and_lowered_where_the_files_say_so(tmp_path):
    model = make("bert")
    folder = save(tmp_path / "vec", model, "mean_tokens", max_seq_length=9, do_lower_case=True)
    with Coterie.open(folder) as coterie:
        found = coterie.embed(["ABC", "Some Longer Text", "y" * 200])
    for text, vector in zip(("abc", "some long", "y" * 9), found, strict=True):
        np.testing.assert_allclose(vector, wanted(model, text, "mean_tokens"), rtol=2e-4, atol=2e-5)


def test_alibabas_own_folders_are_gte_with_a_longer_rope(tmp_path):
    """As gte-multilingual-base (whose file has a head that weighs tokens besides) and gte-large-en-v1.5 were released;
    their code divides frequencies so.
    """
    model = make("gte")
    save(tmp_path, model, "mean_tokens")
    factor, theta, width = 8.0, 2000.0, 10
    longer = (theta * factor) ** (torch.arange(0, width, 2) / width) * factor ** (2 / width)
    model.rotary_emb.inv_freq = 1 / longer
    config = json.loads((tmp_path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "rope_parameters"}
    tensors = {f"new.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors |= {"classifier.weight": np.ones((1, 40), np.float32), "classifier.bias": np.ones(1, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    classes = ["NewModel", "NewForTokenClassification"]
    config |= {"model_type": "new", "architectures": classes, "auto_map": {"AutoModel": "a/b--modeling.NewModel"}}
    config |= {"rope_theta": theta, "rope_scaling": {"type": "ntk", "factor": factor}, "layer_norm_type": "layer_norm"}
    for wrong, said in ({"layer_norm_type": "rms_norm"}, "layer_norm_type"), ({"logn_attention_scale": True}, "logn"):
        (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(UnsupportedError, match=said):
            open_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    texts = [*TEXTS, "y" * 64]
    with Coterie.open(tmp_path) as coterie:
        for text, vector in zip(texts, coterie.embed(texts), strict=True):
            np.testing.assert_allclose(vector, wanted(model, text, "mean_tokens"), rtol=2e-4, atol=2e-5)
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": {"type": "ntk", "mixed_b": 1.0}}))
    with pytest.raises(CoterieError, match=r"mixed_b|factor"):
        open_model(tmp_path)


def test_a_scaled_rope_is_plain_up_to_the_trained_length(tmp_path):
    """As nomic-embed-text-v1 has it; beyond it a text is refused."""
    model = make("nomic")
    save(tmp_path, model, "mean_tokens")
    whole = json.loads((tmp_path / "config.json").read_text())
    plain = open_model(tmp_path)

    def opened(**more):
        (tmp_path / "config.json").write_text(json.dumps({**whole, **more}))
        return open_model(tmp_path)

    scaled = opened(rotary_scaling_factor=2, max_trained_positions=20)
    assert (scaled.key, plain.max_context, scaled.max_context) == (plain.key, 64, 20)
    assert opened(rotary_scaling_factor=2).max_context == 64
    assert opened(rotary_scaling_factor=0, max_trained_positions=20).max_context == 64
    with pytest.raises(CheckpointError, match="rotary_scaling_factor is -1"):
        opened(rotary_scaling_factor=-1)
    opened(rotary_scaling_factor=2, max_trained_positions=20)
    with Coterie.open(tmp_path) as coterie:
        expected = wanted(model, TEXTS[0], "mean_tokens")
        np.testing.assert_allclose(coterie.embed(TEXTS[0])[0], expected, rtol=2e-4, atol=2e-5)
        with pytest.raises(CoterieError, match="20 tokens or fewer"):
            coterie.embed("y" * 21)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "more than give vectors"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"auto_map": {"AutoModel": "a--b.C"}}, "code of its own"),
    ],
)
def test_what_is_not_run_is_refused_by_name(config, said, tmp_path):
    make("bert").save_pretrained(tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**own, **config}))
    with pytest.raises(UnsupportedError, match=said):
        open_model(tmp_path)
