"""What time it is, here or in a time zone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from mlx_qwen35.tools.tool import Tool, ToolError


def clock() -> Tool:
    """The tool."""
    zone = {"type": "string", "description": "such as Europe/Paris; without it, this computer's"}
    parameters = {"type": "object", "properties": {"zone": zone}, "additionalProperties": False}
    return Tool("clock", "The date, the time and the time zone now.", parameters, _run, seconds=5)


def told(now: datetime) -> str:
    """A moment as JSON."""
    zone = getattr(now.tzinfo, "key", None) or now.tzname()
    offset = f"{now:%z}"
    return json.dumps(
        {
            "date": now.date().isoformat(),
            "weekday": f"{now:%A}",
            "time": f"{now:%H:%M:%S}",
            "zone": zone,
            "utc_offset": f"{offset[:3]}:{offset[3:5]}",
        }
    )


def _run(arguments: Mapping[str, Any]) -> str:
    name = arguments.get("zone")
    return told(datetime.now(_zone(name)) if name else datetime.now().astimezone())


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    # For a name with .. in it, for one of a folder of zones, and so on; it looks nowhere but there.
    except (KeyError, ValueError, OSError):
        raise ToolError(f"there is no time zone {name!r:.80}; they are named as Europe/Paris or UTC") from None
