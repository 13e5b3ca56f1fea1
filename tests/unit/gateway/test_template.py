import resource
import sys

import jinja2
import pytest

from services.gateway import template
from services.gateway.errors import ApiError
from services.gateway.template import ChatTemplate

MESSAGES = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "hi"}]


def render(source: str, most_chars: int = 10_000) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, most_chars).render(MESSAGES)


def test_a_template_gets_the_messages_the_special_tokens_and_the_wish_for_an_answer() -> None:
    source = """{{ bos_token }}{% for message in messages %}
    {% if loop.first %}{% continue %}{% endif %}
[{{ message['role'] }}]{{ message.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
    assert render(source) == "<s>[user]hi</s>\n[assistant]"


def test_tojson_does_not_escape_for_html() -> None:
    assert render("{{ messages[0] | tojson }}") == '{"role": "system", "content": "be <brief>"}'


def test_the_generation_tag_is_its_content() -> None:
    assert render("{% generation %}{{ messages[1].content }}{% endgeneration %}") == "hi"


def test_strftime_now_is_there() -> None:
    assert len(render("{{ strftime_now('%Y') }}")) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content.__class__.__base__.__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% include '/etc/passwd' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ dict.__globals__['json'] }}",
    ],
)
def test_what_a_template_cannot_or_must_not_do_is_the_clients_error(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_the_output_is_bounded() -> None:
    with pytest.raises(ApiError, match="longer than 100 characters"):
        render("{% for i in range(1000) %}xxxxxxxxxx{% endfor %}", most_chars=100)


DOUBLED = (
    "{% set ns = namespace(x='x' * 1000, y='x' * 1000) %}{% for i in range(60) %}%s{% endfor %}{{ ns.x | length }}"
)
TWICE = DOUBLED.replace("%s", "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9**(9**9) }}",
        "{{ 'x' * 10**10 }}",
        "{{ 10**10 * ['x'] }}",
        "{% set ns = namespace(x=10**1000) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x'.zfill(10**10) }}",
        "{{ '\t'.expandtabs(10**10) }}",
        "{{ 'x' | indent(10**10, first=true) }}",
        "{{ (1).to_bytes(10**10, 'big') }}",
        "{{ messages | tojson(indent=10**10) }}",
        "{{ messages | batch(10**10, 'x') | list }}",
        "{{ range(100000) | list | join('x' * 100000) }}",
        "{{ ('x' * 100000).join('y' * 100000) }}",
        "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
        "{{ ('x' * 10000000) | list }}",
        "{{ ('x,' * 10000000).split(',') }}",
        DOUBLED.replace("%s", "{% set ns.x = ns.x + ns.x %}"),
        DOUBLED.replace("%s", "{% set ns.x = ns.x ~ ns.x %}"),
        DOUBLED.replace("%s", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        DOUBLED.replace("%s", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
        DOUBLED.replace("%s", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x }}",
        DOUBLED.replace("%s", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x | tojson }}",
        DOUBLED.replace("%s", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x | string }}",
        DOUBLED.replace("%s", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}") + "{{ '' ~ ns.x }}",
        TWICE + "{{ ns.x == ns.y }}",
        TWICE + "{{ ns.x in [ns.y] }}",
        TWICE + "{{ ns.x is eq ns.y }}",
        TWICE + "{{ [ns.x, ns.y] | unique | list }}",
        TWICE + "{{ [ns.x].index(ns.y) }}",
        DOUBLED.replace("%s", "{% set ns.x = (ns.x, ns.x) %}") + "{{ {ns.x: 1} | length }}",
    ],
)
def test_a_template_cannot_take_all_the_memory_or_all_the_time_neither_when_compiled_nor_when_run(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "RENDER_SECONDS", 10.0)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ApiError, match="more than 256 MiB"):
        render(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 400 << 10


def test_a_chat_as_long_as_a_body_may_be_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_SECONDS", 10.0)
    source = """{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content.split('</think>')[-1].lstrip('\n') }}
{{- m.content | replace('a', 'bb') | trim ~ '<|im_end|>' }}{{ m | tojson }}{{ m.content[1:] }}{% endfor %}"""
    chat = ChatTemplate(source, {}, 1 << 30)
    assert len(chat.render([{"role": "user", "content": "a" * (8 << 20)}])) > 32 << 20
    assert len(chat.render([{"role": "user", "content": "a" * 1024}] * 1024)) > 4 << 20


def test_what_a_template_may_take_is_of_each_rendering() -> None:
    chat = ChatTemplate("{{ ('x' * 100_000_000) | length }}", {}, 100)
    assert [chat.render(MESSAGES) for _ in range(3)] == ["100000000"] * 3


def test_a_source_without_end_is_refused() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError, match="more than 1048576 characters"):
        ChatTemplate("x" * (2 << 20), {}, 100)


def test_a_template_that_swallows_the_alarm_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_SECONDS", 0.05)

    class Deaf:
        """Whatever is raised while an object goes away, Python only prints."""

        def __del__(self) -> None:
            while not told:
                pass

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def deaf(form: str) -> str:
        Deaf()
        while True:
            pass

    chat = ChatTemplate("{{ strftime_now('x') }}", {}, 100)
    chat._sandbox.globals["strftime_now"] = deaf
    with pytest.raises(ApiError, match=r"not done after 0.05 seconds"):
        chat.render(MESSAGES)
    assert len(told) == 1


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_cannot_run_for_ever(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_SECONDS", 0.05)
    with pytest.raises(ApiError, match=r"not done after 0.05 seconds"):
        render(source)
