"""Text to token ids and back, for one checkpoint folder. Knows nothing of messages, templates or the model."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_qwen35.chat.files import read_json_object
from mlx_qwen35.chat.tokenizer_backends import Backend, SentencePieceModel, TokenizerJson, added_tokens
from mlx_qwen35.errors import CheckpointError

# An answer of the family ends with the first; the second ends a document, and small models end answers with it too.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")


class Tokenizer:
    """One checkpoint's vocabulary.

    `vocab_size` is 1 + the highest id that has a token (the embedding has more rows, which are never sampled).
    `stop_ids` are the ids that end an answer, sorted.
    """

    def __init__(self, backend: Backend, stop_ids: Iterable[int] = ()) -> None:
        self._backend = backend
        self._pieces: dict[int, bytes] = {}
        self.vocab_size = backend.vocab_size
        named = (backend.token_id(name) for name in STOP_TOKENS)
        known = {*stop_ids, *(token for token in named if token is not None)}
        self.stop_ids = tuple(sorted(token for token in known if 0 <= token < self.vocab_size))

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json, or tokenizer.model where that is all there is. Raises CheckpointError."""
        folder = Path(path)
        config = read_json_object(folder / "tokenizer_config.json")
        extra = added_tokens(config)
        if (folder / "tokenizer.json").is_file():
            backend: Backend = TokenizerJson(folder / "tokenizer.json", extra)
        elif (folder / "tokenizer.model").is_file():
            backend = SentencePieceModel(folder / "tokenizer.model", extra)
        else:
            raise CheckpointError(
                f"No tokenizer.json and no tokenizer.model in {folder}. Download the checkpoint again."
            )
        return cls(backend, _configured_stop_ids(folder, config, backend))

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt (or any text); nothing is put before or after it.

        The text of special tokens becomes those tokens wherever it stands, as in transformers: the rendered prompt
        is one string, so a user who writes `<|im_start|>` in a message writes the token. Whoever renders messages
        of people who do not trust each other removes such text first.
        """
        try:
            return self._backend.encode(text)
        except (UnicodeEncodeError, TypeError):
            # Half of a surrogate pair, which JSON can carry and UTF-8 cannot.
            return self._backend.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included; bytes that are no character become U+FFFD."""
        stream = self.stream()
        return "".join([stream.add(token) for token in ids]) + stream.finish()

    def stream(self) -> TextStream:
        """Decode one answer token by token."""
        return TextStream(self)

    def token_id(self, name: str) -> int | None:
        """The id of the token written `name`, or None."""
        return self._backend.token_id(name)

    @property
    def named_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that stand for a name, such as `<think>`, and not for a piece of text; sorted."""
        return self._backend.named_ids

    def pieces(self) -> list[bytes]:
        """`token_bytes` of every id, in one go."""
        return self._backend.pieces()

    @property
    def drops_first_space(self) -> bool:
        """Whether the text begins with a space that belongs to the file format and not to the text."""
        return self._backend.drops_first_space

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for an id without one."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._backend.piece(token)
        return piece


class TextStream:
    """Token ids in, text out, each character once and whole: the pieces join to `Tokenizer.decode` of all the ids.

    Bytes at the end that may still become a character are held back; bytes that cannot are U+FFFD at once. The cost
    of a token does not depend on what came before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_first_space

    def add(self, token: int) -> str:
        """The text that this token makes certain; often a word, sometimes nothing."""
        piece = self._tokenizer.token_bytes(token)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for half a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _configured_stop_ids(folder: Path, tokenizer_config: dict[str, Any], backend: Backend) -> list[int]:
    """The end-of-sequence ids that the folder's files name; a file may be absent, or name one id or several."""
    config = read_json_object(folder / "config.json")
    text_config = config.get("text_config")
    places = [read_json_object(folder / "generation_config.json"), config]
    if isinstance(text_config, dict):
        places.append(text_config)
    found: list[int] = []
    for place in places:
        value = place.get("eos_token_id")
        entries = value if isinstance(value, list) else [value]
        found.extend(entry for entry in entries if isinstance(entry, int) and not isinstance(entry, bool))
    name = tokenizer_config.get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    token = backend.token_id(name) if isinstance(name, str) else None
    return found if token is None else [*found, token]
