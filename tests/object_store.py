"""An object storage in memory, as epath and orbax see gs:// one."""

import fnmatch
import functools
import http.server
import importlib.machinery
import io
import json
import os
import re
import sys
import threading
import types
import urllib.parse
import zlib
from unittest import mock

from etils.epath import backend, gpath


class _Object(io.BytesIO):
  """An object that is being written; it appears when it is closed."""

  def __init__(self, store, path):
    super().__init__()
    self._store, self._path = store, path

  def close(self):
    if not self.closed:
      self._store.objects[self._path] = self.getvalue()
    super().close()


class ObjectStore(backend.Backend):
  """Objects by their URL; there are no folders, but for prefixes.

  Attributes:
    objects: URL to content.
  """

  def __init__(self):
    self.objects = {}

  def open(self, path, mode):
    path = os.fspath(path)
    if "r" in mode:
      if path not in self.objects:
        raise FileNotFoundError(path)
      content = self.objects[path]
      return (
        io.BytesIO(content) if "b" in mode else io.StringIO(content.decode())
      )
    if "a" in mode or "+" in mode:
      raise OSError(f"{path}: object storage does not append")
    if "b" in mode:
      return _Object(self, path)
    return io.TextIOWrapper(_Object(self, path), "utf-8")

  def exists(self, path):
    return os.fspath(path) in self.objects or self.isdir(path)

  def isdir(self, path):
    return any(self._below(path))

  def listdir(self, path):
    return sorted({rest.split("/")[0] for rest in self._below(path)})

  def glob(self, path):
    path = os.fspath(path)
    depth = path.count("/")
    known = {"/".join(name.split("/")[: depth + 1]) for name in self.objects}
    return sorted(name for name in known if fnmatch.fnmatch(name, path))

  def walk(self, top, *, top_down=True, on_error=None):
    raise NotImplementedError

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass

  def mkdir(self, path, *, exist_ok=False, mode=None):
    pass

  def rmtree(self, path):
    for rest in list(self._below(path)):
      del self.objects[f"{os.fspath(path)}/{rest}"]

  def remove(self, path):
    try:
      del self.objects[os.fspath(path)]
    except KeyError:
      raise FileNotFoundError(path) from None

  def rename(self, path, dst):
    raise OSError(f"{path}: object storage does not rename")

  replace = rename

  def copy(self, path, dst, overwrite):
    with gpath.PosixGPath(dst).open("wb") as file:
      file.write(self.objects[os.fspath(path)])

  def stat(self, path):
    raise NotImplementedError

  def _below(self, path):
    prefix = f"{os.fspath(path)}/"
    return (
      name.removeprefix(prefix)
      for name in self.objects
      if name.startswith(prefix)
    )


class _Handler(http.server.BaseHTTPRequestHandler):
  """The part of Google Cloud Storage's JSON API that TensorStore speaks."""

  protocol_version = "HTTP/1.1"

  def do_POST(self):
    (bucket, _), query = self._parse()
    content = self.rfile.read(int(self.headers["Content-Length"]))
    url = f"gs://{bucket}/{query['name']}"
    expected = query.get("ifGenerationMatch")
    if expected not in (None, self._generation(url)):
      self._answer(412)
    else:
      self._objects[url] = content
      self._answer(200, self._metadata(url))

  def do_GET(self):
    (bucket, name), query = self._parse()
    if name is None:
      first = f"gs://{bucket}/{query.get('startOffset', '')}"
      last = f"gs://{bucket}/{query.get('endOffset', chr(0x10FFFF))}"
      found = [url for url in sorted(self._objects) if first <= url < last]
      self._answer(200, {"items": [self._metadata(url) for url in found]})
      return
    url = f"gs://{bucket}/{name}"
    content = self._objects.get(url)
    if content is None:
      self._answer(404)
    elif query.get("alt") != "media":
      self._answer(200, self._metadata(url))
    elif "Range" in self.headers:
      first, last = self.headers["Range"].removeprefix("bytes=").split("-")
      first = int(first) if first else len(content) - int(last)
      last = min(int(last), len(content) - 1) if last else len(content) - 1
      where = f"bytes {first}-{last}/{len(content)}"
      self._answer(206, content[first : last + 1], {"Content-Range": where})
    else:
      self._answer(200, content)

  def do_DELETE(self):
    (bucket, name), _ = self._parse()
    found = self._objects.pop(f"gs://{bucket}/{name}", None)
    self._answer(404 if found is None else 204)

  def log_message(self, *_):
    pass

  @property
  def _objects(self):
    return self.server.store.objects

  def _parse(self):
    """((bucket, object or None), query)."""
    url = urllib.parse.urlsplit(self.path)
    found = re.fullmatch(r".*/b/([^/]+)/o(?:/([^/]+))?", url.path)
    bucket, name = (
      part and urllib.parse.unquote(part) for part in found.groups()
    )
    return (bucket, name), dict(urllib.parse.parse_qsl(url.query))

  def _metadata(self, url):
    bucket, _, name = url.removeprefix("gs://").partition("/")
    content = self._objects[url]
    return {
      "bucket": bucket,
      "name": name,
      "size": str(len(content)),
      "generation": self._generation(url),
    }

  def _generation(self, url):
    """Of objects of one content it is one; "0" is that of none."""
    content = self._objects.get(url)
    return "0" if content is None else str(zlib.crc32(content) + 1)

  def _answer(self, status, content=b"", headers=()):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    for name, value in dict(headers).items():
      self.send_header(name, value)
    if status == 200:  # An empty object has one, too.
      self.send_header("x-goog-generation", str(zlib.crc32(content) + 1))
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


@functools.cache
def _start():
  """The object storage of this process: TensorStore asks once where it is."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.store = ObjectStore()
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
  return server.store


def serve(monkeypatch):
  """Makes "gs://..." an object storage, which is returned, empty.

  epath asks it directly; TensorStore, which writes arrays for orbax from C++,
  over HTTP; orbax itself asks Google's client whether buckets have folders.

  Args:
    monkeypatch: Undoes it.
  """
  store = _start()
  store.objects.clear()
  backends = gpath._PREFIX_TO_BACKEND | {"gs": store}
  monkeypatch.setattr(gpath, "_PREFIX_TO_BACKEND", backends)
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
  client = types.ModuleType("google.cloud.storage")
  client.__spec__ = importlib.machinery.ModuleSpec(client.__name__, None)
  client.Client = mock.MagicMock()
  bucket = client.Client().get_bucket()
  bucket.hierarchical_namespace_enabled = False
  for name in ("google.cloud.storage", "gcsfs"):
    monkeypatch.setitem(sys.modules, name, client)
  return store
