"""Templates in their own process: the texts of transformers, and an end for whatever has none."""

import os

import pytest
from tiny import TEMPLATE, tiny_tokenizer

from rmexp.models.rendering import Refusal, Renderer, RenderError

DATE = "26 Jul 2024"
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
TURNS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two é."}]


@pytest.fixture(scope="module")
def renderer():
    made = Renderer()
    yield made
    made.close()


def render(renderer, template, *conversations, **limit):
    return renderer.render(template, conversations or [TURNS], {}, DATE, **limit)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{%- for m in messages %}\n  {% if loop.first %}{% break %}{% endif %}{{ m }}{% endfor %}",
        "{% generation %}{{ messages[1].content }}{% set a = 1 %}{% endgeneration %}{{ a }}|",
        "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = 1 %}{% endfor %}{{ n.x }}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2, ensure_ascii=true) }}",
        "{{ dict(a=1) }}{{ dict.fromkeys([1]) }}{{ tools is none }}{{ add_generation_prompt }}",
        "{{ bos_token }}{% if eos_token is defined %}{{ eos_token }}{% endif %}{{ nothing }}",
    ],
)
def test_a_text_is_that_of_transformers(renderer, template):
    tokenizer = tiny_tokenizer()
    expected = tokenizer.apply_chat_template(TURNS, chat_template=template, tokenize=False)
    variables = {"tools": None, "documents": None, "add_generation_prompt": False}
    variables |= tokenizer.special_tokens_map
    assert renderer.render(template, [TURNS], variables, DATE) == [expected]


def test_today_is_the_given_date(renderer):
    template = "{{ strftime_now('%d %B %Y') }} {{ strftime_now('%Y-%m-%d') }}"
    assert render(renderer, template) == ["26 July 2024 2024-07-26"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / (messages | length - 2) }}", "ZeroDivisionError: division by zero"),
        ("{{ messages + 1 }}", "TypeError: can only concatenate list"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion"),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{% import 'x' as x %}", "TypeError: no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% if %}", "TemplateSyntaxError: Expected an expression"),
        ("{{ messages | random }}", "TemplateAssertionError: No filter named 'random'"),
        ("{{ 'a' * 300000 }}", "OverflowError: it makes 300,000 characters of 10"),
        ("{{ '%2000000000d' % 1 }}", "MemoryError:"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError: "),
    ],
)
def test_a_template_that_fails_says_why_and_the_next_one_is_rendered(renderer, template, reason):
    with pytest.raises(RenderError) as raised:
        render(renderer, template)
    assert str(raised.value).startswith(reason)
    assert "\n" not in str(raised.value)
    assert render(renderer, "{{ messages[0].content }}") == ["One?"]


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{{ 99999 ** (messages | length * 9999999) }}",
        "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a * 2 %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_ended(renderer, template):
    with pytest.raises(RenderError, match=r"^it takes more than 0\.2 seconds$|^MemoryError:"):
        render(renderer, template, seconds=0.2)
    assert render(renderer, "{{ messages[0].content }}") == ["One?"]


def test_a_loop_that_only_one_conversation_enters_ends(renderer):
    template = "{% if messages[0].content == 'Three?' %}" + ENDLESS + "{% endif %}"
    template += "{{ messages[0].content }}"
    assert render(renderer, template) == ["One?"]
    turns = [{"role": "user", "content": "Three?"}]
    with pytest.raises(RenderError, match=r"more than 0\.2 seconds"):
        render(renderer, template, TURNS, turns, TURNS, seconds=0.2)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        (
            "{{ ''.__class__.__mro__ }}",
            "access to attribute '__class__' of 'str' object is unsafe.",
        ),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ namespace(_x=1) }}", "a namespace has no _x"),
    ],
)
def test_a_refusal_is_told_from_a_failure(renderer, template, reason):
    assert render(renderer, template) == [Refusal(reason)]


def test_a_fork_has_a_process_of_its_own(renderer):
    render(renderer, "{{ 1 }}")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        text = render(renderer, "{{ 2 }}")[0]
        renderer.close()
        os.write(writing, str(text).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as end:
        assert end.read() == b"2"
    assert render(renderer, "{{ 3 }}") == ["3"]


def test_a_process_that_was_ended_is_started_again(renderer):
    render(renderer, "{{ 1 }}")
    renderer._process.kill()
    renderer._process.wait()
    with pytest.raises(RenderError, match="its process was ended by SIGKILL"):
        render(renderer, "{{ 1 }}")
    assert render(renderer, "{{ 1 }}") == ["1"]
