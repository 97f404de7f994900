"""Reads a page as a browser would: tags, attributes, words, and its layout on a phone."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, google-chrome or chrome on the PATH"
)

_PROBE = """
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const inside = (node) => node.parentElement?.closest(".scroll, .card");
  const wide = [...page.body.querySelectorAll("*")]
    .filter((e) => !inside(e) && e.getBoundingClientRect().right > root.clientWidth + 0.5)
    .map((e) => e.tagName + "." + e.className);
  const tables = [...page.querySelectorAll("table")].filter((e) => !e.closest(".scroll")).length;
  const broken = [...page.images].filter((e) => !e.naturalWidth).length;
  // Where a table or figure scrolls, and nowhere else, words below it say so.
  const silent = [...page.querySelectorAll(".scroll, .card.roomy")].filter((e) => {
    const said = parseFloat(page.defaultView.getComputedStyle(e, "::after").height) > 0;
    return e.checkVisibility() && said !== e.scrollWidth > e.clientWidth;
  }).length;
  const found = {silent, width: root.clientWidth, scroll: root.scrollWidth, wide, tables, broken};
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


def on_a_phone(text, folder):
    """What a browser finds at a width of 360 px, and what it logged.

    How many tables and figures do not say that they scroll, the width, the width that can be
    scrolled to, elements that stick out, tables that cannot be scrolled by themselves, and broken
    pictures.
    """
    # A frame, as browsers refuse windows as narrow as a phone; its own policy stays in force.
    frame = '<iframe id="page" width="360" height="800" style="border:0" srcdoc="{}"></iframe>'
    copy = folder / "copy.html"
    body = frame.format(html.escape(text, quote=True)) + '<p id="found"></p>' + _PROBE
    copy.write_text(f"<!doctype html><meta charset=utf-8>{body}", "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--hide-scrollbars", "--enable-logging=stderr"]
    command += ["--v=0", f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(found)), done.stderr


def opening(text):
    """The words of the box that a page opens with; it comes before any heading below the title."""
    box = re.search(r'<section id="answer".*?</section>', text, re.DOTALL)
    assert box and not re.search("<h2|<table|<figure", text[: box.start()])

    def words(part):
        return " ".join(html.unescape(re.sub("<[^>]+>", " ", part)).replace("\xa0", " ").split())

    found = {
        name: words(re.search(rf'<p class="{name}">(.*?)</p>', box[0], re.DOTALL)[1])
        for name in ("question", "lead", "not")
    }
    assert found["question"].endswith("?") and found["lead"].endswith(".")
    assert found["not"].startswith("What it does not mean: ") and len(found["not"]) > 40
    figures = re.findall(r"<dd>(.*?)</dd><dt>(.*?)</dt>", box[0], re.DOTALL)
    assert figures and all(words(what) for _, what in figures)
    return found | {"figures": {words(what): words(figure) for figure, what in figures}}


class Page(html.parser.HTMLParser):
    """Attributes and words of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._hidden = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]
