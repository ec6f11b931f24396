"""Chat templates for tests, each with one habit of a well-known family."""

from __future__ import annotations

# Qwen 2.5: a default system message, tools, calls
CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}"
    "{%- elif messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.tool_calls %}{{- m.tool_calls | tojson }}{%- endif %}"
    "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# The same with the places named that the model generates
CHATML_MARKED = CHATML.replace(
    "{{- m.content + '<|im_end|>\\n' }}",
    "{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>' }}"
    "{% endgeneration %}{{- '\\n' }}{%- else %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}",
)
# Mistral: turns must alternate, no end of text but after an answer
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ ' user ' + m['content'] + ' assistant' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Qwen 3: what was thought is left out of earlier turns
FORGETFUL = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and not loop.last %}{{- m.content.split('</think>')[-1] }}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
