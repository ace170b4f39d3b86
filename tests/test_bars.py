"""Bars: a log gets lines, and short work gets none."""

import io
import sys

import pytest

from mlir_jax import bars


@pytest.mark.parametrize("seconds, lines", [(0.0, 11), (1000.0, 0)])
def test_a_log_gets_a_line_now_and_then(monkeypatch, seconds, lines):
  log = io.StringIO()  # It is not a terminal.
  monkeypatch.setattr(sys, "stderr", log)
  monkeypatch.setattr(bars, "LOG_EVERY", seconds)
  for _ in bars.bar(range(10), "Counting", unit="text", leave=False):
    pass
  written = log.getvalue().splitlines()
  assert len(written) == lines
  assert "\r" not in log.getvalue()
  assert all(line.startswith("Counting: ") for line in written)
  if lines:
    assert "10/10" in written[-1]


def test_a_bar_inside_another_moves_no_cursor_in_a_log(monkeypatch):
  log = io.StringIO()
  monkeypatch.setattr(sys, "stderr", log)
  monkeypatch.setattr(bars, "LOG_EVERY", 0.0)
  for _ in bars.bar(range(2), "Outer", unit="text"):
    for _ in bars.bar(range(2), "Inner", unit="text"):
      pass
  assert "Inner: " in log.getvalue()
  assert "\x1b" not in log.getvalue()
