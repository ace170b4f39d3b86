"""Joins the fingerprints of a collection's parts, and says which have changed.

The parts are the collection itself and each data set of data.sets.
"""

from collections.abc import Mapping


def join(collection: str, sets: Mapping[str, str]) -> str:
  """Returns one fingerprint of all parts.

  Args:
    collection: The fingerprint of the collection itself.
    sets: The field of each data set to its fingerprint.
  """
  return " ".join(
    [collection, *(f"{field}={sets[field]}" for field in sorted(sets))]
  )


def changed(before: str, now: str, name: str, root: str) -> str:
  """Names the parts that differ, for a message.

  Args:
    before: From `join`, when the token store was built.
    now: From `join`.
    name: The collection's name, data.collection.
    root: Its folder, data.root; "" for none.
  """
  own = f"files under data.root={root}" if root else f"data.collection={name}"
  found = []
  for fingerprint in (before, now):
    first, *others = fingerprint.split(" ")
    found.append({own: first} | dict(each.split("=", 1) for each in others))
  return ", ".join(
    part
    for part in sorted({**found[0], **found[1]}, key=lambda part: part != own)
    if found[0].get(part) != found[1].get(part)
  )
