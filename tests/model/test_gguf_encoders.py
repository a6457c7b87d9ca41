"""GGUF files of encoders: the folder that comes out has the rows and vectors of the one that the file was made of."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
from tests.model import test_rerankers as rerankers
from tests.model.runner import ReferenceBackend, Stepper
from tests.model.test_encoder_folders import WORDS
from tests.model.test_encoders import ROWS, TEXTS, make, opened_again, rows_of

from coterie.api import Coterie
from coterie.checkpoint.gguf_tokenizer import tokenizer_files
from coterie.checkpoint.sentence import Embedding, read_embedding
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import load_weights_f32, open_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402

IMPORTED = [row for row in ROWS if row.startswith(("bert", "roberta", "xlm", "nomic", "modernbert"))]
IMPORTED = [row for row in IMPORTED if row not in ("bert-one-head", "modernbert-biases")]
TOKENS = [7, 3, 250, 9, 9, 31, 200, 4, 77, 12, 18, 5, 5, 6]
# llama.cpp's gelu is that by tanh, from a table of float16.
NEAR = {"nomic": 1e-5}


@pytest.fixture
def written(tmp_path):
    """A function (row, writer's options) -> a folder and a file of it."""

    def get(row, kind="F32", **how):
        make(row).save_pretrained(tmp_path / "folder")
        return tmp_path / "folder", gguf_files.write(tmp_path / "folder", tmp_path / "model.gguf", kind, **how)

    return get


@pytest.fixture
def imported(written, two_tokens, tmp_path):
    """The same, and the expert that was imported."""

    def get(row, *how, **more):
        folder, path = written(row, *how, **more)
        return folder, path, import_gguf(plan_import(path), tmp_path / "expert", two_tokens).folder

    return get


def rows(folder, tokens):
    stepper = Stepper(ReferenceBackend(open_model(folder)))
    return rows_of(stepper.backend, stepper.rows((stepper.sequence(), tokens)))


@pytest.mark.parametrize("row", IMPORTED)
def test_the_folder_is_the_one_that_the_file_was_made_of(row, imported):
    folder, _, expert = imported(row)
    before, after = open_model(folder), open_model(expert)
    if "roberta" not in row:  # of which BERT's table of positions is a part
        assert after.key == before.key
    assert (after.max_context, after.gives) == (64, "vectors")
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    theirs = opened_again(expert)(torch.tensor([TOKENS]))
    np.testing.assert_allclose(rows(expert, TOKENS), theirs.last_hidden_state[0].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", IMPORTED)
def test_rows_are_those_of_llama_cpp(row, imported):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    _, path, expert = imported(row)
    theirs, ours = importlib.import_module("tests.model.in_llama_cpp").rows(path, TOKENS), rows(expert, TOKENS)
    assert np.abs(ours - theirs).max() < NEAR.get(row, 5e-3) * np.abs(theirs).max()


@pytest.mark.parametrize("row", IMPORTED)
def test_packed_it_gives_nearly_the_same(row, written, two_tokens, tmp_path):
    folder, path = written(row, "BF16")
    for weights, near in (("keep", 0.02), ("int8", 0.1)):
        expert = import_gguf(plan_import(path, weights), tmp_path / weights, two_tokens).folder
        found, wanted = rows(expert, TOKENS), rows(folder, TOKENS)
        assert np.abs(found - wanted).max() < near * np.abs(wanted).max()


SLIDING, FULL = "sliding_attention", "full_attention"
BOTH_WAYS = {
    "gemma-embedding": ("gemma3-both-ways", {"num_hidden_layers": 6, "layer_types": [SLIDING] * 5 + [FULL]}),
    "eurobert": ("eurobert", {}),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_those_built_like_decoders(name, two_tokens, tmp_path):
    """Their tokens see all of a text; of EmbeddingGemma a vector goes through two matrices more."""
    row, sizes = BOTH_WAYS[name]
    make(row, **sizes).save_pretrained(tmp_path / "folder")
    rng, dense = np.random.default_rng(3), {}
    if name == "gemma-embedding":
        shapes = {"dense_2.weight": (52, 40), "dense_3.weight": (40, 52)}
        dense = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    pools = {"change": lambda writer: writer.add_pooling_type(gguf.PoolingType.MEAN)}
    path = gguf_files.write(tmp_path / "folder", tmp_path / "model.gguf", architecture=name, more=dense, **pools)
    expert = import_gguf(plan_import(path), tmp_path / "expert", two_tokens).folder
    before, after = open_model(tmp_path / "folder"), open_model(expert)
    assert (after.key, after.gives) == (before.key, "vectors")
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    assert wanted.keys() == found.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=2.0**-23, err_msg=key)
    layers = read_embedding(expert, Embedding("first")).layers
    assert [layer.weight_OI.tolist() for layer in layers] == [values.tolist() for values in dense.values()]
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    bare = gguf_files.write(tmp_path / "folder", tmp_path / "bare.gguf", architecture=name, **pools)
    theirs, ours = importlib.import_module("tests.model.in_llama_cpp").rows(bare, TOKENS), rows(expert, TOKENS)
    assert np.abs(ours - theirs).max() < (1e-5 if name == "eurobert" else 5e-3) * np.abs(theirs).max()


def vocabulary(words=WORDS, begins="bos", **more):
    """A WordPiece vocabulary as llama.cpp's converter writes it; older files call the first token cls."""
    special = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask"}

    def add(writer):
        tokens = [word if word in special else word[2:] if word.startswith("##") else f"\u2581{word}" for word in words]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("jina-v2-en")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
        for word, name in special.items():
            key = {"unk": "unknown", "sep": "seperator", "pad": "padding", "cls": begins}.get(name, name)
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", words.index(word))
        for key, value in more.items():
            writer.add_bool(f"tokenizer.ggml.normalizer.{key}", value)

    return add


@pytest.mark.parametrize(("pooling", "kind"), [("mean_tokens", "MEAN"), ("cls_token", "CLS")])
def test_vectors_are_those_of_the_folder(pooling, kind, tmp_path):
    """With tokens of its own, by the pooling that the file names."""
    words = [word for word in WORDS if word not in ("What", "It")]
    model = make("bert", vocab_size=len(words))
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "folder" / "1_Pooling").mkdir()
    (tmp_path / "folder" / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    kinds = [{"path": path, "type": f"a.{path[2:] or 'Transformer'}"} for path in ("", "1_Pooling", "2_Normalize")]
    (tmp_path / "folder" / "modules.json").write_text(json.dumps(kinds))
    path = gguf_files.write(
        *(tmp_path / "folder", tmp_path / "model.gguf"),
        vocabulary=vocabulary(words),
        change=lambda writer: writer.add_pooling_type(gguf.PoolingType[kind]),
    )
    import_gguf(plan_import(path), tmp_path / "expert")
    texts = [*TEXTS, "caf\u00e9, It\u4e2d\u4e2d it", "What[MASK] is"]
    with Coterie.open(tmp_path / "folder") as before, Coterie.open(tmp_path / "expert") as after:
        np.testing.assert_array_equal(after.embed(texts), before.embed(texts))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "expert")
    ours = Tokenizer.from_folder(tmp_path / "expert")
    assert [theirs(text)["input_ids"] for text in texts] == [ours.encode(text) for text in texts]
    assert theirs("What is", "it 47")["input_ids"] == ours.encode_pair("What is", "it 47", 64)[0]
    assert not (tmp_path / "expert" / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("words", "said", "text", "wanted"),
    [
        (WORDS, {}, "What it", ["What", "it"]),
        (WORDS, {"lowercase": True}, "What it", ["what", "it"]),
        (WORDS, {"lowercase": True, "strip_accents": False}, "\u00c9", ["\u00e9"]),
        ([word for word in WORDS if word.islower() or not word[0].isalpha()], {}, "What \u00c9", ["what", "e"]),
    ],
)
def test_capitals_are_those_of_the_vocabulary_unless_the_file_says(words, said, text, wanted, written, tmp_path):
    words = [*words, *(f"w{i}" for i in range(259 - len(words)))]
    _, path = written("bert", vocabulary=vocabulary(words, "cls", **said))
    ours = Tokenizer.from_folder(import_gguf(plan_import(path), tmp_path / "expert").folder)
    assert [ours.library.id_to_token(i) for i in ours.encode(text, add_special_tokens=False)] == wanted


def test_tokens_are_those_of_llama_cpp(written, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    llama_cpp = importlib.import_module("tests.model.in_llama_cpp")
    words = [word for word in WORDS if word not in ("What", "It")]
    words += [f"w{i}" for i in range(259 - len(words))]
    _, path = written("bert", vocabulary=vocabulary(words))
    ours = Tokenizer.from_folder(import_gguf(plan_import(path), tmp_path / "expert").folder)
    for text in ("What is 47 + 85?", "it \u4e2d\u4e2d w17, w200 zebra", "caf\u00e9", "[SEP] what"):
        assert ours.encode(text) == llama_cpp.tokens(path, text), text


UNIGRAM = {
    **{"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "\u2581": -2.0, "\u2581w": -3.0, "hat": -3.5, "h": -6.0},
    **{"a": -6.5, "t": -6.0, "\u2581it": -2.5, "i": -7.0, "s": -5.5, "\u2581is": -2.0},
}
UNIGRAM |= {f"[PAD{i}]": -10_000.0 for i in range(len(UNIGRAM), 259)}


def unigram(writer):
    """A vocabulary of SentencePiece's Unigram, as that of XLM-RoBERTa is written."""
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(UNIGRAM))
    writer.add_token_scores(list(UNIGRAM.values()))
    kinds = {**dict.fromkeys(("<s>", "<pad>", "</s>"), "CONTROL"), "<unk>": "UNKNOWN"}
    kinds |= {token: "UNUSED" for token in UNIGRAM if token.startswith("[PAD")}
    writer.add_token_types([gguf.TokenType[kinds.get(token, "NORMAL")] for token in UNIGRAM])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    for name, i in (("bos", 0), ("eos", 2), ("unk", 3), ("pad", 1)):
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def test_tokens_of_unigram_are_those_of_llama_cpp(written, tmp_path):
    _, path = written("xlm-roberta", vocabulary=unigram)
    ours = Tokenizer.from_folder(import_gguf(plan_import(path), tmp_path / "expert").folder)
    assert ours.encode("what  is") == [0, 5, 6, 13, 2]
    assert ours.encode_pair("what", "is it", 64)[0] == [0, 5, 6, 2, 2, 13, 10, 2]
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    llama_cpp = importlib.import_module("tests.model.in_llama_cpp")
    for text in ("what  is it", " it", "zoo is", "itis"):
        assert ours.encode(text) == llama_cpp.tokens(path, text), text


def test_a_decoder_whose_file_names_a_pooling_gives_vectors(gguf_folder_like, two_tokens, tmp_path):
    """A head that its file may have is left out."""
    folder = gguf_folder_like("qwen3", dtype="fp32")
    pools = {"change": lambda writer: writer.add_pooling_type(gguf.PoolingType.LAST)}
    path, _, model = gguf_files.imported(folder, two_tokens, tmp_path, "F32", **pools)
    assert "output.weight" in plan_import(path).file.tensors
    assert model.gives == "vectors"
    assert "lm_head.weight" not in model.checkpoint.tensors
    stepper = Stepper(ReferenceBackend(model))
    found = rows_of(stepper.backend, stepper.rows((stepper.sequence(), TOKENS)))
    theirs = opened_again(folder)(torch.tensor([TOKENS])).last_hidden_state[0].detach().numpy()
    assert np.abs(found - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert read_embedding(model.path, Embedding("mean")).pooling == "last"


@pytest.mark.parametrize("row", ["roberta", "xlm-roberta", "modernbert-mean"])
def test_scores_are_those_of_the_folder(row, tmp_path):
    folder = rerankers.save(tmp_path / "folder", rerankers.make(row), rerankers.way_of(row))
    path = gguf_files.write(folder, tmp_path / "model.gguf")
    import_gguf(plan_import(path), tmp_path / "expert", folder)
    import_gguf(plan_import(path, "int8"), tmp_path / "packed", folder)
    scores = []
    for one in (folder, tmp_path / "expert", tmp_path / "packed"):
        assert open_model(one).gives == "scores"
        with Coterie.open(one) as coterie:
            scores.append(rerankers.raw(coterie))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    assert 0 < np.abs(scores[2] - scores[0]).max() < 0.05


def test_a_head_without_its_first_layer_is_refused(tmp_path):
    """Of BERT's kind: llama.cpp's converter leaves that layer out."""
    folder = rerankers.save(tmp_path / "folder", rerankers.make("bert"), rerankers.way_of("bert"))
    path = gguf_files.write(folder, tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match=r"without its first layer \(pooler.dense\).*Hugging Face"):
        plan_import(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.add_pooling_type(gguf.PoolingType.RANK), "pooling_type = 4 .*scores"),
        (lambda w: w.add_causal_attention(True), "attention.causal is true"),
        (lambda w: w.add_logit_scale(0.5), "logit_scale = 0.5 is not understood for bert"),
    ],
)
def test_what_is_not_run_is_refused(change, said, written):
    with pytest.raises(UnsupportedError, match=said):
        plan_import(written("bert", change=change)[1])


def test_a_text_without_marks_is_refused():
    metadata = {"model": "bert", "tokens": ["\u2581a", "b"], "token_type": [1, 1]}
    with pytest.raises(CheckpointError, match="no tokens that begin and end a text"):
        tokenizer_files({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, encodes=True)
