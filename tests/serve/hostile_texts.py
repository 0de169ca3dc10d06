"""Texts with which a model could try to run a script in the page. Each calls hit() if it succeeds."""

from __future__ import annotations

from itertools import product

_HANDLERS = (
    "<img src=x onerror={}>", "<img src=x onerror={}//", "<svg onload={}>", "<svg/onload={}>",
    "<svg><animate onbegin={} attributeName=x dur=1s>", "<body onload={}>", "<video><source onerror={}></video>",
    "<audio src=x onerror={}>", "<input autofocus onfocus={}>", "<select autofocus onfocus={}>",
    "<textarea autofocus onfocus={}>", "<details open ontoggle={}>", "<marquee onstart={}>x</marquee>",
    "<a onmouseover={}>over</a>", "<p style=animation:x onanimationstart={}>x</p>", "<div onpointerenter={}>over</div>",
    "<object data=x onerror={}></object>", "<embed src=x onload={}>", "<iframe onload={}></iframe>",
    "<form onformdata={}><button>x</button></form>", "<style onload={}></style>",
    "<link rel=stylesheet href=/style.css onload={}>",
    "<button popovertarget=x>x</button><p popover id=x onbeforetoggle={}>y</p>",
)
_CALLS = ("hit()", "'hit()'", "&#104;it()", "window['hit']()")

_URLS = (
    "javascript:hit()", "JaVaScRiPt:hit()", " javascript:hit()", "java\tscript:hit()", "javascript&colon;hit()",
    "&#106;avascript:hit()", "&#x6A;avascript&#x3A;hit()", "javascript://%0ahit()", "vbscript:hit()",
    "data:text/html,<script>opener.hit()</script>", "data:text/html;base64,PHNjcmlwdD5vcGVuZXIuaGl0KCk8L3NjcmlwdD4=",
    "blob:javascript:hit()", "\x01javascript:hit()", "view-source:javascript:hit()", "javascript:hit()//https://example.org/",
    "feed:javascript:hit()",
)
_PLACES = (
    "[x]({})", "[x](<{}>)", "![x]({})", "<a href=\"{}\">x</a>", "[x]: {}\n\n[x]", "<iframe src=\"{}\"></iframe>",
)

