import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.gateway.sandbox import BoundedSandbox

MESSAGES = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "hi"}]
REASONING = """{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<t>')
    and message.content.endswith('</t>')) %}{%- set ns.multi = false %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}
{%- if '<brief>' in content %}
{%- set reason = content.split('<brief>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('<brief>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' ~ reason }}{%- endfor %}{{ ns.last }}"""


@pytest.mark.parametrize(
    "source",
    [
        REASONING,
        "{{ 1 < messages|length <= 2 and 3 not in [1, 2] and (1, 2) == (1, 2) }}",
        "{% for a, (b, c) in [(1, (2, 3))] %}{{ a * b ** c - 7 // 2 % 3 }}{% endfor %}",
        "{% set x, y = 1, 'z' %}{{ y ~ x }}{{ -2 ** 2 }}",
        "{% for role, group in messages | groupby('role') %}{{ role }}{{ group | length }}{% endfor %}",
        "{{ messages | map(attribute='content') | map('upper') | join(', ') }}{{ ['b', 'a'] | sort | join }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | string }}{{ [3, 1] | sum }}{{ [2, 1] | max }}",
        "{% macro m(a, b='d') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}",
        "{% macro m(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call m(2) %}c{% endcall %}",
        "{% filter upper %}a{{ 'b' | replace('b', 'c') }}{% endfilter %}{% set x %}s{{ 1 }}{% endset %}{{ x | trim }}",
        "{{ '%s-%03d' % ('a', 7) }}{{ '{:>4}{b!r}'.format('x', b='y') }}{{ '%s' | format(1) }}{{ 5 % 3 }}",
        "{{ {'a': 1}.items() | list }}{{ dict(a=1) | items | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ none }}",
        "{{ 'abc'[1:] ~ 'abc'[::-1] ~ [1, 2, 3][:2] }}{{ messages[0]['content'][3:] }}{{ [1] + [2] }}{{ 2.5 + 1 }}",
        "{{ 'a b'.split() }}{{ 'a,b'.split(',', 1) }}{{ ','.join(['a', 'b']) }}{{ 'x'.ljust(3) }}{{ 'aXb'.lower() }}",
        "{% for x in range(3) recursive %}{{ loop.cycle('a', 'b') }}{{ loop.last }}{% endfor %}{{ x is defined }}",
        "{{ 'x' * 3 }}{{ [1, 2] * 2 }}{{ 1 if 2 is divisibleby(2) }}{{ 3 is in [3] }}{{ 'a' | default('b') }}",
        "{{ messages | batch(1, 'x') | list }}{{ [1, 2, 3] | slice(2) | list }}{{ '<a>' | e }}",
        "{{ 'a\nb' | indent(2) }}{{ 'abc' | list }}{{ 'abc' | first }}{{ '1' | int + 1.5 | round }}",
        "{{ 'a b' | wordwrap(1) }}{{ messages | tojson(indent=2) }}{{ 'a/b' | urlencode }}{{ [1, 1] | unique | list }}",
    ],
)
def test_what_is_bounded_writes_what_jinja2_itself_does(source: str) -> None:
    options = {"trim_blocks": True, "lstrip_blocks": True}
    sandboxes = (BoundedSandbox(**options), ImmutableSandboxedEnvironment(**options))
    written = [sandbox.from_string(source).render(messages=MESSAGES) for sandbox in sandboxes]
    assert written[0] == written[1] != ""
