from __future__ import annotations

from serving import pace as pace
