"""What a browser is shown at the server's address."""

from __future__ import annotations

import html

HEADERS = (
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
                                 b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pyflash</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .8rem; border: 1px solid #8885; border-radius: .4rem }
td { padding: .15rem 1rem .15rem 0; vertical-align: top }
</style>
</head>
<body>
<h1>pyflash</h1>
<p>This server answers programs with the model <strong>@NAME@</strong>. Nothing leaves this machine.</p>
<table>
<tr><td>OpenAI</td><td><code>/v1/chat/completions</code>, <code>/v1/responses</code>, <code>/v1/completions</code></td></tr>
<tr><td>Anthropic</td><td><code>/v1/messages</code></td></tr>
<tr><td>Ollama</td><td><code>/api/chat</code>, <code>/api/generate</code></td></tr>
<tr><td>State</td><td><code>/health</code>, <code>/metrics</code>, <code>/v1/models</code></td></tr>
</table>
<p>A first question, from a terminal:</p>
<pre>curl ADDRESS/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"messages": [{"role": "user", "content": "Hello"}]}'</pre>
<p>where <code>ADDRESS</code> is this page's address. <code>pyflash serve --print-config CLIENT</code> prints what a coding
agent needs to use this server.</p>
</body>
</html>
"""


def page(model_name: str) -> str:
    return _PAGE.replace("@NAME@", html.escape(model_name))
