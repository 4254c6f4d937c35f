"""The two tokenizer file formats behind one small interface: text to ids, and one id to its bytes.

A token is bytes, not text: a character may be spread over several tokens. Joining the bytes and decoding them is
`tokenizer.py`. Knows nothing of messages or templates.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from tokenizers import AddedToken

from mlx_qwen35.chat.files import MAX_JSON_BYTES
from mlx_qwen35.errors import CheckpointError


class Backend(Protocol):
    """What `Tokenizer` needs of a file format."""

    vocab_size: int  # 1 + the highest id that has a token
    drops_first_space: bool  # the format puts a space before the text, so decoding takes one away

    def encode(self, text: str) -> list[int]: ...

    def token_id(self, name: str) -> int | None: ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for an id without one."""
        ...

    def pieces(self) -> list[bytes]:
        """The same for every id."""
        ...

    @property
    def named_ids(self) -> tuple[int, ...]:
        """Ids of tokens that were added to the vocabulary by name, sorted."""
        ...


def added_tokens(tokenizer_config: dict[str, Any]) -> dict[int, AddedToken]:
    """`added_tokens_decoder` of tokenizer_config.json, by id. Raises CheckpointError for entries of another form."""
    entries = tokenizer_config.get("added_tokens_decoder") or {}
    found: dict[int, AddedToken] = {}
    if not isinstance(entries, dict):
        raise CheckpointError("tokenizer_config.json: added_tokens_decoder is not an object.")
    for key, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not (key.isascii() and key.isdigit() and len(key) < 10 and isinstance(content, str) and content):
            raise CheckpointError(f"tokenizer_config.json: added_tokens_decoder[{key!r}] is not a token with an id.")
        flags = {name: entry.get(name) is True for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
        found[int(key)] = AddedToken(content, **flags)
    return dict(sorted(found.items()))


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, the rest for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()
# Bytes as the characters of Latin-1; what stands for none becomes a character that Latin-1 has not.
_AS_LATIN_1 = dict.fromkeys(range(256), 65535) | {ord(char): byte for char, byte in BYTE_OF_CHAR.items()}


class TokenizerJson:
    """tokenizer.json through the tokenizers library; byte-level vocabularies only, as the family's are."""

    drops_first_space = False

    def __init__(self, path: Path, extra: dict[int, AddedToken]) -> None:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes: not a tokenizer.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            raise CheckpointError(f"{path} is not a tokenizer this program can read: {first_line}") from None
        # A file may carry settings of a training run; a prompt is never cut or filled up silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._require_byte_level(path)
        self._add(path, extra)
        known = self._tokenizer.get_added_tokens_decoder()
        self._added = {token: entry.content.encode("utf-8", "replace") for token, entry in known.items()}
        # Counting would be wrong where ids have gaps, and listing all names is slow: check the count first.
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if self._tokenizer.id_to_token(self.vocab_size - 1) is None or any(i >= self.vocab_size for i in known):
            self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def _require_byte_level(self, path: Path) -> None:
        decoder = self._tokenizer.decoder
        state = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {state.get("type"), *(part.get("type") for part in state.get("decoders", []))} - {"Sequence"}
        if kinds != {"ByteLevel"}:
            found = ", ".join(sorted(str(kind) for kind in kinds))
            raise CheckpointError(f"{path}: the decoder is {found}, but only ByteLevel is implemented.")

    def _add(self, path: Path, extra: dict[int, AddedToken]) -> None:
        """Add what tokenizer.json lacks; the published files keep some tokens in tokenizer_config.json only."""
        missing = {token: entry for token, entry in extra.items() if self._tokenizer.token_to_id(entry.content) is None}
        if not missing:
            return
        self._tokenizer.add_tokens(list(missing.values()))
        for token, entry in missing.items():
            given = self._tokenizer.token_to_id(entry.content)
            if given != token:
                raise CheckpointError(
                    f"tokenizer_config.json gives {entry.content!r} the id {token}, "
                    f"but added to {path.name} it gets {given}."
                )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(name)

    def piece(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return added
        name = self._tokenizer.id_to_token(token) if 0 <= token < self.vocab_size else None
        if name is None:
            return b""
        try:
            return bytes(BYTE_OF_CHAR[char] for char in name)
        except KeyError:
            return name.encode("utf-8", "replace")

    def pieces(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        for name, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
            try:  # in one go: `piece` goes through a name byte by byte
                found[token] = name.translate(_AS_LATIN_1).encode("latin-1")
            except UnicodeEncodeError:
                found[token] = self.piece(token)
        for token, name in self._added.items():
            found[token] = name
        return found

    @property
    def named_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._added))


class SentencePieceModel:
    """tokenizer.model through sentencepiece, for a folder that has no tokenizer.json."""

    def __init__(self, path: Path, extra: dict[int, AddedToken]) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError, ValueError):
            raise CheckpointError(f"{path} is not a sentencepiece model.") from None
        self._size = self._model.get_piece_size()
        self._added = {token: entry.content for token, entry in extra.items()}
        self._ids = {content: token for token, content in self._added.items()}
        self.vocab_size = max([self._size, *(token + 1 for token in self._added)])
        # Longest first, so that no token hides a longer one that begins with it.
        names = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self.drops_first_space = bool(self._model.encode("a", out_type=str)[0].startswith("▁"))

    def encode(self, text: str) -> list[int]:
        parts = self._split.split(text) if self._split else [text]
        ids: list[int] = []
        for part in parts:
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._model.encode(part, out_type=int))
        return ids

    def token_id(self, name: str) -> int | None:
        if name in self._ids:
            return self._ids[name]
        token = self._model.piece_to_id(name)
        return None if token == self._model.unk_id() else token

    def piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        if not 0 <= token < self._size or self._model.is_control(token) or self._model.is_unused(token):
            return b""
        if self._model.is_unknown(token):
            return " ⁇ ".encode()
        name = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(name[3:5], 16)])
        return name.replace("▁", " ").encode("utf-8", "replace")

    def pieces(self) -> list[bytes]:
        return [self.piece(token) for token in range(self.vocab_size)]

    @property
    def named_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._added))
