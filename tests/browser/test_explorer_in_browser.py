"""The explorer in a real browser: JupyterLab on localhost, headless Chromium, clicks and keys as a person makes them.

Skipped with a reason where Playwright or Chromium is missing. Screenshots go to the folder HOI_SCREENSHOTS, if set.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.analysis.embeddings import BOXES_H, BOXES_O, EmbeddingTable, normalised
from lib.analysis.projections import project
from lib.config import load_config
from lib.data.formats import read_dataset
from lib.data.stick_world import render_world
from lib.runs import Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--use-gl=angle",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
PROJECT = Path(__file__).parents[2]
WAIT = 180_000  # ms; a busy machine is slow, a broken page never comes


def micro_run(folder: Path, pairs: int = 160) -> Run:
    """A run of a rendered micro world whose embeddings are drawn round their class texts: nothing is trained."""
    cfg = load_config("tests/micro.yaml", ["data.world.train_images=8", "data.world.test_images=80"])
    run = Run(folder, cfg)
    world = run.artifact("world", cfg.data.world, lambda path: render_world(path, cfg.data.world))
    data, rng = read_dataset(world.path, "hico", "test", "images/{split}2015"), np.random.default_rng(0)
    rows = [
        {"image": i, "hoi_id": int(hoi)} | dict(zip([*BOXES_H, *BOXES_O], [*box_h, *box_o], strict=True))
        for i, image in enumerate(data.images)
        for hoi, box_h, box_o in zip(image.hoi, image.boxes_h, image.boxes_o, strict=True)
    ][:pairs]
    pair, v = pd.DataFrame(rows), data.vocabulary
    pair["point"] = [f"pair-{i}" for i in pair.index]
    text = pd.DataFrame({"hoi_id": np.arange(v.num_hois), "point": [f"text-{i}" for i in range(v.num_hois)]})
    direction = normalised(rng.normal(size=(v.num_hois, 24)))
    noise = rng.normal(size=(2, len(pair), 24)) / 5
    near = direction[pair["hoi_id"]]
    parts = [(text, "text", direction), (text, "text_centred", normalised(direction - direction.mean(0)))]
    parts += [
        (pair, "raw", near + noise[0] + 1),
        (pair, "centred", near + noise[0]),
        (pair, "bridged", near + noise[1]),
    ]
    frame = pd.concat([p.assign(state=s, modality=s.split("_")[0] if "text" in s else "vision") for p, s, _ in parts])
    frame = frame.assign(verb=np.array(v.verbs)[v.hoi_verb[frame["hoi_id"]]])
    frame = frame.assign(object=np.array(v.objects)[v.hoi_object[frame["hoi_id"]]], score=0.5)
    frame["unseen"] = frame["hoi_id"] % 4 == 0
    frame["hoi"] = frame["verb"] + " " + frame["object"]
    frame["sentence"] = np.array(v.class_sentences())[frame["hoi_id"]]
    table = EmbeddingTable(frame, np.concatenate([vectors for *_, vectors in parts]))
    run.artifact("embeddings", {}, lambda path: project(table, ["pca"]).save(path) and None)
    return run


def notebook(path: Path, run: Path) -> None:
    """Two cells: the explorer in one line, and what is selected."""
    sources = [
        f'from lib.stages.explore import explore\nexplorer = explore("{run}")\nexplorer',
        'print("SELECTED", len(explorer.selected), sorted(set(explorer.selected["verb"])))',
    ]
    cells = [
        {"cell_type": "code", "id": f"c-{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": text}
        for i, text in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab of our own: free port, own folders, own token; its processes end with the test."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        notebook(folder / "explore.ipynb", micro_run(folder / "micro").root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = folder / ".lab/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')
    places = {f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".lab"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".spaces")}
    places |= {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=test"]
    # a test that is killed cannot end its server: it ends by itself then
    command += ["--ServerApp.shutdown_no_activity_timeout=120", "--MappingKernelManager.cull_idle_timeout=120"]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=os.environ | places, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token=test", server, folder / "lab.log")
        yield address
    finally:
        _end(server, address)


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _end(server: subprocess.Popen, address: str) -> None:
    """Shut the server down in its own way, which ends its kernels; then make sure of its whole group."""
    request = urllib.request.Request(f"{address}/api/shutdown?token=test", method="POST")
    try:
        urllib.request.urlopen(request, timeout=10).close()
        server.wait(20)
    except (OSError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1250})
        page.set_default_timeout(WAIT)
        page.goto(f"{lab}/doc/tree/explore.ipynb?token=test")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        page.keyboard.press("Control+B")  # the side bar away
        yield page
        browser.close()


def shoot(page, name: str) -> None:
    folder = os.environ.get("HOI_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def run_cell(page, number: int) -> str:
    """Run a cell as a person does and wait until it is done; its text output."""
    cell = page.locator(".jp-CodeCell").nth(number)
    prompt = cell.locator(".jp-InputPrompt")
    before = prompt.inner_text()
    for _ in range(WAIT // 500):
        shown = prompt.inner_text()
        if shown != before and any(letter.isdigit() for letter in shown):
            break
        if "*" not in shown:  # a kernel that is still starting swallows the keys
            cell.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(500)
    output = cell.locator(".jp-OutputArea-output")
    output.first.wait_for()
    text = output.first.inner_text()
    assert "Traceback" not in text, text
    return text


def settled(page, canvas, unlike: bytes = b"") -> bytes:
    """A picture of a canvas that has stopped moving and differs from `unlike`."""
    shown = b""
    for _ in range(60):
        last, shown = shown, canvas.screenshot()
        if shown == last and shown != unlike:
            return shown
        page.wait_for_timeout(500)
    raise AssertionError("the plot never settled on another picture")


def selected(page) -> tuple[int, list[str]]:
    """What the second cell says is selected."""
    count, verbs = re.search(r"SELECTED (\d+) (\[.*\])", run_cell(page, 1)).groups()
    return int(count), json.loads(verbs.replace("'", '"'))


def test_a_person_explores_a_finished_run(page):
    run_cell(page, 0)
    page.wait_for_selector(".hoi-explorer canvas")
    page.wait_for_selector(".hoi-explorer .legend")
    assert selected(page) == (0, [])
    plot = page.locator(".hoi-explorer canvas").first
    opened = settled(page, plot)
    shoot(page, "1_opened")

    colour = page.locator(".hoi-explorer select").nth(2)
    colour.select_option(label="seen / unseen")
    page.wait_for_function("document.querySelector('.hoi-explorer .legend').innerText.match(/unseen \\d/)")
    painted = settled(page, plot, unlike=opened)
    page.locator(".hoi-explorer .noUi-handle").first.press("ArrowLeft")
    page.wait_for_selector(".hoi-explorer b:has-text('vision, centred')")
    settled(page, plot, unlike=painted)
    shoot(page, "2_centred")

    search = page.locator(".hoi-explorer input[type=text]").first
    search.fill("ride")
    search.press("Enter")
    page.wait_for_selector(".hoi-gallery img")
    assert page.locator(".hoi-explorer .card img").count() == 1
    count, verbs = selected(page)
    assert count > 0 and verbs == ["ride"]
    shoot(page, "3_searched")

    card = page.locator(".hoi-explorer .card h4")
    page.locator(".hoi-gallery .tile").last.click()  # a neighbour or another of the selection comes into focus
    page.wait_for_timeout(1500)
    assert card.inner_text()
    page.locator(".hoi-explorer button", has_text="clear").click()
    page.wait_for_function("document.querySelectorAll('.hoi-gallery img').length === 0")
    assert selected(page) == (0, [])

    # the mouse: hovering shows a picture, a click selects
    box = plot.bounding_box()
    for across, down in ((x, y) for y in (0.5, 0.45, 0.55, 0.4, 0.6) for x in (0.5, 0.48, 0.52, 0.46, 0.54, 0.44, 0.4)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=3)
        page.wait_for_timeout(120)
        if page.locator(".hoi-explorer .card img").count():
            break
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(".hoi-explorer b:has-text('selected')")
    page.locator(".hoi-explorer .lm-TabBar-tab", has_text="Similarity").click()
    page.wait_for_selector(".hoi-explorer .js-plotly-plot .heatmaplayer image")
    page.locator(".hoi-explorer select").first.select_option(label="states side by side")
    page.wait_for_function("document.querySelectorAll('.hoi-explorer canvas').length >= 3")
    settled(page, page.locator(".hoi-explorer canvas").last)
    shoot(page, "4_side_by_side")
    assert selected(page)[0] == 1
