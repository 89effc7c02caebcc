from __future__ import annotations

from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from evenflow.core.errors import InvalidRequestError, ModelFormatError
from evenflow.tokenization.chat_template import CHATML, GEMMA, ChatTemplate

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- if tools is not none %}
    {%- set ns = namespace(names=[]) %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{%- endif %}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}
"""
MISTRAL = """\
{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' %}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {% generation %}{{ message['content'] + eos_token}}{% endgeneration %}
    {% else %}
        {{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}
"""
TURNS = [
    {"role": "user", "content": "  What is 2 < 3 & \"4\"? 'é' "},
    {"role": "assistant", "content": "A <fact>."},
    {"role": "user", "content": "Thanks\n\n"},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"a": ["<", 1.5, None]}}}]


def render(source, messages, **options):
    return ChatTemplate(source, NAMES).render(messages, **options)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("source", [SMOLLM2, CHATML, GEMMA, LLAMA3, MISTRAL])
def test_render_equals_transformers(source, add_generation_prompt):
    options = {"tools": TOOLS, "add_generation_prompt": add_generation_prompt}
    (expected,), _ = render_jinja_template([TURNS], chat_template=source, **options, **NAMES)
    assert render(source, TURNS, **options) == expected


def test_gemma_format_puts_the_system_message_into_the_first_turn():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]
    assert render(GEMMA, messages) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_gemma_format_refuses_two_turns_of_one_side():
    with pytest.raises(InvalidRequestError, match="Roles must alternate"):
        render(GEMMA, [TURNS[0], TURNS[0]])


def test_render_tells_the_templates_own_message_when_it_refuses():
    with pytest.raises(InvalidRequestError, match="Only user and assistant roles") as caught:
        render(MISTRAL, [{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


def test_render_joins_text_parts_by_newlines():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


def test_render_passes_further_names():
    assert render("{{ enable_thinking }}", TURNS, enable_thinking=False) == "False"


def test_render_prints_the_given_date():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2024, 7, 26))
    assert template.render(TURNS) == "26 Jul 2024"


def test_assistant_message_may_have_no_content_when_it_calls_tools():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert render("{{ messages[0].tool_calls[0].id }}{{ messages[0].content }}", [call]) == "1None"


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("hello", "non-empty list"),
        ([], "non-empty list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\] needs a role"),
        ([TURNS[0], {"role": 3, "content": "x"}], r"messages\[1\] needs a role"),
        ([{"role": "user"}], r"messages\[0\] needs content"),
        ([{"role": "user", "content": 3}], r"messages\[0\] needs content"),
        ([{"role": "assistant", "content": None}], r"messages\[0\] needs content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "not text"),
        ([{"role": "user", "content": ["x"]}], "not text"),
        ([{"role": "user", "content": "x", "extra": object()}], "must hold JSON values"),
    ],
)
def test_render_refuses_malformed_messages(messages, what):
    with pytest.raises(InvalidRequestError, match=what) as caught:
        render(CHATML, messages)
    assert caught.value.param == "messages"


def test_render_refuses_values_nested_without_end():
    nested = {"role": "user", "content": "x"}
    nested["extra"] = nested
    with pytest.raises(InvalidRequestError, match="levels deep"):
        render(CHATML, [nested])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages[0]['__class__'] .mro() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ ('{0.__class__}' | attr('format'))(messages) }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({}) }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{% import 'os' as os %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_sandbox_refuses(source):
    with pytest.raises(InvalidRequestError):
        render(source, TURNS)


def test_template_that_cannot_be_parsed_is_the_models_fault():
    with pytest.raises(ModelFormatError, match="--chat-template"):
        ChatTemplate("{% if %}", {})
