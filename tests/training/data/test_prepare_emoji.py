"""The emoji tables can be made again from checkouts that are laid out as the public sources are."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from training.data import DataConfig, decode, open_source
from training.data.emoji import STYLES, Candidate, draw, open_artwork, prepare, read_emoji, split_kinds

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "prepare_emoji.py"
TONES = {"Light": "1F3FB", "Medium-Light": "1F3FC", "Medium": "1F3FD", "Medium-Dark": "1F3FE", "Dark": "1F3FF"}
EMOJI_TEST = """# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # ☺️ E0.6 smiling face
263A                                       ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
# subgroup: person-role
1F9D1 200D 1F692                           ; fully-qualified     # 🧑‍🚒 E12.1 firefighter
{toned}
# subgroup: family
1F91D                                      ; fully-qualified     # 🤝 E0.6 handshake
1FAF1 1F3FB 200D 1FAF2 1F3FF ; fully-qualified # 🫱🏻‍🫲🏿 E14.0 handshake: light skin tone, dark skin tone
1F48F                                      ; fully-qualified     # 💏 E0.6 kiss
{kiss}
# group: Component
# subgroup: skin-tone
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
# group: Activities
# subgroup: game
1FA85                                      ; fully-qualified     # 🪅 E13.0 piñata
# group: Symbols
# subgroup: keycap
0033 FE0F 20E3                             ; fully-qualified     # 3️⃣ E0.6 keycap: 3
# group: Flags
# subgroup: country-flag
1F1FB 1F1F3                                ; fully-qualified     # 🇻🇳 E2.0 flag: Vietnam
# subgroup: flag
1F6A9                                      ; fully-qualified     # 🚩 E0.6 triangular flag
""".format(
    toned="\n".join(
        f"1F9D1 {code} 200D 1F692 ; fully-qualified # x E12.1 firefighter: {tone.lower()} skin tone"
        for tone, code in TONES.items()
    ),
    kiss="1F9D1 1F3FB 200D 2764 FE0F 200D 1F48B 200D 1F9D1 1F3FC ; fully-qualified # x E13.1 "
    "kiss: person, person, light skin tone, medium-light skin tone",
)
ANNOTATIONS = {
    "😀": ("face | grin | grinning face", "grinning face"),
    "🧑‍🚒": ("firefighter | firetruck", "firefighter"),
    "🤝": ("agreement | handshake | shake’s | 握手", "handshake"),
    "🪅": ("celebration | piñata", "piñata"),
}
DERIVED = {f"🧑{chr(int(code, 16))}‍🚒": tone.lower() for tone, code in TONES.items()}


def art(number: int, size: tuple[int, int] = (72, 72)) -> Image.Image:
    """A picture of its own for each number, with transparency around it."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    colour = (37 * number % 256, 91 * number % 256, 53 * number % 256, 255)
    ImageDraw.Draw(image).ellipse((size[0] // 8, size[1] // 8, size[0] * 7 // 8, size[1] * 7 // 8), fill=colour)
    return image


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def checkouts(tmp_path: Path) -> dict[str, Path]:
    """Tiny checkouts of all five sources; artwork is PNG, which needs no rasteriser."""
    (tmp_path / "emoji-test.txt").write_text(EMOJI_TEST, encoding="utf-8")
    for folder, entries in (
        ("annotations", ANNOTATIONS),
        (
            "annotationsDerived",
            {cp: (f"firefighter | {t} skin tone", f"firefighter: {t} skin tone") for cp, t in DERIVED.items()},
        ),
    ):
        lines = "".join(
            f'<annotation cp="{cp}">{words}</annotation><annotation cp="{cp}" type="tts">{name}</annotation>\n'
            for cp, (words, name) in entries.items()
        )
        path = tmp_path / "cldr" / "common" / folder / "en.xml"
        path.parent.mkdir(parents=True)
        path.write_text(f'<?xml version="1.0"?><ldml><annotations>{lines}</annotations></ldml>', encoding="utf-8")
    toned = [f"1f9d1-{code.lower()}-200d-1f692" for code in TONES.values()]
    couples = [
        "1f91d",
        "1faf1-1f3fb-200d-1faf2-1f3ff",
        "1f48f",
        "1f9d1-1f3fb-200d-2764-fe0f-200d-1f48b-200d-1f9d1-1f3fc",
    ]
    plain = ["1f600", "263a", "1f9d1-200d-1f692", "1fa85", "1f6a9", "1f1fb-1f1f3"]
    for number, name in enumerate([*plain, "33-20e3", *toned, *couples], 1):
        save(tmp_path / "twemoji" / "assets" / "72x72" / f"{name}.png", art(number))
    for number, name in enumerate([*plain, "0033-20e3", *toned, *couples], 30):
        stem = name.replace("-fe0f", "").replace("-", "_")
        save(tmp_path / "noto" / "png" / "128" / f"emoji_u{stem}.png", art(number, (136, 128)))
    fluent = tmp_path / "fluent" / "assets"
    for number, (name, code) in enumerate(
        {"Grinning face": "1f600", "Pinata": "1fa85", "Keycap 3": "0033 fe0f 20e3"}.items(), 60
    ):
        for kind, side in (("3D", 256), ("Flat", 32), ("High Contrast", 32)):
            file = name.lower().replace(" ", "_")
            save(fluent / name / kind / f"{file}_{kind.lower()}.png", art(number + side, (side, side)))
        (fluent / name / "metadata.json").write_text(json.dumps({"cldr": name.lower(), "unicode": code}))
    sequences = ["1f9d1 200d 1f692", *(f"1f9d1 {code.lower()} 200d 1f692" for code in TONES.values())]
    for number, tone in enumerate(["Default", *TONES], 80):
        save(fluent / "Firefighter" / tone / "3D" / f"firefighter_3d_{tone.lower()}.png", art(number, (256, 256)))
        save(fluent / "Firefighter" / "Flat" / tone / "firefighter.png", art(number + 20, (32, 32)))
    facts = {"cldr": "firefighter", "unicode": sequences[0], "unicodeSkintones": sequences}
    (fluent / "Firefighter" / "metadata.json").write_text(json.dumps(facts))
    fluents = dict.fromkeys(("fluent-3d", "fluent-flat"), tmp_path / "fluent")
    return {**fluents, "noto": tmp_path / "noto", "twemoji": tmp_path / "twemoji"}


def made(checkouts: dict[str, Path], **options: object) -> tuple[list[dict], Path]:
    """Prepares tables and returns their rows."""
    root = checkouts["noto"].parent
    output = root / "tables"
    prepare(checkouts, root / "emoji-test.txt", root / "cldr", output, **options)
    rows = [row for file in sorted(output.glob("*.parquet")) for row in pyarrow.parquet.read_table(file).to_pylist()]
    return rows, output


# --- what Unicode says


def test_names_keywords_concepts_and_tones(checkouts: dict[str, Path]) -> None:
    root = checkouts["noto"].parent
    emoji = {one.codepoints: one for one in read_emoji(root / "emoji-test.txt", root / "cldr")}
    assert "1f1fb-1f1f3" not in emoji
    assert "1f3fb" not in emoji
    assert "263a" not in emoji
    assert emoji["1fa85"].name == "pinata"
    assert emoji["1fa85"].keywords == ("celebration", "pinata")
    assert emoji["1f91d"].keywords == ("agreement", "handshake", "shake's")
    assert emoji["263a-fe0f"].concept == "263a"
    dark = emoji["1f9d1-1f3ff-200d-1f692"]
    assert (dark.concept, dark.skin_tone, dark.name) == ("1f9d1-200d-1f692", "dark", "firefighter: dark skin tone")
    shake = emoji["1faf1-1f3fb-200d-1faf2-1f3ff"]
    assert (shake.concept, shake.skin_tone) == ("1f91d", "mixed")
    assert emoji["1f9d1-1f3fb-200d-2764-fe0f-200d-1f48b-200d-1f9d1-1f3fc"].concept == "1f48f"
    assert (emoji["1f6a9"].group, emoji["1f6a9"].subgroup) == ("Flags", "flag")


# --- artwork


def test_each_source_s_layout_is_found(checkouts: dict[str, Path]) -> None:
    found = {style: open_artwork(style, root, {}).files for style, root in checkouts.items()}
    assert set(found) == set(STYLES)
    assert all("0033-20e3" in files and "1f9d1-1f3ff-200d-1f692" in files for files in found.values())
    assert found["fluent-3d"]["1f9d1-1f3ff-200d-1f692"].name == "firefighter_3d_dark.png"
    assert found["fluent-flat"]["1f9d1-1f3ff-200d-1f692"].parent.name == "Dark"
    assert found["twemoji"]["1f9d1-1f3fb-200d-2764-200d-1f48b-200d-1f9d1-1f3fc"].is_file()


def test_aliases_and_links_written_as_text_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "svg" / "emoji_u1f46b.png", art(1))
    (tmp_path / "svg" / "emoji_u1f46c.png").write_text("emoji_u1f46b.png")
    (tmp_path / "emoji_aliases.txt").write_text("# comment\n1f469_200d_1f91d_200d_1f468;1f46b # couple\nfe82b;gone\n")
    files = open_artwork("noto", tmp_path, {}).files
    target = tmp_path / "svg" / "emoji_u1f46b.png"
    assert files == dict.fromkeys(("1f46b", "1f46c", "1f469-200d-1f91d-200d-1f468"), target)


def test_pictures_are_centred_on_white(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    save(tmp_path / "wide.png", wide)
    pixels = np.asarray(draw(tmp_path / "wide.png"))
    assert pixels.shape == (128, 128, 3)
    assert (pixels[:31] == 255).all()
    assert (pixels[97:] == 255).all()
    assert (pixels[33:95] == [255, 0, 0]).all()


def test_svg_is_drawn_or_asks_for_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svg"
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><rect width="40" height="20" fill="#00f"/></svg>'
    )
    pixels = np.asarray(draw(path))
    assert (pixels[:31] == 255).all()
    assert (pixels[34:94] == [0, 0, 255]).all()
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'latentgen\[prepare\]'"):
        draw(path)


def test_pictures_that_say_another_emoji_or_tone_are_left_out(checkouts: dict[str, Path]) -> None:
    fluent = checkouts["fluent-3d"] / "assets"
    wrong = {"cldr": "grinning face", "unicode": "1f6a9"}
    save(fluent / "Wrong" / "3D" / "wrong_3d.png", art(7))
    (fluent / "Wrong" / "metadata.json").write_text(json.dumps(wrong))
    save(fluent / "Silent" / "3D" / "silent_3d.png", art(8))
    save(fluent / "Firefighter" / "Dark" / "3D" / "firefighter_3d_dark.png", art(80, (256, 256)))
    (checkouts["twemoji"] / "assets" / "72x72" / "1f600.png").write_bytes(b"not a picture")
    rows, output = made(checkouts)
    left_out = {
        one["file"]: one["reason"] for one in map(json.loads, (output / "left_out.jsonl").read_text().splitlines())
    }
    assert "another emoji" in left_out["assets/Wrong/3D/wrong_3d.png"]
    assert "metadata.json" in left_out["assets/Silent/3D/silent_3d.png"]
    assert "drawn exactly as 'firefighter'" in left_out["assets/Firefighter/Dark/3D/firefighter_3d_dark.png"]
    assert "cannot be decoded" in left_out["assets/72x72/1f600.png"]
    identities = {row["id"] for row in rows}
    assert not identities & {"1f6a9_fluent-3d", "1f9d1-1f3ff-200d-1f692_fluent-3d", "1f600_twemoji"}
    assert {"1f600_fluent-3d", "1f9d1-1f3ff-200d-1f692_fluent-flat", "1f600_noto"} <= identities


# --- the tables


def test_the_tables_open_as_training_data(checkouts: dict[str, Path]) -> None:
    rows, output = made(checkouts)
    assert len(rows) == len({row["id"] for row in rows}) == 2 * 9 + 2 * 15
    for row in rows:
        image = decode(row["image"]["bytes"])
        assert image.size == (128, 128)
        assert row["image"]["bytes"][8:16] == b"WEBPVP8L"
        style_root = checkouts[row["style"]]
        if row["style"] == "twemoji" and row["codepoints"] == "1f600":
            path = style_root / "assets" / "72x72" / "1f600.png"
            assert np.array_equal(image, draw(path))
    source = open_source(DataConfig(path=str(output), caption_template="emoji", resolution=128))
    captions = {source.caption(index) for index in range(len(source))}
    assert "a firefighter with dark skin, fluent 3d style" in captions
    train = next(output.glob("train-00000-of-*.parquet"))
    assert pyarrow.parquet.ParquetFile(train).metadata.row_group(0).num_rows <= 200
    names = pyarrow.parquet.read_schema(train).names
    expected = "id codepoints concept skin_tone name keywords group subgroup style split_kind image"
    assert names == expected.split()
    assert "CC-BY 4.0" in (output / "README.md").read_text()
    assert "| noto |" in (output / "README.md").read_text()


def test_the_same_sources_give_the_same_files(checkouts: dict[str, Path]) -> None:
    _, output = made(checkouts)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(FileExistsError, match="--overwrite"):
        made(checkouts)
    made(checkouts, overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["README.md", "left_out.jsonl", "mine.parquet"])
def test_files_of_others_are_left_alone(name: str, overwrite: bool, checkouts: dict[str, Path]) -> None:
    output = checkouts["noto"].parent / "tables"
    output.mkdir()
    (output / name).write_text("mine")
    if overwrite and name != "mine.parquet":
        made(checkouts, overwrite=True)  # by a name that the tables use, and asked for
        assert (output / name).read_text() != "mine"
        return
    with pytest.raises(FileExistsError, match=name):
        made(checkouts, overwrite=overwrite)
    assert [path.name for path in output.iterdir()] == [name]
    assert (output / name).read_text() == "mine"


# --- splits


def worlds() -> st.SearchStrategy[list[Candidate]]:
    """Tables of random concepts, some of which are drawn alike in a style."""
    tones = [(), ("light",), ("medium",), ("dark",), ("light", "dark")]

    def table(picks: list[tuple[int, int, int, int]]) -> list[Candidate]:
        rows = {}
        for concept, style, tone, alike in picks:
            digest = f"{concept // 2 if alike == 0 else concept}-{tone}"
            rows[concept, style, tone] = Candidate(f"c{concept}", f"s{style}", tones[tone], digest)
        return list(rows.values())

    pick = st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(0, 4), st.integers(0, 9))
    return st.lists(pick, min_size=1, max_size=400).map(table)


