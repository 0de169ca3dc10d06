"""Programs, configurations and questions about them, for scripts/make_corpus.py. MIT, as this repository."""

from __future__ import annotations

import random
from collections.abc import Callable

NOUNS = [
    "order",
    "user",
    "sensor",
    "ticket",
    "invoice",
    "packet",
    "window",
    "chapter",
    "route",
    "token",
    "reading",
    "account",
]
FIELDS = ["price", "length", "weight", "score", "age", "delay", "size", "count", "level", "rate"]
VERBS = ["collect", "merge", "filter", "rank", "group", "check", "count", "split", "update", "archive"]
Answer = tuple[str, str, str]  # question, reasoning, answer


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _names(rng: random.Random) -> tuple[str, str, str, int]:
    return rng.choice(VERBS), rng.choice(NOUNS), rng.choice(FIELDS), rng.randint(2, 500)


def python_function(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f'''from dataclasses import dataclass


@dataclass(frozen=True)
class {noun.capitalize()}:
    name: str
    {field}: float


def {verb}_{noun}s({noun}s: list[{noun.capitalize()}], limit: float = {limit}) -> dict[str, float]:
    """Total {field} by name, of those at or above limit."""
    totals: dict[str, float] = {{}}
    for each in {noun}s:
        if each.{field} >= limit:
            totals[each.name] = totals.get(each.name, 0.0) + each.{field}
    return dict(sorted(totals.items(), key=lambda item: -item[1]))'''
    return (
        f"Write a Python function that sums the {field} of each {noun} by name, leaving out those below {limit}.",
        f"A dataclass for the {noun}, a dict of totals, sort by value. Edge: an empty list gives an empty dict.",
        (
            f"{_block('python', text)}\n\nAn empty list gives an empty result; ties keep the order in which names"
            " appeared."
        ),
    )


def python_tests(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""import pytest

from shop.{noun}s import {verb}_{noun}s


@pytest.mark.parametrize("values, wanted", [([], 0), ([{limit}], 1), ([{limit - 1}, {limit + 1}], 1)])
def test_{verb}(values: list[int], wanted: int) -> None:
    assert {verb}_{noun}s([{{"{field}": value}} for value in values], limit={limit}) == wanted


def test_negative_{field}_is_refused() -> None:
    with pytest.raises(ValueError, match="{field}"):
        {verb}_{noun}s([{{"{field}": -1}}])"""
    return (
        f"Tests for {verb}_{noun}s, please, with pytest.",
        "Empty, at the limit, around the limit, and an error.",
        _block("python", text),
    )


def c_function(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""#include <stddef.h>
#include <stdint.h>

struct {noun} {{
    uint32_t id;
    double {field};
}};

/* Index of the {noun} with the largest {field}, or -1 when there is none below {limit}. */
ptrdiff_t {verb}_{noun}(const struct {noun} *items, size_t n) {{
    ptrdiff_t best = -1;
    for (size_t i = 0; i < n; ++i) {{
        if (items[i].{field} >= {limit}.0) continue;
        if (best < 0 || items[i].{field} > items[best].{field}) best = (ptrdiff_t)i;
    }}
    return best;
}}"""
    return (
        f"In C: find the {noun} with the largest {field} below {limit}.",
        "One pass, index of the best, -1 if none. Watch signedness.",
        f"{_block('c', text)}\n\nIt runs in O(n), takes no memory, and returns the first one among equals.",
    )


def sql(rng: random.Random) -> Answer:
    _, noun, field, limit = _names(rng)
    other = rng.choice([each for each in NOUNS if each != noun])
    text = f"""SELECT {other}.name, COUNT(*) AS n, AVG({noun}.{field}) AS mean_{field}
FROM {noun}
JOIN {other} ON {other}.id = {noun}.{other}_id
WHERE {noun}.created_at >= DATE '2024-01-01'
GROUP BY {other}.name
HAVING COUNT(*) > {limit}
ORDER BY mean_{field} DESC
LIMIT 10;"""
    return (
        f"SQL: the ten {other}s with the highest average {field} of their {noun}s, only those with more than {limit}.",
        "Join, group, having for the count, order by the average.",
        _block("sql", text),
    )


def javascript(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""export async function {verb}{noun.capitalize()}s(url, {{ limit = {limit}, signal }} = {{}}) {{
  const response = await fetch(`${{url}}/{noun}s?limit=${{limit}}`, {{ signal }});
  if (!response.ok) throw new Error(`{noun}s: HTTP ${{response.status}}`);
  const {{ items }} = await response.json();
  return items
    .filter(({{ {field} }}) => Number.isFinite({field}))
    .sort((a, b) => b.{field} - a.{field})
    .map(({{ id, {field} }}) => ({{ id, {field} }}));
}}"""
    return (
        f"A JavaScript function that fetches {noun}s and sorts them by {field}.",
        "fetch, check ok, drop what is no number, sort descending.",
        f"{_block('js', text)}\n\nPass an `AbortSignal` to cancel it.",
    )


def rust(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""use std::collections::BTreeMap;

pub struct {noun.capitalize()} {{
    pub name: String,
    pub {field}: u64,
}}

pub fn {verb}(items: &[{noun.capitalize()}]) -> Result<BTreeMap<&str, u64>, String> {{
    let mut totals = BTreeMap::new();
    for item in items {{
        let total = totals.entry(item.name.as_str()).or_insert(0u64);
        *total = total.checked_add(item.{field}).ok_or_else(|| format!("{{}}: too large", item.name))?;
    }}
    totals.retain(|_, total| *total >= {limit});
    Ok(totals)
}}"""
    return (
        f"Sum {field} by name in Rust without overflow, dropping totals below {limit}.",
        "BTreeMap for order, checked_add, borrow the names.",
        _block("rust", text),
    )


def go_server(rng: random.Random) -> Answer:
    _, noun, field, limit = _names(rng)
    text = f"""func (s *Server) handle{noun.capitalize()}(w http.ResponseWriter, r *http.Request) {{
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {{
		http.Error(w, "{noun}: id must be a positive number", http.StatusBadRequest)
		return
	}}
	ctx, cancel := context.WithTimeout(r.Context(), {limit}*time.Millisecond)
	defer cancel()
	found, err := s.store.{noun.capitalize()}(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {{
		http.NotFound(w, r)
		return
	}}
	json.NewEncoder(w).Encode(map[string]any{{"id": id, "{field}": found}})
}}"""
    return (
        f"A Go handler for GET /{noun}/{{id}} with a timeout of {limit} ms.",
        "Check the id, context with timeout, 404 for no rows.",
        _block("go", text),
    )


def shell(rng: random.Random) -> Answer:
    _, noun, _, limit = _names(rng)
    text = f"""#!/bin/sh
set -eu
for file in /var/log/{noun}/*.log; do
    [ -e "$file" ] || continue
    if [ "$(wc -c < "$file")" -gt {limit}000 ]; then
        gzip -9 "$file"
        echo "packed $file"
    fi
done"""
    return (
        f"A shell script that packs the {noun} logs above {limit} kB.",
        "Loop, size by wc, gzip. Quote names, stop on errors.",
        _block("sh", text),
    )


def configuration(rng: random.Random) -> Answer:
    _, noun, field, limit = _names(rng)
    text = f"""services:
  {noun}-worker:
    image: registry.example/{noun}:{rng.randint(1, 9)}.{rng.randint(0, 20)}
    environment:
      MAX_{field.upper()}: "{limit}"
      LOG_LEVEL: {rng.choice(("info", "debug", "warning"))}
    ports: ["{rng.randint(3000, 9000)}:8080"]
    restart: unless-stopped
    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost:8080/health"]
      interval: {rng.randint(5, 60)}s"""
    return (
        f"Write a compose file for the {noun} worker with MAX_{field.upper()} of {limit}.",
        "One service, environment, health check.",
        _block("yaml", text),
    )


def traceback_question(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""Traceback (most recent call last):
  File "/app/{noun}s.py", line {limit}, in {verb}
    total += item["{field}"]
             ~~~~^^^^^^^^^^^
KeyError: '{field}'"""
    fixed = f'total += item.get("{field}", 0)'
    return (
        f"What does this mean, and what do I change?\n\n{_block('text', text)}",
        (
            f"A dict without the key {field}. Either the data are incomplete or the key is spelled otherwise. Do not"
            " hide a fault."
        ),
        (
            f"An item has no key `{field}`. If that may be so, count it as zero:\n\n{_block('python', fixed)}\n\nIf it"
            f" may not, find where the {noun} is made: print `sorted(item)` just before line {limit} and compare the"
            " spelling."
        ),
    )


def diff_review(rng: random.Random) -> Answer:
    verb, noun, field, limit = _names(rng)
    text = f"""--- a/{noun}.py
+++ b/{noun}.py
@@ -{limit},4 +{limit},4 @@ def {verb}(items):
-    for i in range(len(items)):
-        if items[i].{field} > {limit}:
+    for item in items:
+        if item.{field} >= {limit}:
             yield item"""
    return (
        f"Review this change:\n\n{_block('diff', text)}",
        "The loop is simpler, but > became >=: a change of behaviour. Name it.",
        (
            f"The loop reads better. But `>` has become `>=`, so a {noun} with a {field} of exactly {limit} is now"
            " included: was that meant? If it was, say so in the message and add a test at the limit; if not, keep"
            " `>`."
        ),
    )


KINDS: list[Callable[[random.Random], Answer]] = [
    python_function,
    python_tests,
    c_function,
    sql,
    javascript,
    rust,
    go_server,
    shell,
    configuration,
    traceback_question,
    diff_review,
]


def draw(rng: random.Random) -> Answer:
    return rng.choice(KINDS)(rng)
