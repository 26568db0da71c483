"""Drawings in files: SVG and safetensors, ours and other people's."""

from xml.etree import ElementTree

import pytest
import torch

from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.strokes.svg_writing import svg_of


def drawing(seed=0, filled=True):
    g = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([1, 2, 2])
    points = torch.rand(3, 7, 2, generator=g) * 30
    points[0, 4:] = 0  # padding
    if filled:
        points[1, 6] = points[1, 0]
    return StrokeDrawing(
        points, torch.tensor([0.7, 0.0, 2.5]) if filled else torch.rand(3, generator=g),
        torch.rand(3, 4, generator=g), numbers, 28, 31,
        filled=torch.tensor([False, True, False]) if filled else None, background=(0.9, 0.8, 1.0),
    )  # fmt: skip


def test_svg_comes_back_as_it_was():
    for one in (drawing(), drawing(1, filled=False)):
        again = StrokeDrawing.from_svg(one.to_svg())
        for name in ("radii", "colors", "points"):
            torch.testing.assert_close(getattr(again, name), getattr(one, name), rtol=1e-6, atol=1e-7)
        assert again.num_segments.tolist() == one.num_segments.tolist()
        torch.testing.assert_close(again.render(), one.render(), rtol=0, atol=1e-5)
        assert again.to_svg() == one.to_svg() and (again.height, again.width) == (28, 31)
    assert 'stroke-width="5"' in drawing().to_svg() and 'stroke-linecap="round"' in drawing().to_svg()


def test_svg_is_xml_that_editors_open():
    one = drawing()
    root = ElementTree.fromstring(svg_of(one, 'a <cat> & "a dog"'))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.get("viewBox") == "0 0 31 28"
    assert root.find(f"{space}title").text == 'a <cat> & "a dog"'
    paths = [path.get("d").split() for path in root.findall(f"{space}path")]
    assert [len(path) for path in paths] == [10, 17, 16] and all(path[3] == "C" for path in paths)


def test_safetensors_come_back_bit_for_bit(tmp_path):
    one = drawing()
    again = StrokeDrawing.load(one.save(tmp_path / "a.safetensors"))
    assert all(torch.equal(getattr(again, n), getattr(one, n)) for n in ("points", "radii", "colors", "filled"))
    assert again.background == one.background and again.fill_rule == one.fill_rule
    assert len({one.to_bytes() for _ in range(5)}) == 1  # safetensors itself writes metadata in any order
    assert StrokeDrawing.load(one.save(tmp_path / "a.svg")).to_svg() == one.to_svg()
    (tmp_path / "b.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(OSError, match="not a valid safetensors"):
        StrokeDrawing.load(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="expected a name that ends in .svg"):
        one.save(tmp_path / "a.gif")


def test_svg_of_others_is_read_as_browsers_draw_it():
    text = """<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" viewBox="0 0 20 20">
      <g transform="translate(1 0)" opacity="1"><circle cx="6" cy="6" r="4" fill="#f00"/></g>
      <path d="M12 2 h6 v6 h-6 z M14 4 v2 h2 v-2 z" fill="blue" fill-rule="evenodd" stroke="none"/>
      <path d="M2 14 Q 6 10 10 14 T 18 14" fill="none" stroke="green" stroke-width="1"/>
    </svg>"""
    found = StrokeDrawing.from_svg(text)
    assert (found.height, found.width, len(found)) == (40, 40, 3)
    image = found.render()[:3]
    assert image[:, 12, 14].tolist() == pytest.approx([1, 0, 0], abs=0.01)
    ink = found.first(1).render()[3].sum()
    assert ink == pytest.approx(torch.pi * 64, rel=0.01)
    assert found.radii[2] == 1.0 and found.num_segments[2] == 2
    blue = found.render()
    assert blue[2, 5, 26] == pytest.approx(1, abs=0.01) and blue[3, 10, 30] < 0.01  # the hole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "no <svg> element"),
        ("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>", "no path or shape"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><svg>&b;</svg>", "declares entities"),
        ("<svg><path d='M 0 0", "cannot be read"),
        (
            "<svg xmlns='http://www.w3.org/2000/svg' width='99999999' height='9'>"
            "<path d='M0 0h9' stroke='red'/></svg>",
            "width: 99999999",
        ),
    ],
)  # fmt: skip
def test_svg_without_a_drawing_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        StrokeDrawing.from_svg(text)
