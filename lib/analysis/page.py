"""Pieces of a page that opens anywhere: one file, figures embedded, nothing loaded from outside, light and dark."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

PREVIEW_WIDTH = 2000  # pixels: the page's column of 66rem on a screen with two pixels to a CSS pixel
_WEBP_SIDE = 16383  # pixels, the longest that the format knows


def page(title: str, *parts: str) -> str:
    """A whole document around ready parts."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A headed part; none for an empty body."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def quiet(text: str) -> str:
    """A remark below or above something."""
    return f"<p class=quiet>{escape(text)}</p>"


def folded(summary: str, body: str) -> str:
    """Something long behind a line to click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], prose: Sequence[str] = ()) -> str:
    """Rows of ready cells under a head; the columns named in `prose` are left-aligned."""
    cells = "".join(f"<th{' class=left' * (name in prose)}>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class=scroll><table>{top}<tbody>{body}</tbody></table></div>"


def name_cell(text: str) -> str:
    """The cell that names a row."""
    return f"<th scope=row>{escape(text)}</th>"


def text_cell(text: str, css: str = "left") -> str:
    """A cell of words."""
    return f'<td class="{css}">{escape(text)}</td>'


def number_cell(value: float, digits: int = 2, best: bool = False) -> str:
    """A number, bold where it is the best; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "<td>–</td>"
    return f"<td><b>{value:.{digits}f}</b></td>" if best else f"<td>{value:.{digits}f}</td>"


def picture(path: Path, caption: str = "", width: int = 0) -> str:
    """An image file embedded in the page; scaled down to `width` pixels where it is wider."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        if width and image.width > width:
            small, stream = image.resize((width, round(image.height * width / image.width))), io.BytesIO()
            small.save(stream, "PNG", optimize=True)
            data = stream.getvalue()
    return _figure(data, "png", caption)


def preview(path: Path, caption: str = "", page_folder: Path | None = None, width: int = PREVIEW_WIDTH) -> str:
    """An image file embedded as a WebP of at most `width` pixels, several times smaller than the PNG of a chart.

    It links to the file itself, by a path relative to `page_folder` (where the page will lie), if it lies below that.
    """
    link = ""
    if page_folder is not None and path.absolute().is_relative_to(page_folder.absolute()):
        link = quote(path.absolute().relative_to(page_folder.absolute()).as_posix())
    return _figure(_webp(path, width), "webp", caption, link)


def _webp(path: Path, width: int) -> bytes:
    """The smaller of a lossless and a hardly lossy WebP, on white: the first wins for charts, the second for photos."""
    with Image.open(path) as opened:
        image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")
    scaled = image.width > width or image.height > _WEBP_SIDE
    image.thumbnail((width, _WEBP_SIDE), Image.Resampling.LANCZOS)
    ways: list[dict] = [
        {"quality": 90, "use_sharp_yuv": True}
    ]  # sharp: thin coloured lines and letters keep their colour
    if not scaled:  # scaling blurs flat colours: lossless never wins then, and takes longest
        ways.append({"lossless": True, "quality": 50})
    found = []
    for way in ways:
        stream = io.BytesIO()
        image.save(stream, "WEBP", method=2, **way)
        found.append(stream.getvalue())
    return min(found, key=len)


def _figure(data: bytes, kind: str, caption: str, link: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{escape(caption)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
    shown = f'<a href="{escape(link)}">{image}</a>' if link else image
    return f"<figure>{shown}{below}</figure>"


def duration(seconds: float) -> str:
    """`48 s`, `5 min 51 s`, `3 h 02 min`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes as `3.2 GB`, `15.6 MB`, `740 kB`."""
    if not math.isfinite(count):
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


CSS = """
:root { color-scheme: light dark; --ink: #22272e; --quiet: #5b6472; --page: #fff; --card: #f6f7f9; --line: #e1e4e8;
  --good: #007a58; --bad: #b34700; --link: #0060a0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #9aa4b2; --page: #16191d; --card: #1f242a;
  --line: #333a43; --good: #3ecfa4; --bad: #ff9a5c; --link: #6cb6ff } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.9rem; margin: 0 0 .5rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
a { color: var(--link) } .quiet { color: var(--quiet); font-size: .9rem }
.verdict { font-size: 1.1rem; background: var(--card); border-left: 4px solid var(--quiet); padding: .8rem 1rem;
  border-radius: 0 6px 6px 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad) }
.helps { color: var(--good) } .hurts { color: var(--bad) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem }
th, td { padding: .32rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
thead th { color: var(--quiet); font-weight: 600 }
th:first-child, .left { text-align: left } th[scope=row] { font-weight: 500 } td.quiet { text-align: left }
tr.part th, tr.part td { padding-top: 1rem; color: var(--quiet); font-weight: 600 }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere }
figure { margin: 1.25rem 0 2rem } figure img { max-width: 100%; height: auto; background: #fff; padding: .5rem;
  box-sizing: border-box; border: 1px solid var(--line); border-radius: 6px }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .35rem }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 1.25rem }
.beside figure { margin: .5rem 0 1rem }
pre { background: var(--card); padding: 1rem; overflow-x: auto; font-size: .82rem; border-radius: 6px }
summary { cursor: pointer; color: var(--link) }
"""
