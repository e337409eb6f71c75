"""Contact sheets."""

from PIL import Image, ImageFont

from fitv2.images.sheets import MOST_LINES, contact_sheet, wrapped

FONT = ImageFont.load_default(10)


def test_captions_stay_within_their_columns():
    lines = wrapped("a melting face to the left of a fire engine on a purple background 64x64", FONT, 128)
    assert len(lines) > 1 and all(FONT.getlength(line) <= 128 for line in lines)
    cut = wrapped("word " * 99, FONT, 128)
    assert len(cut) == MOST_LINES and cut[-1].endswith("...") and all(FONT.getlength(line) <= 128 for line in cut)


def test_long_captions_make_their_row_higher():
    images = [Image.new("RGB", (64, 64), "pink")] * 2
    short, long = (contact_sheet(images, ["a cat", caption]) for caption in ("a dog", "a dog " * 10))
    assert short.width == long.width and short.height < long.height
    assert wrapped("", FONT, 9) == [""]
