"""Long texts: what is said of their tokens without cutting all of them is true, whatever the tokenizer is like."""

import random

import pytest
from tests.pure.tokenizers_made import of_bytes, with_merges
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from coterie.checkpoint import long_text
from coterie.checkpoint.long_text import BYTE_OF
from coterie.checkpoint.tokenizer import KEPT
from coterie.checkpoint.tokenizer import Tokenizer as Ours
from coterie.core.errors import RequestError

WORDS = "the cat sat on a mat; 47 + 85 = 132! été naïve e\u0301 \U0001f600 <mask> \n\n  x" + " " * 9
COUNT = 40


def word_pieces() -> Tokenizer:
    letters = sorted(set("thecatsonm47851326ex;+=!") | {"[UNK]", "<mask>"})
    pieces = [*letters, *[f"##{letter}" for letter in letters], "the", "cat"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return made


def pieces_by_chance() -> Tokenizer:
    """Of a unigram model, words split where a space begins them."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "<mask>"])
    made.train_from_iterator([WORDS] * 9, trainer)
    return made


def whole() -> Tokenizer:
    """No words: of all of a text the most frequent pairs are merged first."""
    made = with_merges(WORDS, 300, ["<mask>"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return made


def composed() -> Tokenizer:
    made = with_merges(WORDS, 300, ["<mask>"])
    made.normalizer = normalizers.NFC()
    return made


MADE = {
    "bytes": lambda: of_bytes(["<mask>"]),
    "merges": lambda: with_merges(WORDS, 320, ["<mask>"]),
    "composed": composed,
    "whole": whole,
    "word pieces": word_pieces,
    "unigram": pieces_by_chance,
}


def texts() -> list[str]:
    draws = random.Random(0)
    parts = [*WORDS.split(" "), " ", "  \n", "<mask>", "a" * 50, "e\u0301" * 9, "<mas"]
    mixed = ["".join([draws.choice(parts) + draws.choice(["", " ", "   "]) for _ in range(3000)]) for _ in range(8)]
    return [*mixed, "a" * 20000, " " * 20000, "<mask>" * 3000, "<mask> " * 3000, "e\u0301" * 9000, "\U0001f600" * 9000]


@pytest.mark.parametrize("name", MADE)
def test_what_is_said_of_a_long_text_is_true_of_all_of_it(name: str) -> None:
    library = MADE[name]()
    cuts = 0
    for text in texts():
        ids = library.encode(text, add_special_tokens=False).ids
        for count in (1, COUNT, 200, 100_000):
            if long_text.has_more(library, text, count):
                assert len(ids) > count
            part = long_text.cut(library, text, count)
            assert text.startswith(part)
            cuts += part != text
            if part != text:
                assert library.encode(part, add_special_tokens=False).ids[:count] == ids[:count]
    assert cuts > (0 if name == "whole" else 20)  # there a word ends at added tokens alone


@pytest.mark.parametrize("name", ["bytes", "merges", "whole"])
def test_letters_alone_tell_of_many_tokens(name: str) -> None:
    library = MADE[name]()
    longest = max(map(len, library.get_vocab()))
    text = "a" * 60_000
    assert long_text._least_tokens(library, text) == -(-60_000 // longest) <= len(library.encode(text).ids)
    assert long_text.has_more(library, text, 60_000 // 20)
    assert not long_text.has_more(library, text, 60_000)


def test_letters_that_no_token_spells_do_not_count() -> None:
    symbols = [symbol for symbol, byte in BYTE_OF.items() if byte not in (4, 0xC0, 0xF2)]
    library = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("ab\x04" * 20, "\x04" * 20, "\U00080000" * 20):
        least = 20 if "\x04" not in text else text.count("a") * 2
        assert long_text._least_tokens(library, text) == least <= len(library.encode(text).ids)
    library.model = models.BPE({symbol: i for i, symbol in enumerate(symbols[:-80])}, [])
    assert long_text._least_tokens(library, "ab") == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.add_special_tokens([AddedToken("<end>", rstrip=True)]),
        lambda made: setattr(made, "normalizer", normalizers.Replace("aaaa", "a")),
        lambda made: setattr(made, "normalizer", normalizers.StripAccents()),
        lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Split("aa", "removed")),
        lambda made: setattr(made, "model", models.BPE({"b": 0, "[UNK]": 1}, [], unk_token="[UNK]", fuse_unk=True)),
        lambda made: setattr(made, "model", models.BPE({"b": 0}, [])),
    ],
)
def test_where_a_token_may_stand_for_any_number_of_letters_they_tell_nothing(change) -> None:
    library = of_bytes(["<mask>"])
    assert long_text.has_more(library, "a" * 60_000, 1000)
    change(library)
    assert not long_text.has_more(library, "a" * 60_000, 1000)


def test_no_more_than_so_many_letters_are_looked_at_for_a_token(tmp_path, monkeypatch) -> None:
    with_merges(WORDS, 320).save(str(tmp_path / "tokenizer.json"))
    ours, long = Ours.from_folder(tmp_path), "the cat sat on a mat " * 20_000
    encoded, lengths = ours._encoded, list[int]()
    monkeypatch.setattr(ours, "_encoded", lambda text, special: lengths.append(len(text)) or encoded(text, special))
    assert ours.encode_within(long, COUNT) == ours.library.encode(long).ids[:COUNT]
    assert ours.encode_pair("the cat", long, COUNT)[0] == ours.library.encode("the cat", long).ids[:COUNT]
    assert max(lengths) <= long_text.LETTERS * COUNT + 500
    with pytest.raises(RequestError, match=f"more than the {COUNT} tokens"):
        ours.encode_pair(long, "the cat", COUNT)


def test_only_tokens_of_texts_of_some_length_are_kept(tmp_path, monkeypatch) -> None:
    of_bytes().save(str(tmp_path / "tokenizer.json"))
    ours = Ours.from_folder(tmp_path)
    ours.encode("abc")
    assert ours._last is not None
    monkeypatch.setattr("coterie.checkpoint.tokenizer.KEPT", 2)
    assert len(ours.encode("abcd")) == 4
    assert ours._last is None
    assert KEPT >= 1 << 17