@given(worlds(), st.integers(0, 1000))
def test_splits_keep_their_promises(rows: list[Candidate], seed: int) -> None:
    kinds = split_kinds(rows, seed)
    assert kinds == split_kinds(rows, seed)
    train = [row for row, kind in zip(rows, kinds, strict=True) if kind == "train"]
    concepts = {row.concept for row in train}
    pairs = {(row.concept, row.style) for row in train}
    toned = {(row.concept, row.style, row.tones) for row in train}
    pictures = {(row.style, row.digest) for row in train}
    for row, kind in zip(rows, kinds, strict=True):
        if kind == "train":
            continue
        assert (row.style, row.digest) not in pictures
        if kind == "concept":
            assert row.concept not in concepts
        elif kind == "pair":
            assert row.concept in concepts
            assert (row.concept, row.style) not in pairs
        else:
            assert (row.concept, row.style) in pairs
            assert (row.concept, row.style, row.tones) not in toned


def test_splits_hold_out_the_shares_they_should_whatever_the_order() -> None:
    tones = [(), ("light",), ("medium",), ("dark",)]
    rows = [
        Candidate(f"c{c}", f"s{s}", tone, f"{c} {s} {tone}") for c in range(1500) for s in range(4) for tone in tones
    ]
    kinds = split_kinds(rows)
    backwards = split_kinds(rows[::-1])[::-1]
    assert kinds == backwards
    share = defaultdict(float)
    for kind in kinds:
        share[kind] += 1 / len(kinds)
    assert 0.006 < share["concept"] < 0.02
    assert 0.02 < share["pair"] < 0.04
    assert 0.02 < share["tone"] < 0.06


