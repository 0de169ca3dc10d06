"""The Jinja chat template stored in converted files, for programs that render templates (llama.cpp and what embeds it).

It covers plain chats with thinking on or off, and tool results; pyflash itself encodes chats in code. Variables:
messages, add_generation_prompt, and enable_thinking (or thinking), which defaults to off.
"""

CHAT_TEMPLATE = """
{%- if enable_thinking is not defined -%}
  {%- set enable_thinking = thinking if thinking is defined else false -%}
{%- endif -%}
{%- set user_roles = ['user', 'tool', 'developer'] -%}
{%- set state = namespace(last_user=-1, text='') -%}
{%- for message in messages -%}
  {%- if message.role in user_roles -%}{%- set state.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- '<｜begin▁of▁sentence｜>' -}}
{%- for message in messages -%}
  {%- set state.text = '' -%}
  {%- if message.content is string -%}
    {%- set state.text = message.content -%}
  {%- elif message.content -%}
    {%- for part in message.content -%}
      {%- if not loop.first -%}{%- set state.text = state.text + '\\n\\n' -%}{%- endif -%}
      {%- set state.text = state.text + (part.text if part.type == 'text' else '[Unsupported ' + part.type + ']') -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message.role == 'system' -%}
    {{- state.text -}}
  {%- elif message.role in user_roles -%}
    {%- if message.role == 'tool' -%}
      {%- set state.text = '<tool_result>' + state.text + '</tool_result>' -%}
    {%- endif -%}
    {%- if not loop.first and messages[loop.index0 - 1].role in user_roles -%}
      {{- '\\n\\n' + state.text -}}
    {%- else -%}
      {{- '<｜User｜>' + state.text -}}
    {%- endif -%}
    {%- set is_answered = not loop.last and messages[loop.index0 + 1].role == 'assistant' -%}
    {%- if is_answered or (loop.last and add_generation_prompt) -%}
      {{- '<｜Assistant｜>' -}}
      {{- '<think>' if enable_thinking and loop.index0 >= state.last_user else '</think>' -}}
    {%- endif -%}
  {%- elif message.role == 'assistant' -%}
    {%- if enable_thinking and loop.index0 > state.last_user -%}
      {{- (message.reasoning_content if message.reasoning_content else '') + '</think>' -}}
    {%- endif -%}
    {{- state.text + '<｜end▁of▁sentence｜>' -}}
  {%- endif -%}
{%- endfor -%}
""".strip()
