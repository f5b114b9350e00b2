"""Emoji captions read naturally, never confuse two pictures, and training's wordings keep the facts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import CaptionWeights, draws
from training.data.captions import EmojiCaptions, FormatCaptions
from training.data.english import noun_phrase

STYLES = ("fluent-3d", "fluent-flat", "noto", "twemoji")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def row(name: str, style: str = "noto", keywords: tuple[str, ...] = (), tone: str | None = None) -> dict:
    """A row as the emoji tables have it: the tone follows from the name where none is given."""
    named = [
        part.removesuffix(" skin tone") for part in name.replace(": ", ", ").split(", ") if part.endswith("skin tone")
    ]
    tone = tone or ("none" if not named else named[0] if len(set(named)) == 1 else "mixed")
    return {"name": name, "style": style, "keywords": list(keywords), "skin_tone": tone}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red apple", "a red apple"),
        ("firefighter: dark skin tone", "a firefighter with dark skin"),
        ("woman firefighter: medium-light skin tone", "a woman firefighter with medium-light skin"),
        ("man: dark skin tone, blond hair", "a man with blond hair and dark skin"),
        ("woman: bald", "a bald woman"),
        ("woman: light skin tone, bald", "a bald woman with light skin"),
        ("man: medium skin tone, beard", "a man with a beard and medium skin"),
        ("keycap: 3", "a keycap with the number 3"),
        ("keycap: #", "a keycap with a hash sign"),
        ("family: man, woman, girl, boy", "a family of a man, a woman, a girl and a boy"),
        ("family: woman, woman, boy, boy", "a family of two women and two boys"),
        ("kiss: woman, man", "a kiss between a woman and a man"),
        ("kiss: man, man, light skin tone, dark skin tone", "a kiss between two men with light and dark skin"),
        ("couple with heart: woman, woman", "a couple of two women with a heart"),
        ("handshake: dark skin tone, light skin tone", "a handshake with dark and light skin"),
        ("person in manual wheelchair", "a person in a manual wheelchair"),
        ("woman getting haircut", "a woman getting a haircut"),
        ("face with open mouth", "a face with an open mouth"),
        ("socks", "socks"),
        ("glasses", "glasses"),
        ("popcorn", "popcorn"),
        ("octopus", "an octopus"),
        ("compass", "a compass"),
        ("eyes", "eyes"),
        ("people hugging", "people hugging"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass that is done"),
        ("SOS button", "an SOS button"),
        ("A button (blood type)", "a blood type A button"),
        ('Japanese "here" button', "a Japanese here button"),
        ("three o'clock", "a clock showing three o'clock"),
        ("Leo", "the Leo zodiac sign"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("ear of corn", "an ear of corn"),
        ("thumbs up: medium skin tone", "thumbs up with medium skin"),
    ],
)
def test_canonical_captions_read_naturally(name: str, caption: str) -> None:
    assert EmojiCaptions().canonical(row(name)) == f"{caption}, noto style"


@pytest.mark.parametrize(
    ("style", "words"),
    [("fluent-3d", "fluent 3d"), ("fluent-flat", "fluent flat"), ("noto", "noto"), ("twemoji", "twemoji")],
)
def test_styles_are_named_in_words(style: str, words: str) -> None:
    assert EmojiCaptions().canonical(row("red apple", style)) == f"a red apple, {words} style"


def test_the_issue_s_own_prompts_are_canonical() -> None:
    template = EmojiCaptions()
    prompt = "a firefighter with dark skin, fluent 3d style"
    assert template.canonical(row("firefighter: dark skin tone", "fluent-3d")) == prompt
    assert template.canonical(row("red apple", "noto")) == "a red apple, noto style"


def test_a_tone_that_only_the_column_has_is_said() -> None:
    assert EmojiCaptions().canonical(row("baby", tone="dark")) == "a baby with dark skin, noto style"


def names() -> list[str]:
    """Names of every form that Unicode uses, toned and not."""
    people = (
        "firefighter",
        "woman firefighter",
        "person",
        "man with veil",
        "thumbs up",
        "person: beard",
        "woman: bald",
    )
    toned = [*people, "man: red hair", "man: blond hair", "woman: curly hair"]
    found = ["kiss", "couple with heart", "family", "handshake", "keycap: 1", "keycap: 10", "keycap: *", "red apple"]
    for name in toned:
        head, _, tail = name.partition(": ")
        found.append(name)
        found += [f"{head}: {tone} skin tone" + (f", {tail}" if tail else "") for tone in TONES]
    for who in ("", "woman, man, ", "man, man, ", "woman, woman, ", "person, person, "):
        for head in ("kiss", "couple with heart"):
            if who:
                found.append(f"{head}: {who[:-2]}")
            found += [f"{head}: {who}{one} skin tone, {two} skin tone" for one in TONES for two in TONES if one != two]
            if who != "person, person, ":
                found += [f"{head}: {who}{tone} skin tone" for tone in TONES]
    adults = ("man", "woman", "man, woman", "man, man", "woman, woman")
    children = ("boy", "girl", "girl, boy", "boy, boy", "girl, girl")
    found += [f"family: {adult}, {child}" for adult in adults for child in children]
    return found


def test_different_pictures_have_different_canonical_captions() -> None:
    template = EmojiCaptions()
    rows = [(name, style) for name in dict.fromkeys(names()) for style in STYLES]
    captions = Counter(template.canonical(row(name, style)).lower() for name, style in rows)
    assert len(rows) > 1000
    assert [caption for caption, count in captions.items() if count > 1] == []


any_row = st.builds(
    row,
    st.sampled_from(names()),
    st.sampled_from(STYLES),
    st.sets(st.sampled_from(["wizard", "sorcerer", "face", "dark skin tone", "man", "red hair"])).map(tuple),
)


@given(any_row, st.integers(0, 2**20))
def test_training_captions_are_pure_and_clean(one: dict, index: int) -> None:
    template = EmojiCaptions()
    caption = template.draw(one, draws(0, "caption", index))
    assert caption == EmojiCaptions().draw(one, draws(0, "caption", index))
    assert caption == " ".join(caption.split())
    assert caption
    assert "{" not in caption
    assert " ," not in caption
    assert ",," not in caption
    assert not caption.endswith(",")
    assert not any(article + " " + article in f" {caption} " for article in (" a", " an", " the"))
    # Nothing is said that is not so: no other style, and no other tone.
    others = [style.replace("-", " ") for style in STYLES if style != one["style"]]
    assert not any(style in caption for style in others)
    said = [word for word in caption.replace(",", " ").split() if word in TONES]
    assert set(said) <= {part.removesuffix(" skin tone") for part in one["name"].replace(": ", ", ").split(", ")}


@given(any_row, st.integers(0, 2**20))
def test_without_dropping_every_training_caption_says_style_and_tone(one: dict, index: int) -> None:
    caption = EmojiCaptions(CaptionWeights(drop_style=0, drop_tone=0)).draw(one, draws(1, index))
    assert one["style"].replace("-", " ") in caption
    if one["skin_tone"] not in ("none", "mixed"):
        assert one["skin_tone"] in caption
        assert "skin" in caption


def test_wordings_come_as_often_as_their_weights_say() -> None:
    one = row("mage: dark skin tone", keywords=("mage", "sorcerer", "dark skin tone"))
    weights = CaptionWeights(
        canonical=3, bare=1, keyword=0, name_and_keyword=0, drop_style=0.2, drop_tone=0, vary_style=0
    )
    captions = [EmojiCaptions(weights).draw(one, draws(0, index)) for index in range(2000)]
    assert abs(sum("style" not in caption for caption in captions) / 2000 - 0.2) < 0.04
    assert abs(sum(caption.startswith("a ") for caption in captions) / 2000 - 0.75) < 0.04
    only = CaptionWeights(canonical=0, bare=0, keyword=1, name_and_keyword=0, drop_tone=1, drop_style=1)
    assert {EmojiCaptions(only).draw(one, draws(0, index)) for index in range(60)} == {"sorcerer", "a sorcerer"}


def test_training_captions_are_varied_and_mostly_canonical() -> None:
    one = row("mage: dark skin tone", "fluent-3d", ("mage", "sorcerer", "witch"))
    template = EmojiCaptions()
    captions = Counter(template.draw(one, draws(0, index)) for index in range(2000))
    assert captions.most_common(1)[0][0] == template.canonical(one)
    assert len(captions) > 100
    text = "\n".join(captions)
    for wording in ("dark skinned mage", "dark skin tone", "in fluent 3d style", "fluent 3d emoji", "sorcerer"):
        assert wording in text


def test_a_row_without_name_has_no_caption() -> None:
    empty = {"name": None, "style": "noto", "keywords": None, "skin_tone": "none"}
    assert EmojiCaptions().canonical(empty) == EmojiCaptions().draw(empty, draws(0)) == ""
    assert EmojiCaptions().draw({**empty, "name": "star"}, draws(0)) != ""


@pytest.mark.parametrize("wrong", [{"canonical": -1}, {"drop_style": 2}, {"vary_tone": -0.1}])
def test_wrong_weights_are_said(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CaptionWeights(**wrong)


def test_weights_that_are_all_zero_are_said() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        CaptionWeights(canonical=0, bare=0, keyword=0, name_and_keyword=0)


def test_sentences_fill_their_columns() -> None:
    template = FormatCaptions("a {size} photo of {label}")
    assert list(template.columns) == ["size", "label"]
    assert template.canonical({"size": "small", "label": "{x}"}) == "a small photo of {x}"
    assert template.canonical({"size": "", "label": "y"}) == ""
    with pytest.raises(ValueError, match="braces"):
        FormatCaptions("a {broken")


@given(st.text("abcdefghij ", min_size=1).map(str.split).filter(bool).map(" ".join))
def test_any_name_gets_a_phrase_that_holds_it(name: str) -> None:
    assert noun_phrase(name).split()[-1] == name.split()[-1]
