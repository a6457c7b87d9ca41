"""Chat templates that would take all time or memory are refused in a moment, and ordinary ones are left alone."""

from __future__ import annotations

import time

import pytest

from coterie.checkpoint import bounded
from coterie.checkpoint.chat import ChatTemplate
from coterie.core.errors import CheckpointError, RequestError

DOUBLED = (  # a list nested by doubling, and what becomes of it
    ("{% set x = [x, x] %}", "{{ x }}"),
    ("{% set x = [x, x] %}", "{{ x ~ 'a' }}"),
    ("{% set x = [x, x] %}", "{{ x|tojson }}"),
    ("{% set x = [x, x] %}", "{{ x|string|length }}"),
    ("{% set x = [x, x] %}", "{{ '%s' % x }}"),
    ("{% set x = (x, x) %}", "{{ x == 1 or {x: 1} }}"),
    ("{% set x = {'a': x, 'b': x} %}", "{{ x }}"),
    ("{% set x = [x] + [x] %}", "{{ x }}"),
    ("{% set x = [x] * 2 %}", "{{ x }}"),
    ("{% set x = dict(a=x, b=x) %}", "{{ x }}"),
    ("{% set x = [1]|batch(3, x)|list %}", "{{ x }}"),
    ("{% for y in [1]|batch(3, x) %}{% set x = [y] %}{% endfor %}{% set x = [x, x]|list %}", "{{ x }}"),
    ("{% set x = [1, 2]|map(attribute='b', default=x)|list %}", "{{ x }}"),
    ("{% set x = {}.fromkeys([1, 2], x) %}", "{{ x }}"),
    (
        "{% set n = namespace() %}{% macro m() %}{% set n.x = varargs %}{% endmacro %}{{ m(x, x) }}{% set x = n.x %}",
        "{{ x }}",
    ),
)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ ['x'] * 10**10 }}",
        "{{ 9 ** (10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**9) }}",
        "{{ 'a'|center(10**10) }}",
        "{{ 'a'.zfill(10**10) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{{ [1]|batch(10**9, 1)|list }}",
        "{{ [1]|slice(10**9)|list }}",
        "{{ 2.5|round(10**9) }}",
        "{{ 'x'|indent(10**9, true) }}",
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**6).join(['b'] * 10**5) }}",
        "{{ (['b'] * 10**5)|join('a' * 10**6) }}",
        "{{ 'aaaaaaaaa'.translate({97: 'a' * 10**7}) }}",
        "{{ [['x']]|sum(start=[]) }}",
        "{% set x = 'a' * 1000 %}" + "{% set x = x + x %}" * 30,
        "{% set x = 'a' * 1000 %}" + "{% set x = x ~ x %}" * 30,
        "{% set x = 'a' * 1000 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 30,
        "{% set x = 'a' * 10**7 %}" + "{{ x }}" * 30,
        "{% set x = 'a' * 10**6 %}{{ ('%(x)s' * 10**6) % {'x': x} }}",
        "{% set x = 'a' * 10**6 %}{{ ('%s' * 10**4) % ([x] * 10**4) }}",
        "{% set x = 'a' * 10**6 %}{{ ('%(x)s' * 10**6)|format(x=x) }}",
        "{% set x = 'a' * 10**6 %}{{ ('{0}' * 10**6).format(x) }}",
        "{% set x = 'a' * 10**6 %}{{ ('{x}' * 10**6).format_map({'x': x}) }}",
        "{% set n = namespace(x='a' * 10**6) %}{{ ('{0.x}' * 10**6).format(n) }}",
        "{{ '{0:{1}}'.format(1, 10**9) }}",
        "{{ ('a' * 10**6)|replace(old='a', new='b' * 10**6) }}",
        "{{ ('a' * 10**6)|replace('a', new='b' * 10**6) }}",
        "{% set n = namespace(x='a' * 10**6) %}{{ ([n] * 10**6)|join(attribute='x') }}",
        "{% set n = namespace(x='a' * 10**6) %}{{ ([n] * 10**6)|join('', 'x') }}",
        *["{% set x = ['a'] %}" + grown * 60 + shown for grown, shown in DOUBLED],
        "{% set x = ['a'] * 10**6 %}{{ [x] * 10**6 }}",
        "{% set x = ['a'] * 10**4 %}{{ {}.fromkeys(range(10**4), x)|tojson }}",
        "{% set x = ['a'] * 10**6 %}{{ range(99999)|map(attribute='b', default=x)|list }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n }}{{ 1 / 0 }}",
        "{% set n = namespace(x=['a' * 1000]) %}{% for i in range(900) %}{% set n.x = [n.x] %}{% endfor %}"
        "{{ n.x|tojson(indent=900) }}",
        "{{ ([0] * 10**7)|tojson(indent=1) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set l = range(99999)|list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
        "{{ lipsum(n=100000) }}",
        "{{ 1e400|int }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''|attr('__class__') }}" + "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ '{0.__class__.__base__}'.format('') }}" + "{{ 1/0 }}",
        "{{ namespace(**{'__class__': 1}) }}",
    ],
)
def test_hostile_templates_are_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither reading one nor rendering it takes long, or much memory."""
    monkeypatch.setattr(bounded, "MAX_S", 0.2)
    begun_s = time.process_time()
    with pytest.raises((RequestError, CheckpointError)) as caught:
        ChatTemplate(source, {}, "tokenizer_config.json").render([{"role": "user", "content": "x"}])
    assert str(caught.value).isprintable()
    assert time.process_time() - begun_s < 4


def test_bounds_leave_ordinary_templates_alone() -> None:
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text = ns.text ~ loop.index ~ '/' ~ "
        "loop.length ~ m.content|trim + ('!' if loop.last else ', ') %}{% endfor %}{{ ns.text }}"
        "{{ '-' * 3 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ '%05.2f' % 1.5 }}{{ '{:>4}'.format(7) }}{{ [1, 2]|sum }}"
        "{{ ['a', 'b']|join('+') }}{{ ', '.join(messages|map(attribute='role')) }}{{ {'a': [1]}|tojson(indent=2) }}"
    )
    messages = [{"role": "user", "content": " x "}, {"role": "user", "content": "y"}]
    wanted = "1/2x, 2/2y!---38" + '01.50   73a+buser, user{\n  "a": [\n    1\n  ]\n}'
    assert ChatTemplate(source, {}, "t").render(messages) == wanted
