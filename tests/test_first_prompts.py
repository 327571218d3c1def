"""The first prompts of a new user: every word that the models do not know is named, and few that they know.

`python tests/test_first_prompts.py` prints the counts for the vocabulary that is bundled.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from clipag_plug.vocabulary import SAYS_NOTHING, taught_words, unheard

MANY = 2000  # words of a vocabulary from which on the bars hold
MOST = 5  # of 100 prompts


def prompts(kind: str) -> list[str]:
    lines = Path(__file__).with_name("first_prompts.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if not line.startswith("#")]
    return [prompt for name, prompt in pairs if name == kind]


def silent(prompt: str) -> list[str]:
    """Words that no one was taught and that are not named: one of them would be painted as if it were known."""
    named = unheard(prompt)
    words = set(re.findall(r"[^\W\d_]{2,}", prompt.lower()))
    stems = {word: {word, word[:-1], word[:-2], word[:-3] + "y", word[:-3] + "f"} for word in words}
    return [w for w in words - SAYS_NOTHING - set(named) if taught_words().isdisjoint(stems[w])]


def counts() -> dict[str, int]:
    """Of 100 prompts each: unknown words not named, and everyday prompts that are warned about."""
    return {
        "typed, an unknown word not named": sum(bool(silent(p)) for p in prompts("typed")),
        "typed, warned about": sum(bool(unheard(p)) for p in prompts("typed")),
        "known, warned about": sum(bool(unheard(p)) for p in prompts("known")),
    }


def test_the_lists_are_whole() -> None:
    for kind in ("typed", "known"):
        assert len(set(prompts(kind))) == len(prompts(kind)) == 100


def test_every_unknown_word_of_a_first_prompt_is_named() -> None:
    assert counts()["typed, an unknown word not named"] <= MOST
    assert unheard("cat") == [] and "labradoodle" in unheard("frozen labradoodle")


@pytest.mark.skipif(
    len(taught_words()) < MANY, reason=f"the vocabulary has fewer than {MANY} words"
)
def test_few_everyday_prompts_are_warned_about() -> None:
    assert counts()["known, warned about"] <= MOST


def test_the_command_and_the_api_name_them(caplog: pytest.LogCaptureFixture, bundled_pair) -> None:
    from clipag_plug.paint import synthesize

    with caplog.at_level(logging.WARNING):
        synthesize("a zyxqian lemon", model=bundled_pair["clipag-mini"], steps=1, views=1)
    said = [record.getMessage() for record in caplog.records]
    assert sum("does not know: zyxqian" in line for line in said) == 1, said


if __name__ == "__main__":
    print(f"{len(taught_words())} words")
    for what, count in counts().items():
        print(f"{what}: {count} of 100")
