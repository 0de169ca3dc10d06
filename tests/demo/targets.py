"""What is required of the demo model, and how much of it is measured. The one place to change when it is retrained."""

from __future__ import annotations

# Least share of right answers in each row of measure.ROWS.
SHARES = {
    "arithmetic, off": 0.95,
    "arithmetic, high": 0.95,
    "arithmetic, max": 0.95,
    "recall, 1K": 0.90,
    "recall, 4K": 0.90,
    "recall, 16K": 0.90,
    "tools": 0.95,
    "talk": 0.90,
}

# Questions of each row, through the default path; 12 of recall share a text.
COUNTS = {
    "arithmetic, off": 400,
    "arithmetic, high": 100,
    "arithmetic, max": 120,
    "recall, 1K": 60,
    "recall, 4K": 36,
    "recall, 16K": 24,
    "tools": 100,
    "talk": 100,
}

# Of these the first ones, through every other path. There the share is of all of a kind together.
FEWER = {
    "arithmetic, off": 16,
    "arithmetic, high": 16,
    "arithmetic, max": 8,
    "recall, 1K": 12,
    "recall, 4K": 12,
    "recall, 16K": 12,
    "tools": 20,
    "talk": 20,
}

# Least share of answers that have the same tokens as through the default path. All had, with AVX2.
SAME = dict.fromkeys(
    ("exact", "native", "f16 cache", "small steps", "odd pieces", "restored", "llama.cpp"), 0.95
)
