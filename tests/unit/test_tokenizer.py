"""The three kinds of tokenizers: what they promise beside the round trip."""

import json

import pytest

from infinito.config.schema import TokenizerConfig
from infinito.errors import DataError
from infinito.tokenizer import bpe, word
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat <unk> sat on <unk> the mat\n" * 20, "the dog\n the cat <unk>, <unk>\n" * 9]


def trained(kind: str, size: int | None = None) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), TEXTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_end_of_document_is_the_last_id_and_never_text(kind: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.eos_id == tokenizer.vocab_size - 1
    for text in ("<eos>", "<|endoftext|>", "</s>", "<unk><eos>"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == text
    assert not tokenizer.per_line_eos


def test_unknown_word_of_a_prepared_corpus_is_one_token() -> None:
    tokenizer = trained("bpe", 400)
    one = tokenizer.encode(" <unk>")
    assert len(one) == 1
    assert tokenizer.token_bytes()[one[0]] == b" <unk>"
    assert tokenizer.encode("on <unk>,")[-2] == one[0]


def test_bpe_sizes() -> None:
    assert trained("bpe", 258).vocab_size == 258
    assert trained("bpe", 270).vocab_size == 270
    assert 270 < trained("bpe").vocab_size < 400  # the text does not fill 8192
    assert train_tokenizer(TokenizerConfig(), []).vocab_size == 257


def test_bpe_training_is_repeatable_and_looks_at_a_bounded_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert trained("bpe", 300).fingerprint == trained("bpe", 300).fingerprint
    monkeypatch.setattr(bpe, "TRAINING_CHARACTERS", len(TEXTS[0]) + 7)
    limited = trained("bpe", 300)
    assert (
        limited.fingerprint
        == train_tokenizer(TokenizerConfig(vocab_size=300), [TEXTS[0], TEXTS[1][:7]]).fingerprint
    )


def test_word_vocabulary_by_frequency_then_alphabet() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="word"), ["b a c a\n", "b <eos> d\n\n"])
    words = json.loads(tokenizer.to_json())["words"]
    assert words == ["<eos>", "a", "b", "c", "d", "<unk>"]
    assert tokenizer.eos_id == 0
    assert tokenizer.per_line_eos
    ids = tokenizer.encode(" a  x <eos> \n\nb")
    assert ids == [1, 5, 5, 0, 0, 2]  # "<eos>" in the text is an unknown word, not a line end
    assert tokenizer.decode(ids) == " a <unk> <unk>\n\n b"
    assert tokenizer.unknown_id == 5


def test_word_vocabulary_is_capped() -> None:
    many = " ".join(f"w{number:04d} " * (400 - number) for number in range(400)) + "\n"
    tokenizer = train_tokenizer(TokenizerConfig(kind="word", vocab_size=300), [many])
    assert tokenizer.vocab_size == 300
    assert tokenizer.encode("w0297")[0] != tokenizer.unknown_id
    assert tokenizer.encode("w0298") == [tokenizer.unknown_id]


def test_too_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "MAX_DISTINCT_WORDS", 5)
    with pytest.raises(DataError, match="more than 5 distinct words"):
        trained("word")
    monkeypatch.undo()
    monkeypatch.setattr(word, "MAX_VOCAB_SIZE", 5)
    with pytest.raises(DataError, match="more than 5"):
        trained("word")


def test_byte_has_one_size() -> None:
    assert trained("byte").vocab_size == 257
    with pytest.raises(ValueError, match="always has 257"):
        trained("byte", 300)


@pytest.mark.parametrize("kind", ["bpe", "word", "byte"])
def test_json_round_trip(kind: str) -> None:
    tokenizer = trained(kind)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.fingerprint == tokenizer.fingerprint
    assert again.token_bytes() == tokenizer.token_bytes()
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert (again.eos_id, again.kind) == (tokenizer.eos_id, kind)


def state(**changes: object) -> str:
    return json.dumps({"format": "infinito-tokenizer", "version": 1, "kind": "bpe", **changes})


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "[" * 200_000, '{"a": 1', "9" * 5000,
        state(version=2), state(version=True, kind="x"), state(kind="x"), state(kind=["bpe"]),
        state(), state(merges={}), state(merges=[1]), state(merges=[[1]]), state(merges=[[1, 256]]),
        state(merges=[[-1, 2]]), state(merges=[[1, True]]), state(merges=[[1.0, 2]]),
        state(merges=[["a", "b"]]), state(merges=[[97, 97], *([256 + n] * 2 for n in range(60))]),
        state(kind="word"), state(kind="word", words=["a"]), state(kind="word", words=[1, 2]),
        state(kind="word", words=["<eos>", "<unk>", "a", "a"]),
        state(kind="word", words=["<eos>", "<unk>", "a b"]),
        state(kind="word", words=["<eos>", "<unk>", ""]),
        state(kind="word", words=["<eos>", "<unk>", "\ud800"]),
    ],
)  # fmt: skip
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Tokenizer.from_json(text)


def test_too_long_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinito.tokenizer.tokenizer.MAX_JSON_CHARACTERS", 100)
    with pytest.raises(DataError, match="longer than"):
        Tokenizer.from_json(trained("bpe").to_json())


@pytest.mark.parametrize("kind", ["bpe", "word", "byte"])
def test_bad_arguments(kind: str) -> None:
    tokenizer = trained(kind)
    with pytest.raises(DataError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\udcff")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match="outside the vocabulary"):
            tokenizer.decode([bad])


def test_broken_characters_become_replacements() -> None:
    tokenizer = trained("byte")
    stream = tokenizer.stream()
    pieces = [stream.push(identifier) for identifier in "地é".encode()]
    assert pieces == ["", "", "地", "", "é"]
    assert [stream.push(0xE5), stream.push(0x41), stream.push(0xF0)] == ["", "\ufffdA", ""]
    assert stream.flush() == "\ufffd"
    assert tokenizer.decode([0xE5, 0x41, 0xF0]) == "\ufffdA\ufffd"
