"""CLIP's tokenizer: ids equal to open_clip's, and to OpenAI's where those two differ."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipag_plug import clip
from clipag_plug.simple_tokenizer import SimpleTokenizer, bytes_to_unicode, shared

WORDS = {
    "latin": "cat naïve Straße crème smörgåsbord façade Ångström piñata O'Neill don't we'll 3rd x² ½ ﬁne",
    "cyrillic": "кошка собака Щука объезд ёлка город міст ӏ",
    "greek": "γάτα σκύλος Θάλασσα φῶς ΟΔΟΣ",
    "arabic": "قطة كلب بَحْر شمس ۳۴ کتاب",
    "hebrew": "חתול כלב שָׁלוֹם ים",
    "han": "猫 狗 紅い花 汉字 龍",
    "kana": "ねこ イヌ すし ｶﾀｶﾅ",
    "hangul": "고양이 강아지 바다 한글",
    "devanagari": "बिल्ली कुत्ता समुद्र हिन्दी १२",
    "thai": "แมว หมา ทะเล",
    "emoji": "😀 🐈‍⬛ 👩🏽‍🚀 🇫🇷 ❤️ ☃",
    "marks": "!!! ... --- #art @home $5.99 50% a/b c_d (e) [f] {g} <h> ~ ^ | \\ “q” ‘r’ — … €",
    "entities": "&amp; &lt;b&gt; &amp;amp; &quot;x&quot; &#39; &#x41; &nbsp; &eacute; &unknown;",
    "broken": "Ã©tÃ© donâ€™t â€œquoteâ€ sÃ£o",
    "digits": "1 42 2026 3.14 1,000 007 1e-5",
}
SPACES = (" ", "  ", "\t", "\n", "\u00a0", "\u3000", " \u2009 ", "\u200b", "")
TEMPLATES = (
    "{}",
    "a photo of {}",
    "A Painting of {} in the style of {}",
    "  {}  ",
    "'{}'s",
    "{}, {}; {}!",
)


def strings() -> list[str]:
    """A few thousand different strings: every word alone and in frames, every pair of scripts, odd spaces."""
    words = {script: text.split(" ") for script, text in WORDS.items()}
    found: dict[str, None] = {}
    for word in itertools.chain.from_iterable(words.values()):
        for template in TEMPLATES:
            found[template.replace("{}", word)] = None
            found[template.replace("{}", word).upper()] = None
    for (_, left), (_, right) in itertools.permutations(words.items(), 2):
        for index, space in enumerate(SPACES):
            found[left[index % len(left)] + space + right[(index * 3) % len(right)]] = None
    return list(found)


def test_ids_equal_open_clips_on_strings_in_many_scripts() -> None:
    import open_clip

    texts = [*strings(), "", " ", "\n", "a" * 60, "ÿ" * 20, "\x00\x07control"]
    assert len(texts) >= 2_000
    ours, theirs = clip.tokenize(texts, truncate=True), open_clip.tokenize(texts)
    different = [text for text, a, b in zip(texts, ours, theirs.int()) if not torch.equal(a, b)]
    assert different == []
    assert ours.dtype == torch.int32


def test_tables_equal_open_clips_but_for_the_names_of_the_two_special_tokens() -> None:
    from open_clip.tokenizer import SimpleTokenizer as Theirs

    ours, theirs = SimpleTokenizer(), Theirs()
    assert list(ours.encoder)[:-2] == list(theirs.encoder)[:-2]
    assert ours.bpe_ranks == theirs.bpe_ranks
    assert ours.byte_encoder == theirs.byte_encoder == bytes_to_unicode()
    assert {number: token for token, number in ours.encoder.items()} == ours.decoder


@pytest.mark.parametrize(
    "text, ids",
    [
        ("<|startoftext|>", [49406]),
        ("<|endoftext|>", [49407]),
        ("<|StartOfText|> a cat <|endoftext|>", [49406, 320, 2368, 49407]),
    ],
)
def test_special_tokens_are_read_in_openais_spelling(text: str, ids: list[int]) -> None:
    assert shared().encode(text) == ids


def test_open_clips_spelling_of_special_tokens_is_ordinary_text() -> None:
    ids = shared().encode("<start_of_text>")
    assert len(ids) > 1 and max(ids) < 49406
    assert shared().decode(ids) == "< start _ of _ text > "


@pytest.mark.parametrize("text", ["a photo of a cat", "γάτα 42", "un café", "हिन्दी"])
def test_decode_undoes_encode_for_words_separated_by_spaces(text: str) -> None:
    decoded = shared().decode(shared().encode(text))
    assert decoded.replace(" ", "") == text.replace(" ", "")
    assert shared().decode(torch.tensor(shared().encode(text))) == decoded


def test_decode_spells_out_the_special_tokens_and_survives_half_a_character() -> None:
    start_cat_end = [49406, 2368, 49407]
    assert shared().decode(start_cat_end) == "<|startoftext|>cat <|endoftext|>"
    assert shared().decode(shared().encode("猫")[:1]) == "\ufffd"


def test_rows_are_start_text_end_zeros() -> None:
    tokens = clip.tokenize("a cat")
    assert tokens.shape == (1, 77) and tokens.dtype == torch.int32
    assert tokens[0, :4].tolist() == [49406, 320, 2368, 49407]
    assert not tokens[0, 4:].any()


def test_too_long_raises_openais_error_and_truncate_keeps_the_end_token() -> None:
    text = "cat " * 76
    with pytest.raises(RuntimeError, match="is too long for context length 77"):
        clip.tokenize(["a cat", text])
    tokens = clip.tokenize(text, truncate=True)
    assert tokens[0].tolist() == [49406, *[2368] * 75, 49407]
    assert torch.equal(
        clip.tokenize("cat " * 75), tokens
    )  # exactly full: 75 tokens between the two


def test_context_length_is_positional_and_applies_to_every_row() -> None:
    assert clip.tokenize(["a", "a cat"], 8).shape == (2, 8)
    with pytest.raises(RuntimeError, match="context length 3"):
        clip.tokenize("a cat", 3)


def test_empty_inputs_and_other_sequences() -> None:
    assert clip.tokenize("")[0, :3].tolist() == [49406, 49407, 0]
    assert clip.tokenize([]).shape == (0, 77)
    assert torch.equal(clip.tokenize(("a", "b")), clip.tokenize(["a", "b"]))


@pytest.mark.parametrize("texts", [[1], [None], [["nested"]], [b"bytes"]])
def test_what_is_no_text_is_named(texts: list[object]) -> None:
    with pytest.raises(ValueError, match="a text must be a str, not"):
        clip.tokenize(texts)


def test_a_foreign_bpe_file_is_used(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(b"#version\nc a\nca t</w>\n"))
    tokenizer = SimpleTokenizer(str(path))
    assert tokenizer.bpe("cat") == "cat</w>" and tokenizer.bpe("tac") == "t a c</w>"


def test_encoding_imports_neither_open_clip_nor_torch() -> None:
    code = (
        "import sys; from clipag_plug.simple_tokenizer import SimpleTokenizer as T; T().encode('a cat');"
        "assert not {'open_clip', 'torch'} & set(sys.modules)"
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
