"""Structured extraction: texts to records of a schema, all at once; the answer cannot be anything else.

python -m examples.extraction "Ana Lima orders 12 lamps for 340 euros."  ["another text" ...]
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import mlx_qwen35

ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "count": {"type": "integer", "minimum": 1},
        "item": {"type": "string", "maxLength": 60},
        "price": {"type": "integer", "minimum": 0},
    },
    "required": ["name", "count", "item", "price"],
    "additionalProperties": False,
}


async def extract(qwen: mlx_qwen35.Qwen, texts: Sequence[str], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """One record for each text. They are answered side by side, in one batch."""
    fields = ", ".join(schema["properties"])
    asked = (qwen.achat(f"Extract {fields} as JSON: {text}", schema=schema, temperature=0) for text in texts)
    return [json.loads(reply.content) for reply in await asyncio.gather(*asked)]


if __name__ == "__main__":
    with mlx_qwen35.load() as model:
        for record in asyncio.run(extract(model, sys.argv[1:], ORDER)):
            print(json.dumps(record))
