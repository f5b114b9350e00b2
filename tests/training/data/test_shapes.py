"""The world of shapes is pure, its oracle reads it without error, and its held-out part is never trained on."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from training.data import DataConfig, draws, open_source, scan
from training.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Facts,
    Placed,
    Scene,
    ShapesSource,
    Thing,
    agrees,
    canonical_caption,
    facts_of,
    held_out,
    random_caption,
    read,
    render,
    scene,
    world,
)

SPLITS = ("train", "validation")
numbers = st.integers(0, 10**6)
any_scene = st.builds(scene, st.integers(0, 3), st.sampled_from(SPLITS), numbers)


def worn(image: Image.Image, blur: float, noise: float, index: int, drift: float = 0.0) -> Image.Image:
    """A picture as a model might give it back: blurred, noisy, its colours shifted."""
    rng = draws(99, index)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float64)
    pixels = pixels * rng.uniform(1 - drift, 1 + drift, 3) + rng.uniform(-100 * drift, 100 * drift, 3)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 255 * noise, pixels.shape), 0, 255).round().astype(np.uint8))


def things(*specs: str, background: str = "white", relation: str | None = None) -> Facts:
    """Facts from words, "small red circle"."""
    made = tuple(Thing(colour, shape, size) for size, colour, shape in (spec.split() for spec in specs))
    return Facts(made, relation, background)


def drawn(
    spec: str, *places: tuple[float, float], background: str = "white", diameter: float | None = None
) -> Image.Image:
    """A picture of the same thing at several places."""
    facts = things(spec, background=background)
    thing = facts.things[0]
    size = diameter or sum(SIZES[thing.size or "small"]) / 2
    return render(Scene(facts, tuple(Placed(thing, x, y, size) for x, y in places)))


# --- the oracle


@settings(max_examples=150)
@given(any_scene)
def test_the_oracle_reads_every_rendering(one: Scene) -> None:
    facts = read(render(one))
    assert agrees(facts, canonical_caption(one.facts))
    # What the caption leaves out, it reads as well: sizes, and where things are.
    assert Counter(facts.things) == Counter(placed.thing for placed in one.placed)
    assert facts.background == one.facts.background


@settings(max_examples=80)
@given(any_scene, numbers, st.sampled_from([(0.7, 0.03, 0.0), (1.0, 0.04, 0.0), (0.4, 0.02, 0.08)]))
def test_the_oracle_reads_through_blur_noise_and_drift(
    one: Scene, index: int, wear: tuple[float, float, float]
) -> None:
    blur, noise, drift = wear
    assert agrees(read(worn(render(one), blur, noise, index, drift)), one.facts)


@settings(max_examples=60)
@given(any_scene)
def test_the_oracle_reads_through_jpeg(one: Scene) -> None:
    stream = io.BytesIO()
    render(one).save(stream, "JPEG", quality=90, subsampling=0)
    assert agrees(read(Image.open(stream)), one.facts)


@pytest.mark.parametrize("resolution", [48, 96, 128])
def test_the_oracle_reads_other_resolutions(resolution: int) -> None:
    for index in range(30):
        one = scene(0, "train", index)
        image = render(one, resolution)
        assert image.size == (resolution, resolution)
        assert agrees(read(image), one.facts)


@pytest.mark.slow
@pytest.mark.parametrize(("blur", "noise"), [(0.0, 0.0), (0.7, 0.03)])
def test_the_oracle_makes_no_error_in_ten_thousand_scenes(blur: float, noise: float) -> None:
    scenes = [scene(7, split, index) for split in SPLITS for index in range(5000)]
    wrong = [
        one for index, one in enumerate(scenes) if not agrees(read(worn(render(one), blur, noise, index)), one.facts)
    ]
    assert wrong == []


@settings(max_examples=150)
@given(any_scene, any_scene)
def test_the_oracle_never_takes_one_scene_for_another(one: Scene, other: Scene) -> None:
    facts = read(render(one))
    same = agrees(
        Facts(tuple(placed.thing for placed in one.placed), one.facts.relation, one.facts.background), other.facts
    )
    assert agrees(facts, other.facts) == same


def test_every_colour_on_every_background_is_told_apart() -> None:
    for background, colour, shape in itertools.product(BACKGROUNDS, COLOURS, SHAPES):
        facts = read(drawn(f"small {colour} {shape}", (0.4, 0.6), background=background))
        assert facts == things(f"small {colour} {shape}", background=background)


def test_wrong_counts_are_noticed() -> None:
    places = ((0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8), (0.5, 0.5))
    for count in range(1, 6):
        facts = read(drawn("small red circle", *places[:count]))
        for said in range(1, 6):
            assert agrees(facts, Facts((Thing("red", "circle", "small"),) * said)) == (said == count)


def test_wrong_places_are_noticed() -> None:
    red, blue = Placed(Thing("red", "star"), 0.25, 0.5, 0.2), Placed(Thing("blue", "ring"), 0.75, 0.5, 0.2)
    image = render(Scene(Facts((), None, "white"), (red, blue)))
    assert agrees(read(image), "a red star left of a blue ring on white")
    assert agrees(read(image), "a blue ring right of a red star")
    for caption in ("a red star right of a blue ring", "a red star above a blue ring", "a red star below a blue ring"):
        assert not agrees(read(image), caption)
    aslant = (replace(red, y=0.25), replace(blue, y=0.75))
    assert read(render(Scene(Facts((), None, "white"), aslant))).relation is not None
    close = (replace(red, x=0.46, y=0.5), replace(blue, x=0.54, y=0.5))
    assert not agrees(read(render(Scene(Facts((), None, "white"), close))), "a red star left of a blue ring")


def test_a_blank_picture_shows_nothing() -> None:
    facts = read(Image.new("RGB", (64, 64), "white"))
    assert facts == Facts((), None, "white")
    assert not agrees(facts, "a red circle")


def test_what_is_none_of_the_world_is_unknown() -> None:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((4, 28, 58, 33), fill=COLOURS["red"])
    assert read(image).things[0].shape == "unknown"
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 42, 42), fill=(20, 20, 20))
    assert read(image).things[0].colour == "unknown"
    halves = drawn("large red circle", (0.5, 0.5))
    halves.paste(drawn("large blue circle", (0.5, 0.5)).crop((32, 0, 64, 64)), (32, 0))
    assert not any(agrees(read(halves), f"a large {colour} circle") for colour in COLOURS)
    assert read(Image.new("RGB", (64, 64), (255, 0, 255))).background is None


def test_a_stray_blob_spoils_a_picture_and_dust_does_not() -> None:
    image = drawn("large green square", (0.3, 0.3))
    dusty = image.copy()
    dusty.putpixel((50, 50), COLOURS["green"])
    assert agrees(read(dusty), "a large green square")
    ImageDraw.Draw(image).ellipse((48, 48, 54, 54), fill=COLOURS["green"])
    assert not agrees(read(image), "a large green square")


def test_sizes_between_the_words_are_not_large_nor_small_by_chance() -> None:
    assert read(drawn("small red circle", (0.5, 0.5), diameter=0.22)).things[0].size == "small"
    assert read(drawn("large red circle", (0.5, 0.5), diameter=0.36)).things[0].size == "large"
    assert read(drawn("large red circle", (0.5, 0.5), diameter=0.7)).things[0].size is None


# --- the world


@given(st.integers(0, 3), st.sampled_from(SPLITS), numbers)
def test_scenes_and_pictures_are_pure(seed: int, split: str, index: int) -> None:
    one = scene(seed, split, index)
    assert one == scene(seed, split, index)
    assert render(one).tobytes() == render(scene(seed, split, index)).tobytes()
    assert one != scene(seed, split, index + 1)
    assert one != scene(seed + 1, split, index)


@settings(max_examples=200)
@given(any_scene)
def test_things_stay_inside_and_apart(one: Scene) -> None:
    for placed in one.placed:
        low, high = SIZES[placed.thing.size or ""]
        assert low <= placed.diameter <= high
        assert placed.diameter / 2 < min(placed.x, placed.y)
        assert max(placed.x, placed.y) < 1 - placed.diameter / 2
    for first, second in itertools.combinations(one.placed, 2):
        gap = max(abs(first.x - second.x), abs(first.y - second.y)) - (first.diameter + second.diameter) / 2
        assert gap * 64 > 2.9


def combinations(facts: Facts) -> set[tuple]:
    """Every combination of a kind that the world holds out from, that a scene has."""
    found: set[tuple] = {("colour shape", thing.colour, thing.shape) for thing in facts.things}
    if facts.background:
        found |= {("background colour", facts.background, thing.colour) for thing in facts.things}
    if facts.relation:
        found.add(("relation", facts.things[0].shape, facts.relation, facts.things[1].shape))
    elif len(facts.things) > 1:
        found.add(("count shape", len(facts.things), facts.things[0].shape))
    return found


def test_no_validation_combination_is_ever_trained_on_and_every_word_is() -> None:
    train = [scene(0, "train", index).facts for index in range(4000)]
    seen = set().union(*map(combinations, train))
    for index in range(400):
        facts = scene(0, "validation", index).facts
        assert held_out(facts)
        assert combinations(facts) - seen
    assert not any(map(held_out, train))
    # Each combination is either held out or taught: 64 - 8 and 32 - 4 and 4 x 8 - 4 and 128 - 16.
    taught = Counter(name for name, *_ in seen)
    assert taught == {"colour shape": 56, "background colour": 28, "count shape": 28, "relation": 112}
    words = {word for facts in train for thing in facts.things for word in (thing.colour, thing.shape, thing.size)}
    assert words == {*COLOURS, *SHAPES, *SIZES, None}
    assert {facts.background for facts in train} == {*BACKGROUNDS, None}
    assert {facts.relation for facts in train} == {*RELATIONS, None}
    assert {len(facts.things) for facts in train} == {1, 2, 3, 4, 5}


def test_a_background_without_a_name_is_near_none_that_has_one() -> None:
    scenes = [scene(0, "train", index) for index in range(600)]
    shades = [one for one in scenes if one.shade]
    assert abs(len(shades) / len(scenes) - world._SHADES) < 0.1
    for one in shades:
        assert one.facts.background is None
        assert render(one).getpixel((0, 0)) == one.shade
        assert read(render(one)).background is None
    assert not any(scene(0, "validation", index).shade for index in range(200))


def test_validation_holds_out_every_kind() -> None:
    kinds = Counter(len(name.split()) for index in range(400) for name in held_out(scene(0, "validation", index).facts))
    # "red square" or "two ring", "red on white", "star above ring", "star left of ring"
    assert set(kinds) == {2, 3, 4}
    assert any(
        name.split()[0] in COUNTS for index in range(400) for name in held_out(scene(0, "validation", index).facts)
    )


# --- captions


@settings(max_examples=300)
@given(any_scene, numbers)
def test_captions_read_back_into_their_facts(one: Scene, index: int) -> None:
    assert facts_of(canonical_caption(one.facts)) == one.facts
    caption = random_caption(one.facts, draws(0, index))
    assert caption == random_caption(one.facts, draws(0, index))
    told = facts_of(caption)
    assert told in (one.facts, replace(one.facts, background=None))
    assert agrees(read(render(one)), caption)


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("a large red circle on a white background", things("large red circle")),
        ("Three small blue stars on a black background.", things(*["small blue star"] * 3, background="black")),
        ("3 little blue stars on black", things(*["small blue star"] * 3, background="black")),
        (
            "a green square above a yellow ring on a gray background",
            Facts((Thing("green", "square"), Thing("yellow", "ring")), "above", "grey"),
        ),
        ("a yellow ring below a green square", Facts((Thing("green", "square"), Thing("yellow", "ring")), "above")),
        (
            "a pink heart with an orange star to its left",
            Facts((Thing("orange", "star"), Thing("pink", "heart")), "left of"),
        ),
        (
            "a pink heart with an orange star under it",
            Facts((Thing("pink", "heart"), Thing("orange", "star")), "above"),
        ),
        ("a picture of two cyan crosses", Facts((Thing("cyan", "cross"),) * 2)),
    ],
)
def test_the_grammar_as_people_type_it(caption: str, facts: Facts) -> None:
    assert facts_of(caption) == facts


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red dog",
        "two red circle",
        "a red circles",
        "six red circles",
        "a mauve circle",
        "a red circle near a blue ring",
        "two red circles left of a blue ring",
        "a red circle on a tartan background",
    ],
)
def test_what_is_not_of_the_grammar_is_said(caption: str) -> None:
    with pytest.raises(ValueError, match=r"caption|counts"):
        facts_of(caption)


# --- as a source


def test_it_plugs_in_as_a_source() -> None:
    config = DataConfig(path="shapes", split="validation", length=50, limit=20, resolution=64, seed=3)
    source = open_source(config)
    assert isinstance(source, ShapesSource)
    assert len(source) == 20
    assert source.image(4).size == (64, 64)
    assert agrees(read(source.image(4)), source.caption(4))
    assert agrees(read(source.image(4)), source.caption(4, draws(0, 4)))
    assert source.row(4)["held_out"]
    assert source.row(4)["caption"] == source.caption(4)
    assert scan(source).good == list(range(20))
    assert source.fingerprint == open_source(config).fingerprint
    for change in ({"seed": 4}, {"split": "train"}, {"resolution": 32}, {"length": 10}):
        assert open_source(replace(config, **change)).fingerprint != source.fingerprint
    with pytest.raises(IndexError):
        source.image(20)


def test_what_shapes_does_not_have_is_said() -> None:
    with pytest.raises(ValueError, match=r"split is 'test'.*train, validation"):
        open_source(DataConfig(path="shapes", split="test"))
    with pytest.raises(ValueError, match="resolution is 8"):
        render(scene(0, "train", 0), 8)
