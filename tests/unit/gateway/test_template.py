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
