"""The version, where every floor can read it."""

from __future__ import annotations

VERSION = "1.0.0a1"
