"""The knn router's examples: from experts, from a file, and what of a file is refused."""

from dataclasses import replace

import pytest

from coterie.composition.composition import load_composition
from coterie.composition.router import Prompt
from coterie.composition.routers.knn import Example, KnnSettings
from coterie.composition.routing import Routing, make_router
from coterie.core.errors import CompositionError, NotFoundError

FILE = """
name = "small"
[router]
kind = "knn"
fallback = "general"
ROUTER
[[expert]]
name = "sums"
config = "llama-2-7b"
examples = ["what is 1 plus 2?", "add 3 and 4"]
[[expert]]
name = "roman"
config = "llama-2-7b"
[[expert]]
name = "general"
config = "llama-2-7b"
"""


@pytest.fixture
def write(tmp_path):
    def put(router="", lines=None, file=FILE):
        if lines is not None:
            (tmp_path / "e.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "c.toml").write_text(file.replace("ROUTER", router))
        return str(tmp_path / "c.toml")

    return put


LINES = (
    '{"expert": "roman", "prompt": "4 in Roman\u2028numerals"}',
    "",
    '{"expert": "", "prompt": "who wrote Hamlet?", "answer": "?"}',
    '{"expert": null, "prompt": "how do I cook rice?"}',
    '{"expert": "general", "prompt": "hello"}',
)


def test_examples_come_from_the_experts_and_from_a_file(write):
    composition = load_composition(write('examples = "e.jsonl"\nk = 3\nsimilarity = 0.1\nthreshold = 0.3', LINES))
    assert composition.router.examples == (
        Example("sums", "what is 1 plus 2?"),
        Example("sums", "add 3 and 4"),
        Example("roman", "4 in Roman\u2028numerals"),
        Example("general", "who wrote Hamlet?"),
        Example("general", "how do I cook rice?"),
        Example("general", "hello"),
    )
    assert make_router(composition).settings == KnnSettings(3, 0.1, 0.3)
    routing = Routing(composition)
    assert routing.route(Prompt("7 in Roman numerals"))[0].expert == "roman"
    assert routing.route(Prompt("@sums 7 in Roman numerals"))[0].expert == "sums"


def test_defaults_are_the_routers(write):
    assert make_router(load_composition(write())).settings == KnnSettings()


def test_other_settings_of_a_router_read_its_examples_once(write):
    composition = load_composition(write('examples = "e.jsonl"', LINES))
    routing, prompts = Routing(composition), [Prompt(text) for text in ("add 5 and 6", "who wrote it?", "zz add")]
    before = [routing.route(prompt) for prompt in prompts]
    for changes in ({"threshold": 0.9}, {"similarity": 0.4}, {"num_neighbours": 1}):
        spec = replace(composition.router, **changes)
        tuned, anew = routing.tuned(spec), Routing(replace(composition, router=spec))
        assert tuned.router.neighbours is routing.router.neighbours
        assert tuned.router.settings == anew.router.settings != routing.router.settings
        assert [tuned.route(prompt) for prompt in prompts] == [anew.route(prompt) for prompt in prompts]
    assert [routing.route(prompt) for prompt in prompts] == before


def test_a_conversation_stays_where_a_message_is_like_no_example(write):
    routing = Routing(load_composition(write('examples = "e.jsonl"', LINES)))
    chat = [
        {"role": "user", "content": "add 5 and 6"},
        {"role": "assistant", "content": "11"},
        {"role": "user", "content": "zzz kkk qqq"},
    ]
    assert routing.route(Prompt.from_messages(chat))[0].expert == "sums"
    chat[2]["content"] = "9 in Roman numerals"
    assert routing.route(Prompt.from_messages(chat))[0].expert == "roman"


@pytest.mark.parametrize(
    ("router", "lines", "sentence"),
    [
        ("k = 0", None, "k = 0 is out of range; it must be at least 1"),
        ("similarity = 1.5", None, "similarity = 1.5 is out of range"),
        ("simlarity = 0.5", None, 'did you mean "similarity"'),
        ('examples = "e.jsonl"', ["{"], r"e.jsonl:1\] this line is not JSON"),
        ('examples = "e.jsonl"', ["", "[]"], r"e.jsonl:2\] this line is JSON, but no object"),
        ('examples = "e.jsonl"', ["", " "], "there are no examples in it"),
        ('examples = "e.jsonl"', ['{"expert": "sums"}'], "there is no prompt in this line; write {"),
        ('examples = "e.jsonl"', ['{"expert": "sums", "prompt": " "}'], "there is no prompt in this line"),
        ('examples = "e.jsonl"', ['{"prompt": "x"}'], "there is no expert in this line"),
        ('examples = "e.jsonl"', ['{"expert": "rom", "prompt": "x"}'], r"expert = 'rom' is not .* did you mean roman"),
    ],
)
def test_refused(write, router, lines, sentence):
    with pytest.raises(CompositionError, match=sentence):
        load_composition(write(router, lines))


def test_a_byte_order_mark_and_other_line_ends_are_read(write, tmp_path):
    (tmp_path / "e.jsonl").write_bytes(
        b'\xef\xbb\xbf{"expert": "roman", "prompt": "x"}\r\n\r\n{"expert": "", "prompt": "y"}\r\n'
    )
    file = FILE.replace('fallback = "general"', 'fallback = "roman"')
    examples = load_composition(write('examples = "e.jsonl"', file=file)).router.examples
    assert examples[2:] == (Example("roman", "x"), Example("roman", "y"))


def test_no_such_file(write):
    with pytest.raises(NotFoundError, match=r"e.jsonl\] there is no such file of examples"):
        load_composition(write('examples = "e.jsonl"'))


def test_examples_of_the_fallback_alone_are_too_few(write):
    file = FILE.replace('name = "sums"', 'name = "x"').replace('fallback = "general"', 'fallback = "x"')
    with pytest.raises(CompositionError, match="there are 2 examples, none of an expert other than the fallback"):
        load_composition(write(file=file))


def test_examples_of_many_experts_at_once(write):
    file = FILE.replace('name = "sums"', 'name = "sums-{i}"\ncount = 2')
    with pytest.raises(CompositionError, match="the same examples would be those of 2 experts"):
        load_composition(write(file=file))
