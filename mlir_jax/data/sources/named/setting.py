"""Reads what the config says about a data set of a library: data.sets.NAME."""

import importlib.util
import re
from typing import NamedTuple

from mlir_jax.data import languages, options

STREAMS = ("retrieval", "parallel", "monolingual", "test")

# Library to the module that is imported, and what pip installs.
LIBRARIES = {
  "ir_datasets": ("ir_datasets", "mlir_jax[ir_datasets]"),
  "datasets": ("datasets", "mlir_jax[datasets]"),
  "tfds": ("tensorflow_datasets", "tensorflow-datasets"),
}
_KEYS = ("stream", "split", "languages", "config", "revision")

EXAMPLES = """\
  ir_datasets:mr-tydi/sw/test
  ir_datasets:miracl/sw/train stream=retrieval
  datasets:sentence-transformers/parallel-sentences-talks config=en-de \
stream=parallel languages=en-de
  datasets:FOLDER stream=monolingual languages=fi
  tfds:NAME/CONFIG:VERSION stream=retrieval split=train languages=en"""


class Setting(NamedTuple):
  """A data set of a library, and what it is read as.

  Attributes:
    field: The config's field, for messages.
    library: A key of `LIBRARIES`.
    name: The name of the data set in the library, or a folder.
    stream: One of `STREAMS`.
    split: The library's name of the split; of a test, "test" or "dev".
    languages: Two of a parallel data set, else one or none.
    config: The library's name of the configuration; "" for none.
    revision: A commit or tag of the Hugging Face hub; "" for the newest.
  """

  field: str
  library: str
  name: str
  stream: str
  split: str
  languages: tuple[str, ...]
  config: str
  revision: str

  @property
  def place(self) -> str:
    """What messages call the data set."""
    config = f" {self.config}" if self.config else ""
    return f"{self.library}:{self.name}{config}"


def parse(field: str, value: str) -> Setting:
  """Reads a setting such as "datasets:OWNER/NAME stream=parallel …".

  Raises:
    ValueError: if it cannot be used; it names the field.
  """
  target, *others = value.split()
  library, colon, name = target.partition(":")
  if library not in LIBRARIES or not (colon and name):
    raise ValueError(
      f"{field} is {value!r}; it must be LIBRARY:NAME KEY=VALUE …, where"
      f" LIBRARY is one of {', '.join(LIBRARIES)} and KEY one of"
      f" {', '.join(_KEYS)}:\n"
      f"{EXAMPLES}"
    )
  given = options.read(field, others, _KEYS)
  if empty := [key for key, text in given.items() if not text]:
    raise ValueError(f"{field}: {empty[0]}= has no value; give one.")
  is_ir = library == "ir_datasets"
  stream = given.get("stream", "test" if is_ir else "")
  usable = ("test", "retrieval") if is_ir else STREAMS[:-1]
  if stream not in usable:
    raise ValueError(
      f"{field}: stream is {stream!r}; give stream= and one of"
      f" {', '.join(usable)}."
    )
  found = _codes(field, given.get("languages", ""))
  count = {"parallel": (2,), "monolingual": (1,)}.get(stream, (0, 1))
  if len(found) not in count:
    raise ValueError(
      f"{field}: give languages={'en-de' if stream == 'parallel' else 'fi'}:"
      f" {' or '.join(map(str, count))} for {stream}, not {len(found)}."
    )
  split = given.get("split", "test" if stream == "test" else "train")
  if stream == "test" and split not in ("test", "dev"):
    raise ValueError(
      f"{field}: split is {split!r}; a test is read as split=test, or as"
      " split=dev, which selects the model."
    )
  for key in ("config", "revision"):
    if key in given and library != "datasets":
      raise ValueError(
        f"{field}: {key}= is for datasets; {library} has it in the data set's"
        " name."
      )
  return Setting(
    field,
    library,
    name,
    stream,
    split,
    found,
    given.get("config", ""),
    given.get("revision", ""),
  )


def _codes(field: str, text: str) -> tuple[str, ...]:
  if not text:
    return ()
  codes = languages.split(text)
  if any(not re.fullmatch(languages.PATTERN, code) for code in codes):
    raise ValueError(
      f"{field}: languages={text} should be codes such as fi, or en-zh_TW."
    )
  found = tuple(map(languages.code, codes))
  if len(set(found)) < len(found):
    raise ValueError(f"{field}: languages={text} are one language.")
  return found


def check_installed(setting: Setting) -> None:
  """Refuses a data set whose library is not installed.

  Raises:
    ValueError: if it is not; it says how to install it.
  """
  module, package = LIBRARIES[setting.library]
  if not importlib.util.find_spec(module):
    raise ValueError(
      f"{setting.field} needs {module}, which is not installed: pip install"
      f" '{package}'."
    )


def failure(setting: Setting, error: Exception) -> ValueError:
  """Makes the error for a data set that its library cannot load."""
  message = " ".join(str(error).split())
  return ValueError(
    f"{setting.field}: {setting.place}: {type(error).__name__}: {message:.300}"
  )
