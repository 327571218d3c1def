"""What the tests of the painter share: a prompt, and settings that are over quickly."""

from __future__ import annotations

from typing import Any

PROMPT = "a goldfish"
QUICK: dict[str, Any] = {"steps": 4, "views": 2, "init": "noise"}
