"""Ids must equal the reference's, and streamed text must never show half a character."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, pre_tokenizers

from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.errors import CheckpointError
from tests.chat.parsing import PATIENT
from tests.support import real_tokenizer

SAMPLES = [
    "",
    "Hello, world!",
    "naïve café e\u0301 — “quotes”",  # the decomposed é is composed by NFC, so it is not read back as written
    "你好，世界 人力资源 俱乐部",
    "🧑‍🚀👩‍👩‍👧‍👦🇳🇴 ok",
    "אבג مرحبا हिन्दी ไทย",
    "1234567890 3.14 x=1e-7",
    "  leading and trailing  \n\n\n\ttabs\r\n",
    "def f(x):\n    return {'a': [1, 2]}  # …\n",
    "I'm, you'LL, DON'T",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>\n\n<tool_call>\n</tool_call><tts_pad>",
    "\u200b\u2028\ufeff\x00\x7f",
]


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return Tokenizer.from_folder(real_tokenizer.folder())


def byte_level_folder(folder: Path) -> Path:
    """A tokenizer of the 256 bytes and three merges, with the special tokens of the family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"th": 256, "the": 257, "Ġthe": 258}
    raw = Raw(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e"), ("Ġ", "the")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # Settings left over from training must not cut or pad a prompt.
    raw.enable_truncation(4)
    raw.enable_padding(length=9)
    raw.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [f"the quick brown fox {i} jumps over the lazy dog, naïve café" for i in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    added = {"320": {"content": "<|im_start|>", "special": True}, "321": {"content": "<|im_end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.add(token) for token in ids), stream.finish()]


def test_ids_of_the_real_tokenizer(real: Tokenizer) -> None:
    no_thinking = real.encode("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert no_thinking == [248045, 74455, 198, 248068, 271, 248069, 271]
    assert real.vocab_size == 248077
    assert real.stop_ids == (248044, 248046)
    # The last seven are in tokenizer_config.json only.
    assert [real.token_id(name) for name in ("<think>", "<tts_pad>", "<|audio_pad|>")] == [248068, 248072, 248076]


def test_real_ids_and_text_equal_transformers(real: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers", reason="TOKENIZER NOT COMPARED: no transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(str(real_tokenizer.folder()))
    for text in SAMPLES:
        ids = real.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), text
        assert real.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False), text
    pieces = [real.token_bytes(token).decode("utf-8", "replace") for token in range(0, 248077, 997)]
    assert pieces == [reference.decode([token]) for token in range(0, 248077, 997)]


@pytest.fixture(scope="module")
def library() -> Raw:
    raw = Raw.from_file(str(real_tokenizer.folder() / "tokenizer.json"))
    raw.add_special_tokens(real_tokenizer.ADDED[real_tokenizer.IN_TOKENIZER_JSON :])
    return raw


@PATIENT
@given(ids=st.lists(st.integers(0, 248077), max_size=30))
def test_real_streaming_equals_the_library(real: Tokenizer, library: Raw, ids: list[int]) -> None:
    assert "".join(streamed(real, ids)) == library.decode(ids, skip_special_tokens=False) == real.decode(ids)


@PATIENT
@given(data=st.binary(max_size=40))
def test_any_bytes_stream_as_they_decode(byte_level: Tokenizer, data: bytes) -> None:
    table = {byte_level.token_bytes(token): token for token in range(256)}
    ids = [table[data[i : i + 1]] for i in range(len(data))]
    assert "".join(streamed(byte_level, ids)) == data.decode("utf-8", "replace") == byte_level.decode(ids)


@PATIENT
@given(text=st.text(max_size=30))
def test_streaming_never_shows_half_a_character(byte_level: Tokenizer, text: str) -> None:
    shown = ""
    for piece in streamed(byte_level, byte_level.encode(text)):
        shown += piece
        assert text.startswith(shown)  # no U+FFFD appears that a later token would take back
    assert shown == text


def test_a_byte_that_cannot_become_a_character_is_shown_at_once(byte_level: Tokenizer) -> None:
    table = {byte_level.token_bytes(token): token for token in range(256)}
    half = [table[bytes([byte])] for byte in "é".encode()[:1]]
    stream = byte_level.stream()
    assert [stream.add(half[0]), stream.add(half[0]), stream.add(table[b"a"]), stream.finish()] == [
        "",
        "\ufffd",
        "\ufffda",
        "",
    ]
    assert streamed(byte_level, half) == ["", "\ufffd"]


def test_settings_of_the_file_neither_cut_nor_pad(byte_level: Tokenizer) -> None:
    assert len(byte_level.encode("abcdefgh")) == 8
    assert byte_level.decode(byte_level.encode("a")) == "a"


def test_half_a_surrogate_pair_is_encoded_as_replacement(byte_level: Tokenizer) -> None:
    assert byte_level.decode(byte_level.encode("a\ud800b")) == "a\ufffdb"


def test_ids_without_a_token_are_nothing(byte_level: Tokenizer) -> None:
    assert byte_level.vocab_size == 262
    assert byte_level.decode([0, 262, 300_000, -1, 0]) == byte_level.decode([0, 0])


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({}, (259, 261)),
        ({"generation_config.json": {"eos_token_id": 7}}, (7, 259, 261)),
        ({"generation_config.json": {"eos_token_id": [7, 8, "x", True, None]}}, (7, 8, 259, 261)),
        ({"config.json": {"eos_token_id": 5, "text_config": {"eos_token_id": 6}}}, (5, 6, 259, 261)),
        ({"config.json": {"eos_token_id": 100_000}}, (259, 261)),
        ({"tokenizer_config.json": {"eos_token": {"content": "the"}}}, (257, 259, 261)),
    ],
)
def test_every_configured_end_stops(tmp_path: Path, files: dict[str, object], stops: tuple[int, ...]) -> None:
    byte_level_folder(tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert Tokenizer.from_folder(tmp_path).stop_ids == stops


def test_tokens_of_the_config_are_added_with_their_ids(tmp_path: Path) -> None:
    byte_level_folder(tmp_path)
    added = {"262": {"content": "<think>"}, "261": {"content": "<|im_end|>"}, "263": {"content": "</think>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<think>a</think>") == [262, tokenizer.encode("a")[0], 263]
    assert tokenizer.vocab_size == 264
    assert tokenizer.decode([262, 263]) == "<think></think>"


@pytest.mark.parametrize(
    "text", ["the quick brown fox", " the  quick ", "naïve 你好 🙂", "", "a<|im_start|>the<|im_end|>"]
)
def test_a_folder_with_tokenizer_model_only(sentencepiece_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_folder(sentencepiece_folder)
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    if "<|" in text:
        assert [ids.count(320), ids.count(321)] == [1, 1]
    else:
        model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
        assert ids == model.encode(text)
        assert tokenizer.decode(ids) == model.decode(ids) == text
    assert tokenizer.vocab_size == 322
    assert tokenizer.token_id("<|im_end|>") in tokenizer.stop_ids


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (None, ""),
        ("tokenizer.json", "<html>"),
        ("tokenizer.json", '{"model": {}}'),
        ("tokenizer.model", "garbage"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"900": {"content": "<far>"}}}'),
        ("config.json", "nope"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, file: str | None, content: str) -> None:
    if file in ("tokenizer_config.json", "config.json"):
        byte_level_folder(tmp_path)
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError) as refusal:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(refusal.value)


def test_another_kind_of_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    raw = Raw(models.BPE(vocab={"a": 0}, merges=[]))
    raw.decoder = decoders.Metaspace()
    raw.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="Metaspace"):
        Tokenizer.from_folder(tmp_path)
