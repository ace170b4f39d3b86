"""Shows what a run has in each language: rows, lengths, cut texts, overlap."""

import collections
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from mlir_jax import contract as contract_lib
from mlir_jax.data import token_store

_HEADER = (
  "language",
  "pairs",
  "parallel",
  "plain",
  *contract_lib.ROLES,
  "test queries",
  "test passages",
)
_NONE = "-"
_EXPLAINED = (
  "Lengths are in tokens: the median and the 95th percentile of the distinct"
  " texts, after cutting; then the share that is cut. In brackets: texts of the"
  " tests that are in the training data."
)


def _rows(store: token_store.TokenStore) -> dict[str, list[int]]:
  """Returns language to its rows of each stream of `token_store.STREAMS`."""
  rows = collections.defaultdict(lambda: [0] * len(token_store.STREAMS))
  for i, stream in enumerate(token_store.STREAMS):
    if stream == "parallel":
      numbers = store.arrays["parallel_languages"]
      # Both sides of a pair may be in one language.
      sides = [numbers[:, 0], numbers[:, 1][numbers[:, 0] != numbers[:, 1]]]
      counts = np.bincount(np.concatenate(sides))
      groups = dict(zip(store.languages, counts.tolist(), strict=False))
    else:
      groups = store.language_rows(stream)
    for language, count in groups.items():
      rows[language][i] += count
  return dict(rows)


def _row_languages(store: token_store.TokenStore, stream: str) -> np.ndarray:
  """Returns the number of the language of each row of a stream; int64 [R]."""
  names = list(store.languages)
  groups = store.groups(stream)
  return np.repeat(
    [names.index(group.language) for group in groups],
    [group.rows for group in groups],
  ).astype(np.int64)


def _texts(
  store: token_store.TokenStore, role: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields a role's texts, by index, with their languages' numbers."""
  arrays = store.arrays
  if role == "sentence":
    for stream in ("parallel", "monolingual"):
      yield (
        arrays[f"{stream}_texts"].ravel(),
        arrays[f"{stream}_languages"].ravel(),
      )
    return
  languages = _row_languages(store, "retrieval")
  if role == "query":
    yield arrays["retrieval_queries"], languages
    return
  for kind in ("positive", "negative"):
    counts = np.diff(arrays[f"retrieval_{kind}_offsets"])
    yield arrays[f"retrieval_{kind}s"], np.repeat(languages, counts)


def _lengths(store: token_store.TokenStore, role: str) -> dict[str, str]:
  """Returns language to the lengths of its texts in a role, for the table."""
  found = [np.stack(pair, axis=1) for pair in _texts(store, role)]
  pairs = np.unique(np.concatenate(found).astype(np.int64), axis=0)
  shown = {}
  for number in np.unique(pairs[:, 1]):
    texts = pairs[pairs[:, 1] == number, 0]
    _, distinct = np.unique(store.text_hashes(role, texts), return_index=True)
    lengths = store.text_lengths(role, texts[distinct])
    median, high = np.percentile(lengths, (50, 95))
    language = store.languages[number]
    cut, total = store.truncation.get(role, {}).get(language, (0, 0))
    share = f"{cut / total:.1%}" if total else _NONE
    shown[language] = f"{median:.0f}, {high:.0f}; {share}"
  return shown


def _align(table: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a table; the first column is on the left."""
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return [
    "  ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in table
  ]


def render(
  store: token_store.TokenStore,
  shared: Mapping[str, Mapping[str, int]],
  left_out: Collection[str] = (),
) -> str:
  """Renders the table, with a row for each language.

  Args:
    store: The token store.
    shared: From `overlap.count_shared_texts`: the texts of the tests, and those
      of them that training saw.
    left_out: Sources that training does not read, see
      `source_settings.left_out`. The table counts their rows; a line says so.
  """
  rows = _rows(store)
  lengths = [_lengths(store, role) for role in contract_lib.ROLES]
  table: list[Sequence[str]] = [_HEADER]
  for language in sorted(rows.keys() | shared.keys()):
    of_tests = [_NONE, _NONE]
    if language in shared:
      of_tests = [
        f"{shared[language][kind]:,} ({shared[language][f'shared_{kind}']:,})"
        for kind in ("queries", "passages")
      ]
    counts = rows.get(language, [0] * len(token_store.STREAMS))
    table.append(
      (
        language,
        *(f"{count:,}" if count else _NONE for count in counts),
        *(of_role.get(language, _NONE) for of_role in lengths),
        *of_tests,
      )
    )
  unread = [
    f"{stream} {rows:,} rows of {source!r}"
    for stream in token_store.STREAMS
    for source, rows in store.source_rows(stream).items()
    if source in left_out
  ]
  notes = [
    f"Training does not read these, because data.sources gives them the weight"
    f" 0, but the table counts them: {', '.join(unread)}."
  ]
  return "\n".join([*_align(table), _EXPLAINED, *notes * bool(unread)])
