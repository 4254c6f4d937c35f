"""A puppet for agents' sessions: told to proceed it thinks and calls a tool, told something briefly it answers.

What it says depends on what every cache remembers (puppet_weights.py), so a session that goes as written has been
computed right.
"""

from __future__ import annotations

from pathlib import Path

from mlx_qwen35.chat.tokenizer import Tokenizer
from tests.support import real_tokenizer
from tests.support.puppet import Script, Voice
from tests.support.puppet_weights import write_puppet

TEMPLATE = Path(__file__).parents[2] / "mlx_qwen35" / "demo_checkpoint" / "chat_template.jinja"
TOPICS, NAMES = ("turtle", "salmon", "wolf"), ("Ada", "Grace", "Alan")
LOOK = "<tool_call>\n<function=look>\n<parameter=at>\nthe {topic}\n</parameter>\n</function>\n</tool_call>"
VOICES = (
    Voice("briefly", "I recall where the {topic} lives.", "Near water, dear {name}, is where a {topic} feels well."),
    Voice("proceed", "One search will tell.", LOOK),
)
SYSTEM = "You help Ada."
QUESTION = "Where does a salmon live? Please proceed."
THOUGHT, LOOKED_AT = "One search will tell.", {"at": "the salmon"}
RESULT = "Found three pages. Say it briefly."
ANSWER = "Near water, dear Ada, is where a salmon feels well."
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}


def write_scripted(folder: Path) -> Path:
    """The checkpoint."""
    tokenizer = Tokenizer.from_folder(real_tokenizer.folder())
    return write_puppet(folder, Script(tokenizer, VOICES, TOPICS, NAMES), real_tokenizer.folder(), TEMPLATE)
