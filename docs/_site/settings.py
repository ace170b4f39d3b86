"""Reads all settings of a run, with their comments, from the source.

Nothing is imported, so the site is built without JAX. A test compares what is
found with the config.
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

_ROLES = "ROLES"


class Setting(NamedTuple):
  """A field of the config.

  Attributes:
    name: Such as "loss.ir.weight".
    default: Its value as Python code.
    allowed: The range of a number or the words of a text; "" for any.
    meaning: Its comment.
  """

  name: str
  default: str
  allowed: str
  meaning: str


class Group(NamedTuple):
  """Fields that belong together.

  Attributes:
    title: A word or two.
    note: What the comment above them says.
    settings: The fields.
  """

  title: str
  note: str
  settings: list[Setting]


class _Source:
  """A file of Python code with its comments."""

  def __init__(self, path: pathlib.Path):
    text = path.read_text(encoding="utf-8")
    self.tree = ast.parse(text)
    self._lines = text.splitlines()
    self._comments = {
      token.start[0]: token.string
      for token in tokenize.generate_tokens(io.StringIO(text).readline)
      if token.type == tokenize.COMMENT
    }

  def comment(self, node: ast.stmt) -> str:
    """Returns the comment above a statement, and that at its end."""
    above, line = [], node.lineno - 1
    while self._lines[line - 1].lstrip().startswith("#"):
      above.insert(0, self._comments[line])
      line -= 1
    inside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    found = [*above, *(self._comments.get(each, "#") for each in inside)]
    return " ".join(text.lstrip("# ") for text in found).strip()

  def value(self, name: str) -> ast.expr:
    """Returns what a name of the module is set to."""
    for node in self.tree.body:
      if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
      elif isinstance(node, ast.AnnAssign) and node.value:
        target, value = node.target, node.value
      else:
        continue
      if isinstance(target, ast.Name) and target.id == name:
        return value
    raise KeyError(name)


def read(package: pathlib.Path) -> list[Group]:
  """Returns all settings, in their order.

  Args:
    package: The folder mlir_jax.
  """
  config = _Source(package / "config.py")
  ranges = ast.literal_eval(config.value("RANGES"))
  choices = ast.literal_eval(config.value("CHOICES"))
  roles = ast.literal_eval(_Source(package / "contract.py").value(_ROLES))
  fallbacks = dict(_keywords(config.value("ENCODING")))
  (function,) = (
    node
    for node in config.tree.body
    if isinstance(node, ast.FunctionDef) and node.name == "default"
  )
  groups = [Group("Seed", "", [])]
  names = {"c": ""}  # Of a variable, to its group.
  for node in _assignments(function.body):
    value = ast.unparse(node.value)
    comment = config.comment(node)
    target = node.targets[0]
    if "ConfigDict(" in value and (title := _title(comment)):
      groups.append(Group(*title, []))
      comment = ""
    of_losses = "registry.defaults" in value
    for prefix in _prefixes(target, names, roles):
      for other in node.targets[1:]:
        if isinstance(other, ast.Name):
          names[other.id] = prefix
      if of_losses:
        groups += _losses(package)
        continue
      if "ConfigDict(" in value and not comment:
        continue
      if "ConfigDict(" in value:
        value = "{}"
      else:
        value = value.replace("placeholder(", "None (").partition(" (")[0]
      allowed = ranges.get(prefix) or _words(choices.get(prefix, ()))
      meaning = comment
      if fallback := fallbacks.get(prefix.removeprefix("encoding.")):
        meaning += f" Without a value anywhere: `{fallback}`."
      groups[-1].settings.append(Setting(prefix, value, allowed, meaning))
  return groups


def _assignments(body: list[ast.stmt]) -> Iterator[ast.Assign]:
  for node in body:
    if isinstance(node, ast.For):
      yield from _assignments(node.body)
    elif isinstance(node, ast.Assign) and not (
      isinstance(node.targets[0], ast.Name)
    ):
      yield node


def _prefixes(
  target: ast.expr, names: dict[str, str], roles: tuple[str, ...]
) -> list[str]:
  """Returns the names of the fields that a target of an assignment is."""
  match target:
    case ast.Name(id=name):
      return [names[name]]
    case ast.Attribute(value=value, attr=attr):
      return [
        f"{prefix}.{attr}".lstrip(".")
        for prefix in _prefixes(value, names, roles)
      ]
    case ast.Subscript(value=value):  # encoding[role].
      return [
        f"{prefix}.{role}"
        for prefix in _prefixes(value, names, roles)
        for role in roles
      ]
  raise ValueError(f"config.py sets {ast.unparse(target)}.")


def _title(comment: str) -> tuple[str, str] | None:
  """Returns title and note of "--- Data: what is read. ---"; None of others."""
  match = re.match(r"-{3} (.*?)\.? -{3}", comment)
  if not match:
    return None
  title, _, note = match[1].partition(": ")
  return title, f"{note[0].upper()}{note[1:]}." if note else ""


def _keywords(call: ast.expr, prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields the names and values of a call's arguments, also of calls in it."""
  assert isinstance(call, ast.Call)
  for keyword in call.keywords:
    name = f"{prefix}{keyword.arg}"
    if isinstance(keyword.value, ast.Call):
      yield from _keywords(keyword.value, f"{name}.")
    else:
      yield name, ast.unparse(keyword.value)


