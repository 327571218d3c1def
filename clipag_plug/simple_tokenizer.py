"""CLIP's byte-pair encoding (Sennrich et al. 2016), as OpenAI's `SimpleTokenizer` computes it.

The merges are read from the vocabulary file that open_clip ships; open_clip itself, whose import
takes seconds, is not imported. Where the two differ this follows OpenAI: a text that spells out
`<|startoftext|>` or `<|endoftext|>` means that token, and `<start_of_text>` is ordinary text.
"""

from __future__ import annotations

import functools
import gzip
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .files import open_clip_folders

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
MERGES = VOCABULARY_SIZE - 2 * 256 - 2


def default_bpe() -> str:
    """Path of CLIP's merges in the installed open_clip, found without importing it."""
    for place in open_clip_folders():
        path = place / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return str(path)
    raise ImportError(
        "CLIP's vocabulary ships with open_clip, which was not found: pip install open_clip_torch"
    )


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each of the 256 bytes, in the order that numbers the tokens."""
    spans = ((ord("!"), ord("~")), (ord("¡"), ord("¬")), (ord("®"), ord("ÿ")))
    printable = [byte for first, last in spans for byte in range(first, last + 1)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return table


def basic_clean(text: str) -> str:
    """Repairs wrongly decoded characters and HTML entities (also those escaped twice)."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # nothing to repair, and no import as long as a step of a picture
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """One space for every run of white space, none at the ends."""
    import regex

    return regex.sub(r"\s+", " ", text).strip()


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """The pairs of neighbours in a word of parts."""
    return set(zip(word, word[1:]))


class SimpleTokenizer:
    """Text to token numbers and back, with the attributes of OpenAI's class.

    encoder, decoder: token -> number and number -> token; a token that ends a word carries `</w>`.
    bpe_ranks: pair of tokens -> its place in the list of merges; lower merges first.
    """

    def __init__(self, bpe_path: str | None = None) -> None:
        import regex

        with gzip.open(bpe_path or default_bpe(), "rt", encoding="utf-8", newline="\n") as file:
            lines = file.read().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 1 + MERGES]]
        characters = list(bytes_to_unicode().values())
        tokens = [*characters, *(character + "</w>" for character in characters)]
        tokens += ["".join(merge) for merge in merges] + [START, END]
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        self.encoder = {token: number for number, token in enumerate(tokens)}
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.cache = {START: START, END: END}
        self.pat = regex.compile(
            rf"{regex.escape(START)}|{regex.escape(END)}"
            r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )

    def bpe(self, token: str) -> str:
        """The parts of one word, separated by spaces: the best-ranked pair is joined until none is left."""
        if token not in self.cache:
            parts = [*token[:-1], token[-1] + "</w>"]
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda pair: self.bpe_ranks.get(pair, MERGES))
                if best not in self.bpe_ranks:
                    break
                parts = list(_joined(parts, best))
            self.cache[token] = " ".join(parts)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without the start and end tokens."""
        numbers: list[int] = []
        for word in self.pat.findall(whitespace_clean(basic_clean(text)).lower()):
            characters = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
            numbers.extend(self.encoder[part] for part in self.bpe(characters).split(" "))
        return numbers

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers (a sequence or a 1-D tensor); every word is followed by a space."""
        text = "".join(self.decoder[int(token)] for token in tokens)
        raw = bytearray(self.byte_decoder[character] for character in text)
        return raw.decode("utf-8", errors="replace").replace("</w>", " ")


def _joined(parts: list[str], pair: tuple[str, str]) -> Iterator[str]:
    """The parts with every occurrence of the pair, from the left, made one."""
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            yield pair[0] + pair[1]
            index += 2
        else:
            yield parts[index]
            index += 1


@functools.cache
def shared() -> SimpleTokenizer:
    """The tokenizer that `tokenize` uses, made on first use."""
    return SimpleTokenizer()


def token_rows(texts: list[str], context_length: int, truncate: bool) -> list[list[int]]:
    """Rows of `context_length` numbers: start, text, end, zeros.

    A text that does not fit raises RuntimeError, or with `truncate` loses its last tokens.
    """
    tokenizer = shared()
    start, end = tokenizer.encoder[START], tokenizer.encoder[END]
    rows = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"a text must be a str, not {type(text).__name__}; give one or a list of them"
            )
        row = [start, *tokenizer.encode(text), end]
        if len(row) > context_length:
            if not truncate:
                raise _too_long(text, context_length, len(row))
            row = [*row[: context_length - 1], end]
        rows.append(row + [0] * (context_length - len(row)))
    return rows


def _too_long(text: str, context_length: int, length: int) -> RuntimeError:
    return RuntimeError(
        f"Input {text} is too long for context length {context_length}: it takes {length} tokens; shorten it, or give "
        "truncate=True"
    )


def foreign_rows(
    texts: list[str], context_length: int, truncate: bool, name: str, options: Mapping[str, Any]
) -> list[list[int]]:
    """Rows as those of `token_rows`, by a tokenizer of `transformers` that some towers were trained with.

    open_clip's wrapper of it cuts long texts without a word; here that is the same RuntimeError.
    """
    encode = _foreign(name, json.dumps(options, sort_keys=True))
    for text in texts:
        length = len(encode.tokenizer(encode.clean_fn(text)).input_ids)
        if length > context_length and not truncate:
            raise _too_long(text, context_length, length)
    rows: list[list[int]] = encode(texts, context_length=context_length).tolist() if texts else []
    return rows


@functools.cache
def _foreign(name: str, options: str) -> Any:
    from open_clip.tokenizer import HFTokenizer

    try:
        return HFTokenizer(name, **json.loads(options))
    except ImportError as error:
        raise ImportError(
            f"this model's tokenizer {name!r} is one of transformers: pip install transformers"
        ) from error
    except OSError as error:
        raise OSError(
            f"this model's tokenizer {name!r} cannot be had: {str(error).strip().partition(chr(10))[0]}"
        ) from error