# --- the command


def test_the_command_makes_tables_and_says_errors_in_one_line(
    checkouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = checkouts["noto"].parent
    words = ["--noto", "noto", "--cldr", "cldr", "--emoji-test", "emoji-test.txt", "--output", "out"]
    # Once as a person runs it, from a folder that is not the repository; then in this process, which is quicker.
    done = subprocess.run([sys.executable, str(SCRIPT), *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "15 rows in out" in done.stdout
    assert list((root / "out").glob("train-*.parquet"))
    spec = importlib.util.spec_from_file_location("prepare_emoji", SCRIPT)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(root)
    assert script.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert script.main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert script.main(["--noto", "cldr", *words[2:], "--overwrite"]) == 2
    assert "expected a checkout of adobe-fonts/noto-emoji-svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "emoji-test.txt").unlink(), "emoji-test.txt"),
        (lambda root: (root / "emoji-test.txt").write_text("nothing"), "no fully-qualified emoji"),
        (lambda root: (root / "cldr" / "common" / "annotations" / "en.xml").unlink(), "checkout of unicode-org/cldr"),
        (lambda root: (root / "cldr" / "common" / "annotations" / "en.xml").write_text("<ldml"), "is not XML"),
    ],
)
def test_spoilt_sources_are_said(checkouts: dict[str, Path], spoil, message: str) -> None:
    spoil(checkouts["noto"].parent)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        made(checkouts)


def test_nothing_to_draw_is_said(checkouts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkout"):
        prepare({}, tmp_path / "emoji-test.txt", tmp_path / "cldr", tmp_path / "tables")
    for path in (checkouts["noto"] / "png" / "128").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of"):
        prepare({"noto": checkouts["noto"]}, tmp_path / "emoji-test.txt", tmp_path / "cldr", tmp_path / "tables")
    with pytest.raises(ValueError, match="unknown style"):
        open_artwork("cubist", tmp_path, {})