def _losses(package: pathlib.Path) -> Iterator[Group]:
  """Yields a group for each loss of the package."""
  table = _Source(package / "losses/registry.py").value("BUILT_IN")
  assert isinstance(table, ast.Dict)
  for key, value in zip(table.keys, table.values, strict=True):
    assert isinstance(key, ast.Constant) and isinstance(value, ast.Attribute)
    module = _Source(package / "losses" / f"{ast.unparse(value.value)}.py")
    (loss,) = (
      node
      for node in module.tree.body
      if isinstance(node, ast.ClassDef) and node.name == value.attr
    )
    found = []
    for node in loss.body:
      match node:
        case ast.AnnAssign(
          target=ast.Name(id=name),
          value=ast.Call(func=ast.Attribute(attr="setting")) as call,
        ):
          default, *interval = call.args
          words = [each.value for each in call.keywords]
          allowed = ast.literal_eval(interval[0]) if interval else ""
          if words:
            allowed = _words(ast.literal_eval(_resolved(module, words[0])))
          found.append(
            Setting(
              f"loss.{key.value}.{name}",
              ast.unparse(default),
              allowed,
              module.comment(node),
            )
          )
    described = (ast.get_docstring(module.tree) or "").split("\n")[0]
    yield Group(f"loss.{key.value}", described, found)


def _resolved(module: _Source, node: ast.expr) -> ast.expr:
  return module.value(node.id) if isinstance(node, ast.Name) else node


def _words(words: tuple[str, ...]) -> str:
  return ", ".join(f'"{word}"' for word in words)


def to_markdown(groups: list[Group]) -> str:
  """Returns the settings as a part of a page."""
  lines = []
  for group in groups:
    lines.append(f"## {_escaped(group.title)}\n")
    if group.note:
      lines.append(f"{_linked(_escaped(group.note))}\n")
    for setting in group.settings:
      lines.append(f"#### {setting.name}\n")
      default = setting.default.replace("'", '"')
      lines.append(f"Default: `{default}`.{_described(setting.allowed)}\n")
      if setting.meaning:
        lines.append(f"{_linked(_escaped(setting.meaning))}\n")
  return "\n".join(lines)


def _described(allowed: str) -> str:
  """Returns the sentence that says what a value may be."""
  if not allowed:
    return ""
  kind = "One of" if allowed[0] == '"' else "Range"
  return f" {kind}: {allowed}."


def _escaped(text: str) -> str:
  """Escapes what Markdown would read, but for code."""
  parts = re.split("(`[^`]*`)", text)
  return "".join(
    part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part)
    for part in parts
  )


def _linked(text: str) -> str:
  return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
