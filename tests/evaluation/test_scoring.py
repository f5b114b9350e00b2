"""Which captions are chosen, what counts as right, and how it is counted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgen.evaluation import scoring
from latentgen.evaluation.scoring import Case, Verdict


def verdict(concept: str = "apple", style: str = "noto", tone: str = "none", others: tuple[str, ...] = ()) -> Verdict:
    labels = {"concept": (concept, *others), "style": (style,), "skin_tone": (tone,)}
    return Verdict(labels, dict.fromkeys(labels, 1.0))


def case(concept: str = "apple", style: str = "noto", tone: str = "none", **more: object) -> Case:
    return Case("train", "id", "caption", {"concept": concept, "style": style, "skin_tone": tone}, **more)


def rows(*styles: str) -> list[dict[str, str]]:
    return [{"id": f"{number}_{style}", "style": style} for number, style in enumerate(styles)]


def test_each_fact_is_right_on_its_own() -> None:
    assert case().right(verdict()) == dict.fromkeys(["concept", "concept_top5", "style", "tone", "all"], True)
    for wrong, lines in ((verdict(style="twemoji"), {"style", "all"}), (verdict(tone="dark"), {"tone", "all"})):
        assert {line for line, right in case().right(wrong).items() if not right} == lines
    assert not case().right(verdict("pear"))["concept_top5"]


def test_a_concept_among_the_first_five_is_not_the_first() -> None:
    right = case().right(verdict("pear", others=("plum", "fig", "kiwi", "apple")))
    assert (right["concept"], right["concept_top5"]) == (False, True)
    assert not case().right(verdict("pear", others=("plum", "fig", "kiwi", "lime", "apple")))["concept_top5"]


def test_concepts_with_the_same_picture_are_as_right() -> None:
    assert case(alike=frozenset({"pomme"})).right(verdict("pomme"))["concept"]
    assert not case(alike=frozenset({"pomme"})).right(verdict("pear"))["concept"]


def test_tones_of_toned_concepts_are_counted_apart() -> None:
    cases = [case(), case(toned=True), case(toned=True, tone="dark")]
    counted = scoring.tally(cases, [verdict(), verdict(tone="dark"), verdict(tone="dark")])
    assert (counted["tone"].right, counted["tone"].total) == (2, 3)
    assert (counted["tone_of_toned"].right, counted["tone_of_toned"].total) == (1, 2)
    assert counted["all"].right == 2


def test_a_tally_wants_a_verdict_for_each_case() -> None:
    with pytest.raises(ValueError, match="zip"):
        scoring.tally([case()], [])


def test_alike_concepts_share_a_picture_in_one_style() -> None:
    table = [
        {"concept": concept, "style": style}
        for concept, style in (("man", "noto"), ("person", "noto"), ("man", "twemoji"), ("person", "twemoji"))
    ]
    alike = scoring.alike_concepts(table, ["x", "x", "x", "y"])
    assert alike == {("man", "noto"): {"person"}, ("person", "noto"): {"man"}}


def test_toned_concepts_have_some_tone() -> None:
    table = [{"concept": "hand", "skin_tone": "none"}, {"concept": "hand", "skin_tone": "dark"}]
    assert scoring.toned_concepts([*table, {"concept": "apple", "skin_tone": "none"}]) == {"hand"}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 5), st.data())
@settings(max_examples=60)
def test_choices_are_even_over_styles_and_grow_with_the_count(
    styles: list[str], seed: int, data: st.DataObject
) -> None:
    table = rows(*styles)
    count = data.draw(st.integers(1, len(table)))
    chosen = scoring.choose(table, count, seed)
    assert len(set(chosen)) == len(chosen) == count
    per_style, there = Counter(styles[index] for index in chosen), Counter(styles)
    # A style has as many as the fullest one, less one for the turn that was not finished, unless it has no more rows.
    assert all(per_style[style] >= min(there[style], max(per_style.values()) - 1) for style in there)
    if count < len(table) - 1:
        assert set(chosen) <= set(scoring.choose(table, count + 1, seed))


def test_choices_hang_on_seed_and_names_only() -> None:
    table = rows(*"aabbab" * 5)
    names = {table[index]["id"] for index in scoring.choose(table, 8, seed=1)}
    turned = table[::-1]
    assert {turned[index]["id"] for index in scoring.choose(turned, 8, seed=1)} == names
    assert {table[index]["id"] for index in scoring.choose(table, 8, seed=2)} != names
    assert scoring.choose(table, None, seed=1) == list(range(len(table)))
    with pytest.raises(ValueError, match="expected at least 1"):
        scoring.choose(table, 0, seed=1)


def test_the_table_shows_every_line_with_its_interval() -> None:
    counted = scoring.tally([case(), case()], [verdict(), verdict("pear")])
    text = scoring.table("train", {"drawn": counted, "real": counted})
    lines = text.splitlines()
    assert len(lines) == 2 + len(scoring.LINES)
    low, high = counted["concept"].interval()
    assert f"50.0% [{100 * low:.1f}, {100 * high:.1f}] of 2" in next(
        one for one in lines if one.startswith("right conc")
    )
    assert next(one for one in lines if "where there are tones" in one).split()[-2:] == ["-", "-"]


def test_plain_values_leave_out_what_was_not_counted() -> None:
    plain = scoring.as_json(scoring.tally([case()], [verdict()]))
    assert plain["concept"]["right"] == plain["concept"]["total"] == 1
    assert "tone_of_toned" not in plain
