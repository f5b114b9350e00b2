"""Sources read every form of data they promise, decode as a viewer would, and set bad pictures aside."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.data import (
    BadPictureError,
    DataConfig,
    decode,
    draw_seed,
    draws,
    open_source,
    picture_tensor,
    scan,
    to_tensor,
)
from training.data.held_out import held_out_source, rows_to_show


def picture(
    colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (12, 8), seed: int | None = None
) -> Image.Image:
    """A picture of one colour, or of noise where a seed is given."""
    if seed is None:
        return Image.new("RGB", size, colour)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture's file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_parquet(path: Path, contents: list[bytes | None], **columns: list) -> Path:
    """Writes picture files and other columns as `datasets` does."""
    images = [None if content is None else {"bytes": content, "path": None} for content in contents]
    table = datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image(decode=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims an enormous size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


GOOD = encoded(picture(seed=0))
BAD = {
    "empty": b"",
    "not a picture": b"<html>404</html>",
    "truncated png": encoded(picture(size=(64, 64), seed=1))[:-400],
    "truncated jpeg": encoded(picture(size=(64, 64), seed=1), "JPEG")[:400],
    "header only": GOOD[:20],
    "corrupt": GOOD[:60] + bytes(40) + GOOD[100:],
    "bomb": bomb_png(30_000, 30_000),
    "large": bomb_png(12_000, 10_000),
}


# --- decoding


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_with_its_reason(kind: str) -> None:
    with pytest.raises(BadPictureError, match="too large" if kind in ("bomb", "large") else "cannot be decoded"):
        decode(BAD[kind])


def test_exif_orientation_is_applied() -> None:
    upright = picture(size=(6, 4), seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: a viewer turns it by 90 degrees clockwise
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decode(encoded(stored, exif=exif)), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 10, 10, 99, 99, 99])
        image.putpixel((1, 2), 1)
        content = encoded(image, transparency=1)
    else:
        content = encoded(image.convert(mode))
    pixels = np.asarray(decode(content))
    assert pixels[2, 1].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [10, 10, 10]


def test_half_transparency_is_mixed_with_white() -> None:
    content = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 51)))
    assert np.asarray(decode(content))[0, 0].tolist() == [204, 204, 204]


def test_sixteen_bits_keep_their_brightness() -> None:
    levels = np.array([[0, 257 * 64, 257 * 200, 65535]], dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(levels))))[0, :, 0].tolist() == [0, 64, 200, 255]


@pytest.mark.parametrize(("mode", "white"), [("F", 1), ("F", 255), ("F", 65535), ("I", 255), ("I", 65535)])
def test_tiff_of_other_ranges_keeps_its_brightness(mode: str, white: int) -> None:
    levels = np.array([[0, white / 2, white]]).astype(np.float32 if mode == "F" else np.int32)
    seen = np.asarray(decode(encoded(Image.fromarray(levels), "TIFF")))[0, :, 0]
    assert seen == pytest.approx([0, 127.5, 255], abs=1)


def test_a_picture_of_nan_is_bad() -> None:
    with pytest.raises(BadPictureError, match="NaN"):
        decode(encoded(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "TIFF"))


def test_cmyk_and_grey_and_animation_become_rgb() -> None:
    cmyk = decode(encoded(picture((255, 0, 0), (16, 16)).convert("CMYK"), "JPEG", quality=95))
    assert cmyk.mode == "RGB"
    assert np.abs(np.asarray(cmyk, dtype=int) - [255, 0, 0]).max() < 12
    assert decode(encoded(Image.new("L", (3, 3), 77))).getpixel((0, 0)) == (77, 77, 77)
    frames = [picture((255, 0, 0)), picture((0, 0, 255))]
    assert decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)


# --- tensors


def test_a_picture_of_the_right_size_passes_through_exactly() -> None:
    image = picture(size=(16, 16), seed=5)
    tensor = to_tensor(image, 16)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(
        ((tensor + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(np.array(image)).permute(2, 0, 1)
    )
    assert float(to_tensor(picture((0, 255, 0), (4, 4)), 4)[1].max()) == 1.0


@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 40))
def test_any_size_is_scaled_and_centre_cropped(width: int, height: int, resolution: int) -> None:
    tensor = to_tensor(picture((200, 30, 60), (width, height)), resolution)
    assert tensor.shape == (3, resolution, resolution)
    assert torch.allclose(tensor, torch.tensor([200.0, 30.0, 60.0]).view(3, 1, 1) / 127.5 - 1)


def test_the_crop_is_central() -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    assert torch.equal(to_tensor(image, 32), torch.ones(3, 32, 32))


def test_scaling_down_does_not_alias() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")
    assert float(to_tensor(stripes, 16)[:, 2:-2, 2:-2].abs().max()) < 0.05


# --- forms of data


def check(source, length: int, captions: list[str]) -> None:
    assert len(source) == length
    assert [source.caption(index) for index in range(length)] == captions
    assert all(source.image(index).mode == "RGB" for index in range(length))


def test_parquet_by_file_glob_and_folder(tmp_path: Path) -> None:
    parts = [encoded(picture(seed=seed)) for seed in range(5)]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", parts[:2], caption=["a", "b"])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", parts[2:4], caption=["c", "d"])
    write_parquet(tmp_path / "validation.parquet", parts[4:], caption=["e"])
    check(open_source(DataConfig(path=str(tmp_path))), 4, ["a", "b", "c", "d"])
    check(open_source(DataConfig(path=str(tmp_path), split="validation")), 1, ["e"])
    check(open_source(DataConfig(path=str(tmp_path / "train-*.parquet"))), 4, ["a", "b", "c", "d"])
    check(open_source(DataConfig(path=str(tmp_path / "validation.parquet"), split="validation")), 1, ["e"])
    source = open_source(DataConfig(path=str(tmp_path), limit=3))
    check(source, 3, ["a", "b", "c"])
    assert np.array_equal(source.image(2), picture(seed=2))
    assert source.row(2) == {"caption": "c"}


def test_parquet_in_folders_of_splits_and_without_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "splits" / "test" / "0.parquet", [GOOD], text=["t"])
    write_parquet(tmp_path / "splits" / "train" / "0.parquet", [GOOD, GOOD], text=["x", "y"])
    check(open_source(DataConfig(path=str(tmp_path / "splits"), split="test")), 1, ["t"])
    write_parquet(tmp_path / "plain" / "pictures.parquet", [GOOD], text=["z"])
    check(open_source(DataConfig(path=str(tmp_path / "plain"))), 1, ["z"])


def test_a_folder_of_pictures_with_metadata(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(seed=len(name)).save(tmp_path / f"{name}.png")
    lines = [{"file_name": "one.png", "text": "first"}, {"file_name": "two.png", "text": "second"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(DataConfig(path=str(tmp_path)))
    assert sorted(source.caption(index) for index in range(2)) == ["first", "second"]
    assert source.id(0).endswith(".png")
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\none.png,uno\ntwo.png,dos\n")
    again = open_source(DataConfig(path=str(tmp_path)))
    assert sorted(again.caption(index) for index in range(2)) == ["dos", "uno"]
    assert again.fingerprint != source.fingerprint


def test_class_folders_are_captioned_by_their_names(tmp_path: Path) -> None:
    for label in ("red_apple", "pear"):
        (tmp_path / label).mkdir()
        picture().save(tmp_path / label / "0.png")
    source = open_source(DataConfig(path=str(tmp_path), caption_template="a photo of a {label}"))
    assert sorted(source.caption(index) for index in range(2)) == ["a photo of a pear", "a photo of a red apple"]


def pictures(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(root / name)
    return str(root)


def test_words_in_names_are_no_splits_unless_all_folders_name_one(tmp_path: Path) -> None:
    trains = pictures(tmp_path / "vehicles", "car/train_a.png", "train/steam.png", "train/test_run.png", "bus/val.png")
    source = open_source(DataConfig(path=trains, caption_template="a {label}"))
    assert [source.caption(index) for index in range(4)] == ["a bus", "a car", "a train", "a train"]

    splits = pictures(tmp_path / "splits", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    (tmp_path / "splits" / "LICENSE").write_text("of all of them")
    check(open_source(DataConfig(path=splits, caption_template="a {label}")), 2, ["a cat", "a dog"])
    check(open_source(DataConfig(path=splits, caption_template="a {label}", split="validation")), 1, ["a cat"])

    shared = pictures(tmp_path / "shared", "train/1.png", "train/2.png", "test/3.png")
    lines = [{"file_name": name, "text": name} for name in ("train/1.png", "train/2.png", "test/3.png")]
    (tmp_path / "shared" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    check(open_source(DataConfig(path=shared)), 2, ["train/1.png", "train/2.png"])
    check(open_source(DataConfig(path=shared, split="test")), 1, ["test/3.png"])


@pytest.mark.parametrize("extra", ["cover.png", "raw/5.png", "train.png", "notes/a/b/7.png"])
def test_what_lies_beside_the_splits_mixes_nothing(extra: str, tmp_path: Path) -> None:
    path = pictures(tmp_path / "data", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", extra)
    for split, captions in (("train", ["a cat", "a dog"]), ("validation", ["a cat"])):
        with pytest.warns(UserWarning, match=rf"1 pictures .* are not used, the first is {extra}"):
            source = open_source(DataConfig(path=path, split=split, caption_template="a {label}"))
        check(source, len(captions), captions)


def test_pictures_without_captions_serve_where_none_are_wanted(tmp_path: Path) -> None:
    path = Path(pictures(tmp_path / "data", "1.png", "2.png", "3.png"))
    (path / "metadata.jsonl").write_text(json.dumps({"file_name": "2.png", "text": "two"}))
    with_captions, without = open_source(DataConfig(path=str(path))), open_source(DataConfig(path=str(path)), False)
    assert (len(with_captions), len(without)) == (1, 3)
    assert scan(without, max_bad_share=0, captions=False).good == [0, 1, 2]
    with pytest.raises(ValueError, match="2 of 3 rows are bad"):
        scan(with_captions)


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD, b"no picture"], caption=["x", "y"], id=["one", "two"])
    source = open_source(DataConfig(path=str(tmp_path / "a.parquet")))
    assert picture_tensor(source, 0, 8).shape == (3, 8, 8)
    with pytest.raises(BadPictureError, match="two: cannot be decoded"):
        picture_tensor(source, 1, 8)


EMOJI = {"name": ["a"], "keywords": [["b"]], "style": ["noto"], "skin_tone": ["none"]}


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"caption": [3]}, {}, "'caption' .* holds numbers"),
        ({"caption": [{"a": 1}]}, {"caption_column": "caption"}, "'caption' .* holds"),
        ({}, {"caption_column": "image"}, "'image' .* holds"),
        (EMOJI | {"keywords": ["one, two"]}, {"caption_template": "emoji"}, "'keywords' .* holds text"),
        (EMOJI | {"name": [7]}, {"caption_template": "emoji"}, "'name' .* holds numbers"),
        ({"size": [[1, 2]]}, {"caption_template": "a {size} thing"}, "'size' .* holds"),
    ],
)
def test_columns_that_make_no_captions_are_refused(columns, settings, message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD], **columns)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(path=str(tmp_path / "a.parquet"), **settings))


def test_columns_of_every_kind_that_makes_captions(tmp_path: Path) -> None:
    columns = {"caption": ["one"], "list": [["two", "three"]], "size": [4], "none": [None]} | EMOJI
    write_parquet(tmp_path / "a.parquet", [GOOD], **columns)
    for settings, caption in (
        ({}, "one"),
        ({"caption_column": "list"}, "two"),
        ({"caption_column": "none"}, ""),
        ({"caption_template": "{size} of {name}"}, "4 of a"),
        ({"caption_template": "emoji"}, "an a, noto style"),
    ):
        assert open_source(DataConfig(path=str(tmp_path / "a.parquet"), **settings)).caption(0) == caption


def test_files_that_are_no_tables_are_passed_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD], caption=["x"])
    (tmp_path / "._train.parquet").write_bytes(b"what macOS leaves")
    check(open_source(DataConfig(path=str(tmp_path))), 1, ["x"])


def test_a_glob_over_folders_of_splits_keeps_them_apart(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_parquet(tmp_path / split / "0.parquet", [GOOD], text=[split])
    check(open_source(DataConfig(path=str(tmp_path / "*" / "*.parquet"))), 1, ["train"])
    check(open_source(DataConfig(path=str(tmp_path / "*" / "*.parquet"), split="validation")), 1, ["validation"])


@pytest.mark.parametrize("value", [GOOD, {"bytes": GOOD, "path": None}])
def test_pictures_of_pandas_and_pyarrow_are_taken_for_pictures(tmp_path: Path, value: object) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": [value], "text": ["one"]}), tmp_path / "a.parquet")
    check(open_source(DataConfig(path=str(tmp_path))), 1, ["one"])


def test_without_captions_pictures_are_enough(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD, b"x", GOOD])
    source = open_source(DataConfig(path=str(tmp_path)), captions=False)
    assert [source.caption(index) for index in range(3)] == [""] * 3
    assert scan(source, max_bad_share=0.5, captions=False).good == [0, 2]


def test_a_row_without_class_has_no_caption_and_other_pictures_are_not_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [{"bytes": GOOD}] * 2, "mask": [{"bytes": b"x"}] * 2, "label": [1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    source = open_source(DataConfig(path=str(tmp_path), caption_template="a {label}"))
    found = scan(source, max_bad_share=0.5)
    assert source.caption(0) == "a dog"
    assert [(bad.index, bad.reason) for bad in found.bad] == [(1, "no caption")]


def test_several_captions_of_a_picture_are_drawn(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD], caption=[["first", "second"]])
    source = open_source(DataConfig(path=str(tmp_path), caption_column="caption"))
    assert source.caption(0) == "first"
    assert {source.caption(0, draws(0, index)) for index in range(40)} == {"first", "second"}


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    def fingerprint(contents: list[bytes], **changes: object) -> str:
        write_parquet(tmp_path / "a.parquet", contents, caption=["x"] * len(contents))
        return open_source(DataConfig(path=str(tmp_path), **changes)).fingerprint

    first = fingerprint([GOOD, GOOD])
    assert fingerprint([GOOD, GOOD]) == first
    assert fingerprint([GOOD, encoded(picture())]) != first
    assert open_source(DataConfig(path=str(tmp_path))).image(1).getpixel((0, 0)) == (200, 30, 60)
    assert fingerprint([GOOD, GOOD], limit=1) != first


# --- what is wrong is said


def test_missing_places_are_said(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "absent.parquet", tmp_path / "*.parquet"):
        with pytest.raises(FileNotFoundError, match=r"data\.path"):
            open_source(DataConfig(path=str(path)))
    (tmp_path / "note.txt").write_text("not parquet")
    with pytest.raises(ValueError, match=r"note\.txt"):
        open_source(DataConfig(path=str(tmp_path / "note.txt")))


def test_a_hub_data_set_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*no such file or folder here, and the Hub"):
        open_source(DataConfig(path="nobody/nothing"))


def test_empty_and_unreadable_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_source(DataConfig(path=str(tmp_path / "empty")))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="broken"):
        open_source(DataConfig(path=str(tmp_path / "broken")))
    write_parquet(tmp_path / "none" / "a.parquet", [GOOD], caption=["x"])
    table = pyarrow.parquet.read_table(tmp_path / "none" / "a.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "none" / "a.parquet")
    with pytest.raises(ValueError, match="is empty"):
        open_source(DataConfig(path=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "picture"}, "'picture'.*it has: image, caption, number"),
        ({"image_column": "number", "caption_column": "caption"}, "not pictures.*image"),
        ({"caption_column": "text"}, "'text'.*it has: image, caption, number"),
        ({"caption_template": "emoji"}, "'name', 'keywords', 'style', 'skin_tone'"),
        ({"caption_template": "a {colour}"}, "'colour'"),
        ({"caption_template": "no braces"}, "unknown caption_template"),
        ({"caption_template": "emoji", "caption_column": "caption"}, "one of the two"),
        ({"split": "validation"}, "data.split is 'validation'.*train"),
    ],
)
def test_wrong_columns_are_said_with_those_there_are(tmp_path: Path, changes: dict, message: str) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD], caption=["x"], number=[1])
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(path=str(tmp_path), **changes))


def test_a_table_without_captions_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD], number=[1])
    with pytest.raises(ValueError, match=r"data\.caption_column"):
        open_source(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("changes", [{"resolution": 0}, {"limit": 0}, {"length": 0}, {"max_bad_share": 1.5}])
def test_wrong_numbers_are_said(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        DataConfig(**changes)


# --- quarantine


def test_every_kind_of_bad_row_is_listed_and_nothing_else(tmp_path: Path) -> None:
    contents: list[bytes | None] = [GOOD, *BAD.values(), None, GOOD, GOOD]
    captions = ["c"] * (len(contents) - 1) + [" "]
    path = write_parquet(
        tmp_path / "a.parquet", contents, caption=captions, id=[f"row-{k}" for k in range(len(contents))]
    )
    before = path.read_bytes()
    source = open_source(DataConfig(path=str(tmp_path)))
    found = scan(source, tmp_path / "run" / "quarantine.jsonl", max_bad_share=1.0)
    assert found.good == [0, len(contents) - 2]
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [one["index"] for one in listed] == [bad.index for bad in found.bad] == [*range(1, 10), len(contents) - 1]
    assert [one["id"] for one in listed] == [f"row-{one['index']}" for one in listed]
    assert listed[-1]["reason"] == "no caption"
    assert listed[-2]["reason"] == "no picture in this row"
    assert path.read_bytes() == before


def test_a_file_that_went_away_is_bad(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "abcd":
        picture(seed=ord(name)).save(folder / f"{name}.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": n}) for n in "abcd"))
    source = open_source(DataConfig(path=str(folder)))
    (folder / "c.png").unlink()
    found = scan(source, max_bad_share=0.5)
    assert len(found.good) == 3
    assert "c.png" in found.bad[0].id
    assert "cannot be read" in found.bad[0].reason


def test_pictures_that_the_metadata_leave_out_are_listed_and_counted(tmp_path: Path) -> None:
    for name in "abcd":
        picture(seed=ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": n}) for n in "abd"))
    source = open_source(DataConfig(path=str(tmp_path)))
    with pytest.warns(UserWarning, match=r"1 of 4 rows are bad and left out; .*quarantine\.jsonl lists them"):
        found = scan(source, tmp_path / "run" / "quarantine.jsonl", max_bad_share=0.25)
    assert len(found.good) == 3
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"].endswith("c.png")
    with pytest.raises(ValueError, match="1 of 4 rows are bad"):
        scan(source, max_bad_share=0.2)


def test_what_is_shown_is_good_held_out_and_spread(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD, b"x", *[GOOD] * 6], caption=["c"] * 8)
    source = open_source(DataConfig(path=str(tmp_path)))
    rows = scan(source, max_bad_share=0.5).good
    seen = rows_to_show(None, source, rows, 3)
    assert (seen.rows, seen.held_out, seen.name("psnr")) == ([0, 3, 5], False, "training_psnr")
    write_parquet(tmp_path / "validation.parquet", [b"x", GOOD, GOOD, b"x"], caption=["c", "c", " ", "c"])
    held_out = held_out_source(DataConfig(path=str(tmp_path)))
    shown = rows_to_show(held_out, source, rows, 2)
    assert (shown.source, shown.rows, shown.name("psnr")) == (held_out, [1], "validation_psnr")
    assert sorted(rows_to_show(held_out, source, rows, 4, captions=False).rows) == [1, 2]


def test_too_many_bad_rows_stop_before_training(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [GOOD] * 18 + [b"x"] * 2, caption=["c"] * 20)
    source = open_source(DataConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"2 of 20 rows are bad \(10.0%.*quarantine.jsonl"):
        scan(source, tmp_path / "quarantine.jsonl")
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    assert len(scan(source, max_bad_share=0.1).good) == 18


def test_a_table_of_only_bad_rows_is_refused_whatever_the_share(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [b"x"], caption=["c"])
    with pytest.raises(ValueError, match="1 of 1 rows are bad"):
        scan(open_source(DataConfig(path=str(tmp_path))), max_bad_share=1.0)


# --- randomness

counters = st.lists(st.one_of(st.integers(0, 2**40), st.sampled_from(["caption", "noise"])), max_size=4).map(tuple)


@given(st.integers(-(2**40), 2**70), counters, counters)
def test_draws_are_a_function_of_their_arguments(seed: int, one: tuple, other: tuple) -> None:
    numbers = draws(seed, *one).random(4)
    assert np.array_equal(numbers, draws(seed, *one).random(4))
    assert np.array_equal(numbers, draws(seed, *other).random(4)) == (one == other)
    assert draw_seed(seed, *one) == draw_seed(seed, *one)
    assert 0 <= draw_seed(seed, *one) < 2**63


def test_draws_do_not_tell_integer_types_apart() -> None:
    assert draws(0, np.int64(3)).random() == draws(0, 3).random()
    assert draws(0, 1, 23).random() != draws(0, 12, 3).random()
    torch.Generator().manual_seed(draw_seed(0, "noise", 1))


def test_only_a_missing_split_means_nothing_is_held_out(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}.parquet", [encoded(picture())], caption=["a red square"])
    config = DataConfig(path=str(tmp_path))
    assert len(held_out_source(config)) == 1
    with pytest.raises(ValueError, match="'title'"):
        held_out_source(replace(config, caption_column="title"))
    (tmp_path / "validation.parquet").unlink()
    assert held_out_source(config) is None
