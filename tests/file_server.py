"""A local HTTP server of files, which can misbehave."""

import contextlib
import dataclasses
import http.server
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class Site:
  """What a server has, and what it was asked.

  Attributes:
    url: Its address, without a slash at the end.
    files: Path to content.
    tags: Path to ETag; others have none.
    breaks: Path to the numbers of bytes after which the next answers break off.
    errors: Path to the statuses of the next answers.
    retry_after: What these answers ask: in how many seconds to try again.
    careless: Paths of which a part is sent without a look at If-Range.
    asked: (path, Range header) of each request.
  """

  url: str = ""
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)
  tags: dict[str, str] = dataclasses.field(default_factory=dict)
  breaks: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  errors: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  retry_after: str = ""
  careless: set[str] = dataclasses.field(default_factory=set)
  asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def serving() -> Iterator[Site]:
  """Serves a site on this machine."""
  site = Site()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      path, span = self.path, self.headers.get("Range", "")
      site.asked.append((path, span))
      if errors := site.errors.get(path):
        self.send_response(errors.pop(0))
        if site.retry_after:
          self.send_header("Retry-After", site.retry_after)
        self.send_header("Content-Length", "0")
        return self.end_headers()
      if path not in site.files:
        return self.send_error(404)
      content, tag, start = site.files[path], site.tags.get(path), 0
      is_same = tag and self.headers.get("If-Range") == tag
      if span and (is_same or path in site.careless):
        start = int(span.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
          return self.send_error(416)
        self.send_response(206)
        last = len(content) - 1
        self.send_header(
          "Content-Range", f"bytes {start}-{last}/{len(content)}"
        )
      else:
        self.send_response(200)
      self.send_header("Content-Length", str(len(content) - start))
      if tag:
        self.send_header("ETag", tag)
      self.end_headers()
      sent = content[start:]
      if breaks := site.breaks.get(path):
        sent = sent[: breaks.pop(0)]
      self.wfile.write(sent)
      return None

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
      yield site
    finally:
      server.shutdown()
      thread.join()
