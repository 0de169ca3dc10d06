"""The Jinja chat template stored in converted files, for programs that render templates (llama.cpp and what embeds it).

It covers chats with thinking off, on and at each effort, tools, their calls and results, and a response format; pyflash
itself encodes chats in code. Variables:

- messages, and tools and response_format for the opening system message, which may be absent.
- add_generation_prompt.
- enable_thinking (or thinking), which defaults to off; reasoning_effort, heard while thinking is on.
- preserve_thinking, or drop_thinking with the opposite meaning: whether earlier reasoning stays. It always does with
  tools.

llama.cpp knows by the name dsml_token that calls come in DeepSeek's own markup, and by the absence of V3.2's name for
the block of calls that they are V4's. It parses arguments given as a string first; other programs should give them as a
mapping, because Jinja cannot parse JSON.
"""

from __future__ import annotations

from gguf_export.chat_texts import EFFORTS, RESPONSE_FORMAT, TOOLS_TEMPLATE

_MARKERS = {"{dsml_token}": "｜DSML｜", "{thinking_start_token}": "<think>", "{thinking_end_token}": "</think>"}

_TEMPLATE = """
{%- set dsml_token = '｜DSML｜' -%}
{%- if enable_thinking is not defined -%}
  {%- set enable_thinking = thinking if thinking is defined else false -%}
{%- endif -%}
{%- set effort = reasoning_effort if reasoning_effort is defined and enable_thinking else '' -%}
{%- set keeps_all = (tools is defined and tools) or (preserve_thinking is defined and preserve_thinking)
    or (drop_thinking is defined and not drop_thinking) -%}
{%- set ns = namespace(last_user=-1, text='', opening='', next='', merges=false, calls=[], results=[], done=0) -%}
{%- for message in messages -%}
  {%- if message.role in ['user', 'tool', 'developer'] -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools is defined and tools -%}
  {%- set ns.opening = @TOOLS_BEGIN@ -%}
  {%- for tool in tools -%}
    {%- set ns.opening = ns.opening + ('' if loop.first else '\\n') + (tool.function | tojson) -%}
  {%- endfor -%}
  {%- set ns.opening = ns.opening + @TOOLS_END@ -%}
{%- endif -%}
{%- if response_format is defined and response_format -%}
  {%- set ns.opening = ns.opening + @RESPONSE_FORMAT@ + (response_format | tojson) -%}
{%- endif -%}
{{- '<｜begin▁of▁sentence｜>' -}}
@EFFORTS@
{%- if not (messages and messages[0].role == 'system') -%}{{- ns.opening -}}{%- endif -%}
{%- for message in messages -%}
  {%- set role = message.role -%}
  {%- set start = loop.index0 -%}
  {%- set source = message -%}
  {%- if role in ['user', 'tool'] and not ns.merges -%}
    {%- set ns.results = [] -%}
    {%- set ns.done = 0 -%}
    {%- for id in ns.calls -%}
      {%- set is_first = loop.first -%}
      {%- set ns.merges = true -%}
      {%- for other in messages[start:] -%}
        {%- if other.role not in ['user', 'tool'] -%}
          {%- set ns.merges = false -%}
        {%- elif ns.merges and other.role == 'tool' -%}
          {%- set answers = other.tool_call_id if other.tool_call_id else '' -%}
          {%- if answers == id or (is_first and answers not in ns.calls) -%}
            {%- set ns.results = ns.results + [other] -%}
          {%- endif -%}
        {%- endif -%}
      {%- endfor -%}
    {%- endfor -%}
    {%- set ns.merges = false -%}
  {%- endif -%}
  {%- if role == 'tool' and ns.results -%}
    {%- set source = ns.results[ns.done] -%}
    {%- set ns.done = ns.done + 1 -%}
  {%- endif -%}
  {%- set ns.text = '' -%}
  {%- if source.content is string -%}
    {%- set ns.text = source.content -%}
  {%- elif source.content -%}
    {%- for part in source.content -%}
      {%- if not loop.first -%}{%- set ns.text = ns.text + '\\n\\n' -%}{%- endif -%}
      {%- set ns.text = ns.text + (part.text if part.type == 'text' else '[Unsupported ' + part.type + ']') -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set is_gone = role == 'developer' and enable_thinking and not keeps_all and start < ns.last_user -%}
  {%- if role == 'system' -%}
    {{- ns.text + (ns.opening if loop.first else '') -}}
    {%- set ns.next = '' -%}
  {%- elif role in ['user', 'tool', 'developer'] and not is_gone -%}
    {{- '\\n\\n' if ns.merges and role != 'developer' else '<｜User｜>' -}}
    {{- '<tool_result>' + ns.text + '</tool_result>' if role == 'tool' else ns.text -}}
    {%- set opens = enable_thinking and (keeps_all or start >= ns.last_user) -%}
    {%- set ns.next = '<｜Assistant｜>' + ('<think>' if opens else '</think>') -%}
  {%- elif role == 'latest_reminder' -%}
    {{- ns.next + '<｜latest_reminder｜>' + ns.text -}}
    {%- set ns.next = '' -%}
  {%- elif role == 'assistant' -%}
    {{- ns.next -}}
    {%- set ns.next = '' -%}
    {%- if enable_thinking and (keeps_all or start > ns.last_user) -%}
      {{- (message.reasoning_content if message.reasoning_content else '') + '</think>' -}}
    {%- endif -%}
    {{- ns.text -}}
    {%- if message.tool_calls -%}
      {%- set ns.calls = [] -%}
      {{- '\\n\\n<' + dsml_token + 'tool_calls>' -}}
      {%- for call in message.tool_calls -%}
        {%- if call.id and call.id not in ns.calls -%}{%- set ns.calls = ns.calls + [call.id] -%}{%- endif -%}
        {{- '\\n<' + dsml_token + 'invoke name="' + call.function.name + '">\\n' -}}
        {%- if call.function.arguments is mapping -%}
          {%- for key, value in call.function.arguments.items() -%}
            {{- '' if loop.first else '\\n' -}}
            {{- '<' + dsml_token + 'parameter name="' + key + '" string="' -}}
            {{- 'true">' + value if value is string else 'false">' + (value | tojson) -}}
            {{- '</' + dsml_token + 'parameter>' -}}
          {%- endfor -%}
        {%- elif call.function.arguments is string -%}
          {{- '<' + dsml_token + 'parameter name="arguments" string="true">' + call.function.arguments -}}
          {{- '</' + dsml_token + 'parameter>' -}}
        {%- endif -%}
        {{- '\\n</' + dsml_token + 'invoke>' -}}
      {%- endfor -%}
      {{- '\\n</' + dsml_token + 'tool_calls>' -}}
    {%- endif -%}
    {{- '<｜end▁of▁sentence｜>' -}}
  {%- endif -%}
  {%- set ns.merges = role in ['user', 'tool'] -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ns.next -}}{%- endif -%}
"""


def _literal(text: str) -> str:
    """A string as Jinja writes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _tools_texts() -> tuple[str, str]:
    """What stands before and after the schemas of the tools, with the blank line before it."""
    text = TOOLS_TEMPLATE
    for marker, token in _MARKERS.items():
        text = text.replace(marker, token)
    begin, end = text.split("{tool_schemas}")
    return "\n\n" + begin, end


def _effort_lines(release: str) -> str:
    lines = [
        f"{{%- if effort == '{effort}' -%}}{{{{- {_literal(text)} -}}}}{{%- endif -%}}"
        for effort, text in EFFORTS[release].items()
        if text
    ]
    return "\n".join(lines)


def chat_template(release: str) -> str:
    """The template for a release, "preview" or "0731"; they differ in the texts of the reasoning efforts.

    Only 0731's has the words "Beyond maximum": where a file does not say its release, it is told by them.
    """
    begin, end = _tools_texts()
    values = {"TOOLS_BEGIN": begin, "TOOLS_END": end, "RESPONSE_FORMAT": RESPONSE_FORMAT}
    template = _TEMPLATE.replace("@EFFORTS@", _effort_lines(release))
    for name, text in values.items():
        template = template.replace(f"@{name}@", _literal(text))
    return template.strip()
