"""A strip of clickable thumbnails as a widget: `items` in, the clicked row out."""

from __future__ import annotations

import anywidget
import traitlets

_ESM = """
function render({ model, el }) {
  el.classList.add("hoi-gallery");
  const draw = () => {
    el.replaceChildren(...model.get("items").map((item) => {
      const button = document.createElement("button");
      button.className = item.mark ? `tile ${item.mark}` : "tile";
      button.title = item.title;
      if (item.src) {
        const image = document.createElement("img");
        image.src = item.src;
        image.alt = item.title;
        button.append(image);
      }
      for (const [name, text] of [["name", item.name], ["note", item.note]]) {
        const line = document.createElement("span");
        line.className = name;
        line.textContent = text;
        button.append(line);
      }
      button.onclick = () => {
        model.set("clicked", item.row);
        model.save_changes();
      };
      return button;
    }));
  };
  model.on("change:items", draw);
  draw();
}
export default { render };
"""

_CSS = """
.hoi-gallery { display: flex; flex-wrap: wrap; gap: 8px; }
.hoi-gallery .tile { width: 104px; padding: 4px; border: 1px solid #dfe3e8; border-radius: 6px; background: #fff;
  color: #22272e; cursor: pointer; text-align: left; font: 11px/1.3 system-ui, sans-serif; }
.hoi-gallery .tile:hover, .hoi-gallery .tile:focus-visible { border-color: #0072b2; outline: none; }
.hoi-gallery .tile.same { border-bottom: 3px solid #009e73; }
.hoi-gallery img { width: 100%; height: 76px; object-fit: contain; display: block; background: #f3f5f7;
  border-radius: 3px; margin-bottom: 3px; }
.hoi-gallery span { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.hoi-gallery .note { color: #5b6472; }
"""


class Gallery(anywidget.AnyWidget):
    """items: [{row, src, name, note, title, mark}], src a data URI or empty; clicked: row of the tile last clicked."""

    _esm = _ESM
    _css = _CSS
    items = traitlets.List().tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)
