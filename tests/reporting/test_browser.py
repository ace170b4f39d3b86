"""The report opens in a browser: without errors, whole, and on a phone."""

import re
import shutil
import subprocess

import pytest
from reporting import made_runs

from mlir_jax import report

CHROMIUM = shutil.which("chromium")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]
PHONE = 390  # Pixels.
# It shows a page as wide as a phone, and says how wide its content is.
FRAME = """<!doctype html><title>waiting</title>
<iframe src="{page}" width="{width}" height="800" style="border: 0"></iframe>
<script>
addEventListener("load", () => setTimeout(() => {{
  const page = document.querySelector("iframe").contentDocument;
  const {{scrollWidth, clientWidth}} = page.documentElement;
  document.title = `${{scrollWidth}} of ${{clientWidth}}`;
}}, 1000));
</script>"""


@pytest.fixture
def open_page(tmp_path):
  """Opens a file: its content after all scripts, and the console's lines."""

  def open_file(path, *flags):
    done = subprocess.run(
      [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",  # Its sandbox does not work for root.
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=30000",
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
        "--dump-dom",
        path.as_uri(),
      ],
      capture_output=True,
      text=True,
      timeout=500,
      check=True,
    )
    lines = done.stderr.splitlines()
    return done.stdout, [line for line in lines if "CONSOLE" in line]

  return open_file


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  pytest.importorskip("plotly")
  folder = tmp_path_factory.mktemp("page")
  runs = [
    made_runs.make_run(folder / f"run-{seed}", seed=seed) for seed in range(2)
  ]
  path = folder / "report.html"
  report.report([str(run) for run in runs], str(path))
  return path


def test_a_browser_draws_all_charts_without_a_word_in_its_console(
  page, open_page
):
  content, console = open_page(page)
  assert not console
  charts = re.findall(r'<div id="(chart-\d+)"', page.read_text("utf-8"))
  drawn = re.findall(
    r'<div id="(chart-\d+)"[^>]*class="[^"]*js-plotly', content
  )
  assert len(charts) > 10
  assert drawn == charts
  assert content.count('class="main-svg"') >= len(charts)


def test_the_console_would_say_what_the_policy_refuses(page, open_page):
  text = page.read_text("utf-8").replace(
    "</main>", '<script>alert(1)</script><img src="https://a.test/"></main>'
  )
  bad = page.with_name("bad.html")
  bad.write_text(text, encoding="utf-8")
  console = "\n".join(open_page(bad)[1])
  assert "script-src" in console
  assert "img-src" in console


def test_a_phone_shows_the_page_without_scrolling_sideways(page, open_page):
  frame = page.with_name("frame.html")
  frame.write_text(
    FRAME.format(page=page.as_uri(), width=PHONE), encoding="utf-8"
  )
  content, console = open_page(frame, "--allow-file-access-from-files")
  assert not console
  (widths,) = re.findall("<title>([0-9]+) of ([0-9]+)</title>", content)
  assert widths[0] == widths[1]
  assert PHONE - 20 <= int(widths[1]) <= PHONE  # Less a bar for scrolling.
