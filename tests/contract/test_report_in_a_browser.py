"""The pages of report and compare in a real browser: all of it is seen, nothing is cut off."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from launch.report.facts import read_facts
from launch.report.page import compared_page, run_page
from tests.helpers.told_run import told_run
from trainer.drawing.shapes import BLUE

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    _BROWSER is None, reason="no chromium on PATH (apt-get install chromium)"
)
# What a person would see: words that leave their figure, figures that leave the page.
_LOOK = """
<script>
const cut = [];
for (const drawn of document.querySelectorAll("svg")) {
  const room = drawn.getBoundingClientRect();
  if (room.width < 100 || room.right > document.documentElement.clientWidth + 1) {
    cut.push("figure " + drawn.querySelector("title").textContent);
  }
  for (const words of drawn.querySelectorAll("text")) {
    const box = words.getBoundingClientRect();
    const inside = box.left >= room.left - 1 && box.right <= room.right + 1
      && box.top >= room.top - 1 && box.bottom <= room.bottom + 1;
    if (!inside) cut.push(words.textContent);
  }
}
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const said = {cut, wide, figures: document.querySelectorAll("svg").length,
  tables: document.querySelectorAll("table").length,
  heads: Array.from(document.querySelectorAll("h2"), head => head.textContent)};
document.body.setAttribute("data-said", JSON.stringify(said));
</script>
"""


def _browse(folder: Path, *arguments: str, page: str) -> subprocess.CompletedProcess[bytes]:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    assert _BROWSER is not None
    argv = [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    argv += ["--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"]
    argv += ["--window-size=1400,3000", *arguments, path.as_uri()]
    return subprocess.run(argv, cwd=folder, capture_output=True, timeout=300, check=True)


def _seen(folder: Path, page: str) -> dict:
    dom = _browse(folder, "--dump-dom", page=page.replace("</body>", f"{_LOOK}</body>"))
    found = re.search(r'data-said="([^"]*)"', dom.stdout.decode())
    assert found, dom.stderr.decode()[-2000:]
    return json.loads(unescape(found[1]))


def test_a_report_is_seen_whole(tmp_path: Path) -> None:
    page = run_page(read_facts(told_run(tmp_path)))
    seen = _seen(tmp_path, page)
    assert seen["cut"] == []
    assert seen["wide"] <= 0
    assert seen["figures"] == 10  # six measures, two scores, two of time
    assert seen["heads"] == [
        "Curves",
        "Where the time went",
        "Attempts",
        "Changes on the way",
        "Held out",
        "Samples",
        "Data",
        "Settings",
        "Environment",
    ]
    pillow = pytest.importorskip("PIL.Image", reason="Pillow, which reads the picture, is absent")
    picture = tmp_path / "page.png"
    _browse(tmp_path, f"--screenshot={picture}", page=page)
    with pillow.open(io.BytesIO(picture.read_bytes())) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    assert colours.get(BLUE, 0) > 5000  # bars, and the middle of each curve's line


def test_runs_over_each_other_are_seen_whole(tmp_path: Path) -> None:
    names = ("first-run", "the-one-with-another-rate")
    runs = {name: read_facts(told_run(tmp_path, name, learning_rate=len(name))) for name in names}
    seen = _seen(tmp_path, compared_page(runs))
    assert seen["cut"] == []
    assert seen["wide"] <= 0
    assert seen["figures"] == 6 + 2 + 2
    assert "What differs" in seen["heads"]


def test_what_is_cut_off_is_noticed(tmp_path: Path) -> None:
    page = run_page(read_facts(told_run(tmp_path)))
    broken = page.replace("steps done for the first time", "x" * 400)
    assert broken != page
    assert len(_seen(tmp_path, broken)["cut"]) == 1
