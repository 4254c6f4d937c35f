"""Reasoning that travels with a client who does not show it, and comes back in the next request.

Anthropic's `signature` and OpenAI's `encrypted_content` are such places: opaque to clients, which send them back as
they came. The model goes on from what it thought only if it reads it again, and so does the prefix cache. Nothing here
is secret from the client or proves anything: a client may write the conversation as it likes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

MARK = "mlxqwen1."
SEALED, SIGNED = MARK + "t.", MARK + "s."
MAX_CHARACTERS = 4 << 20


def seal(text: str) -> str:
    """The text in one word."""
    return SEALED + base64.b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"))).decode()


def unseal(word: str) -> str | None:
    """The text of `seal`; None for anything else, such as what another server made."""
    if not word.startswith(SEALED):
        return None
    try:
        unpacking = zlib.decompressobj()
        raw = unpacking.decompress(base64.b64decode(word[len(SEALED) :], validate=True), MAX_CHARACTERS)
        return raw.decode("utf-8", "surrogatepass") if unpacking.eof else None
    except (zlib.error, binascii.Error, ValueError):
        return None


def sign(text: str) -> str:
    """A word to stand beside a text that is shown: its digest."""
    return SIGNED + hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