_OTHERS = (
    "<script>hit()</script>", "<SCRIPT>hit()</SCRIPT>", "<script src=data:,hit()></script>",
    "<script type=module>hit()</script>", "<scr<script>ipt>hit()</scr</script>ipt>", "<<script>hit()//<</script>",
    "<script\n>hit()</script\n>", "&lt;script&gt;hit()&lt;/script&gt;", "`<script>hit()</script>`",
    "```html\n<script>hit()</script>\n```", "```\n</code></pre><script>hit()</script>\n```", "    <script>hit()</script>",
    "~~~<img/src=x/onerror=hit()>\nx\n~~~", "```\"><img src=x onerror=hit()>\nx\n```", "```<script>hit()</script>\ncode",
    "| a |\n|---|\n| <img src=x onerror=hit()> |", "| <script>hit()</script> |\n|---|\n| b |", "> <img src=x onerror=hit()>",
    "- <script>hit()</script>\n- b", "1. a\n2. <svg onload=hit()>", "# <img src=x onerror=hit()>",
    "**<img src=x onerror=hit()>**", "~~<svg onload=hit()>~~", "- [x] <svg onload=hit()>",
    "<math><mtext><script>hit()</script></mtext></math>", "<math><mi//xlink:href=\"data:x,<script>hit()</script>\">",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=hit()&gt;\">",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=hit()>",
    "<svg></p><style><a id=\"</style><img src=1 onerror=hit()>\">",
    "<noscript><p title=\"</noscript><img src=x onerror=hit()>\">", "<template><script>hit()</script></template>",
    "<svg><script>hit()</script></svg>", "<svg><use href=\"data:image/svg+xml,<svg id='x' onload='hit()'/>#x\"></use></svg>",
    "<svg><a xlink:href=javascript:hit()><text y=20>x</text></a></svg>",
    "<svg><set attributeName=href to=javascript:hit()></set></svg>",
    "<svg><foreignObject><iframe srcdoc='<script>parent.hit()</script>'></iframe></foreignObject></svg>",
    "<iframe srcdoc=\"<script>parent.hit()</script>\"></iframe>", "<object data=\"javascript:hit()\"></object>",
    "<embed src=javascript:hit()>", "<base href=\"javascript:/hit()//\"><a href=/x>x</a>",
    "<meta http-equiv=refresh content=\"0;url=javascript:hit()\">",
    "<form action=javascript:hit()><input type=submit></form>", "<button formaction=javascript:hit()>x</button>",
    "<isindex action=javascript:hit() type=image>", "<link rel=import href=\"data:text/html,<script>hit()</script>\">",
    "<style>@import 'javascript:hit()';</style>", "<style>*{background:url(javascript:hit())}</style>",
    "<p style=\"background:url(javascript:hit())\">x</p>", "<p style=\"width:expression(hit())\">x</p>",
    "<!--<img src=\"--><img src=x onerror=hit()//\">", "<![CDATA[<script>hit()</script>]]>",
    "<?xml version=\"1.0\"?><script>hit()</script>", "<!DOCTYPE x [<!ENTITY y \"<script>hit()</script>\">]>&y;",
    "<xmp><img title=\"</xmp><img src onerror=hit()>\"></xmp>",
    "<title><img title=\"</title><img src onerror=hit()>\"></title>",
    "<textarea><img title=\"</textarea><img src onerror=hit()>\"></textarea>", "<plaintext><script>hit()</script>",
    "<listing>&lt;img onerror=hit() src&gt;</listing>", "<table><td background=javascript:hit()>x</table>",
    "<a href=\"https://example.org/\" onclick=hit()>x</a>", "<a id=x tabindex=1 onfocus=hit()></a>",
    "<a href=\"#\" target=\"javascript:hit()\">x</a>", "<https://example.org/\"onmouseover=\"hit()>",
    "https://example.org/\"onmouseover=\"hit()", "[x](https://example.org/ \"t\\\" onmouseover=hit() x=\\\"\")",
    "[x](https://example.org/\"onmouseover=hit()//)", "![\" onerror=hit() x=\"](https://example.org/a.png)",
    "![x](https://example.org/\"onerror=\"hit())", "[<img src=x onerror=hit()>](https://example.org/)",
    "[x][y]\n\n[y]: https://example.org/ '\"><img src=x onerror=hit()>'", "[^1]\n\n[^1]: <script>hit()</script>",
    "<a name=getElementById>x</a><form id=body>y</form>", "<img name=createElement><form name=cookie>x</form>",
    "$\\href{javascript:hit()}{x}$", "$\\url{javascript:hit()}$", "$$\\htmlData{x=<img src=x onerror=hit()>}{x}$$",
    "$\\htmlClass{\"onmouseover=hit()}{x}$", "$\\includegraphics{javascript:hit()}$", "$<img src=x onerror=hit()>$",
    "\\(<script>hit()</script>\\)", "\\[</math><script>hit()</script>\\]", "$\\text{<img src=x onerror=hit()>}$",
    "$\\unicode{x3c}script\\unicode{x3e}hit()$", "<mark onpointerrawupdate=hit()>x</mark>", "<x onclick=hit()>x</x>",
    "<x-y is=script>hit()</x-y>", "<slot onslotchange=hit()></slot>", "\\u003cscript\\u003ehit()\\u003c/script\\u003e",
    "\uff1cscript\uff1ehit()\uff1c/script\uff1e", "<scr\x00ipt>hit()</scr\x00ipt>", "<img\x0csrc=x\x0conerror=hit()>",
    "<img src=\"x` `<script>hit()</script>\"` `>", "<svg><style><img src=x onerror=hit()></style></svg>",
    "constructor.constructor('hit()')()", "{{constructor.constructor('hit()')()}}", "${hit()}",
    "%3Cscript%3Ehit()%3C/script%3E", "\x1b]8;;javascript:hit()\x07x\x1b]8;;\x07",
)  # fmt: skip

HOSTILE = (
    *(handler.format(call) for handler, call in product(_HANDLERS, _CALLS)),
    *(place.format(url) for place, url in product(_PLACES, _URLS)),
    *_OTHERS,
)
