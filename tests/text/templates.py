"""Chat templates of the kinds that the family's files carry, written for these tests."""

from __future__ import annotations

# Turns in [INST] … [/INST], the system message inside the first; roles must alternate.
LLAMA2 = """
{%- if messages[0].role == 'system' -%}
    {%- set first = '<<SYS>>\\n' ~ messages[0].content.strip() ~ '\\n<</SYS>>\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 is even) -%}
        {{ raise_exception('roles must alternate: user, assistant, user, …') }}
    {%- endif -%}
    {%- if turn.role == 'user' -%}
        {{ bos_token ~ '[INST] ' ~ (first if loop.first else '') ~ turn.content.strip() ~ ' [/INST]' }}
    {%- else -%}
        {{ ' ' ~ turn.content.strip() ~ ' ' ~ eos_token }}
    {%- endif -%}
{%- endfor -%}
"""

# Every message between headers, texts trimmed.
LLAMA3 = """
{%- set ns = namespace(begun=false) %}
{%- for message in messages %}
    {%- if not ns.begun %}{{- bos_token }}{%- set ns.begun = true %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim
        + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# As above with the date, tools in the system message, calls and their results.
LLAMA31 = """
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{%- for tool in tools or [] %}
    {{- tool | tojson(indent=4) }}
    {{- "\\n\\n" }}
{%- endfor %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content if message.content is string else message.content | tojson }}
        {{- "<|eot_id|>" }}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("one tool call at a time") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# Builds tokens out of roles; looks into texts, cuts them and changes their case; parts; marks for training.
CURIOUS = """
{% for message in messages %}
    {% set text = message.content %}
    {% if text is not string %}{% set text = text | map(attribute='text') | join %}{% endif %}
    {% if message.role == 'assistant' %}
        {% if '</think>' in text %}
            {% set text = text.split('</think>')[-1].lstrip('\\n') %}
        {% endif %}
<|{{ message.role }}|>{% generation %}{{ text }}<|im_end|>{% endgeneration %}

    {% elif text.startswith('/') %}
<|{{ message.role }}|>command {{ text[1:] | upper }}<|im_end|>
    {% else %}
<|{{ message.role }}|>{{ text | replace('!', '') }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""
