"""The taught words: unique, complete, and covering what they say."""

from __future__ import annotations

import random

from clipag_plug.vocabulary import TEMPLATES, bundled_vocabulary, sentence


def test_202_classes_with_distinct_names() -> None:
    vocabulary = bundled_vocabulary()
    assert len(vocabulary.names) == 202
    names = [name for group in vocabulary.names for name in group]
    assert len(set(names)) == len(names)
    assert set(names) <= set(vocabulary.words)


def test_cover_holds_the_class_of_every_name_and_group() -> None:
    vocabulary = bundled_vocabulary()
    for index, names in enumerate(vocabulary.names):
        assert all(index in vocabulary.cover[name] for name in names)
        assert all(index in vocabulary.cover[word] for word in vocabulary.groups_of[index])
    chihuahua = vocabulary.class_names.index("Chihuahua")
    assert chihuahua in vocabulary.cover["dog"] and chihuahua not in vocabulary.cover["cat"]


def test_sampled_words_always_describe_the_class() -> None:
    vocabulary, rng = bundled_vocabulary(), random.Random(0)
    for label in range(202):
        assert all(
            label in vocabulary.cover[vocabulary.sample_word(label, rng, 0.5)] for _ in range(10)
        )


def test_articles() -> None:
    assert sentence("orange", "a photo of a {}") == "a photo of an orange"
    assert sentence("lemon", "a photo of a {}") == "a photo of a lemon"
    assert all("orange" in sentence("orange", template) for template in TEMPLATES)


def test_words_in_a_text_are_found_whole() -> None:
    vocabulary = bundled_vocabulary()
    lemon = vocabulary.class_names.index("lemon")
    assert vocabulary.meant("a painting of Lemons on a table") >= {lemon}
    assert vocabulary.meant("a lemony thing") == vocabulary.meant("") == frozenset()
    assert vocabulary.meant("a dog") == frozenset(vocabulary.groups["dog"])
