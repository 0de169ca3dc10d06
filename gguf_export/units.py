"""Sizes as people read them."""

from __future__ import annotations


def gigabytes(n: int) -> str:
    """Decimal, as disks count; smaller sizes in MB or kB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if n >= size:
            return f"{n / size:,.2f} {unit}"
    return f"{n / 1000:,.1f} kB"
