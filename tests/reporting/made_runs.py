"""Folders as runs and evaluations leave them, in several scripts."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GROUPS = {
  "en": "English",
  "de": "with parallel sentences",
  "ar": "with parallel sentences",
  "he": "neither",
  "ja": "neither",
  "th": "neither",
  "hi": "neither",
}
MEASURES = ("mrr@100", "ndcg@10", "r@100")
QUERIES = {
  "en": "Which river flows through Cairo?",
  "de": "Welcher Fluss fließt durch Kairo?",
  "ar": "ما هو النهر الذي يمر عبر القاهرة؟",
  "he": "איזה נהר עובר דרך קהיר (Cairo)?",
  "ja": "カイロを流れる川は何ですか。",
  "th": "แม่น้ำสายใดไหลผ่านกรุงไคโร",
  "hi": "काहिरा से होकर कौन सी नदी बहती है?",
}
PASSAGES = {
  "en": ("Nile", "The Nile flows north through Cairo to the Mediterranean."),
  "de": ("Nil", "Der Nil fließt durch Kairo nach Norden ins Mittelmeer."),
  "ar": (
    "النيل",
    "يمر نهر النيل شمالا عبر القاهرة إلى البحر المتوسط (1,000 كم).",
  ),
  "he": ("הנילוס", "הנילוס זורם צפונה דרך קהיר אל הים התיכון."),
  "ja": ("ナイル川", "ナイル川はカイロを通り、北の地中海へ流れる。" * 12),
  "th": ("แม่น้ำไนล์", "แม่น้ำไนล์ไหลไปทางเหนือผ่านกรุงไคโรสู่ทะเลเมดิเตอร์เรเนียน"),
  "hi": ("नील", "नील नदी काहिरा से होकर उत्तर में भूमध्य सागर तक बहती है।"),
}
ATTACK = '<script>alert("a passage")</script><img src=x onerror=alert(1)>'


def make_run(
  folder: pathlib.Path,
  *,
  seed: int = 0,
  config: Mapping[str, Any] | None = None,
  gain: float = 0.2,
  explained: bool = True,
) -> pathlib.Path:
  """Writes the folder of a run.

  Args:
    folder: The folder.
    seed: The seed, in the config and of the numbers.
    config: Other fields of the config.
    gain: How much training adds to each measure.
    explained: Whether there are files that explain the results.
  """
  random = np.random.default_rng(seed)
  write_json(folder / "config.json", {"seed": seed, **(config or {})})
  lines = []
  for step in range(10, 310, 10):
    metrics = {
      "loss/total": 5 / (1 + step / 50) + 0.1 * random.random(),
      "loss/ir": 3 / (1 + step / 50) + 0.1 * random.random(),
      "ir/effective_rank": 20 + step / 20,
      "skipped": 0.0,
      "semantic/accuracy": None if step == 50 else step / 300,
    }
    lines.append({"step": step, "kind": "train", **metrics})
    if step % 100 == 0:
      value = 0.2 + gain * step / 300
      lines.append({"step": step, "kind": "eval", "dev/en/mrr@100": value})
  write_lines(folder / "metrics.jsonl", lines)
  for step, added in ((0, 0.0), (300, gain)):
    write_results(
      folder / "results" / f"step-{step}.json",
      random,
      added,
      explained=explained,
    )
  write_report(folder / "results" / "report.json")
  return folder


def write_report(path: pathlib.Path, columns: Sequence[str] = ()) -> None:
  """Writes the parts of report.json that say what the languages are."""
  write_json(
    path,
    {
      "columns": list(columns),
      "rows": [
        {"languages": [language], "group": group}
        for language, group in GROUPS.items()
      ],
      "shared_with_training": {},
      "notes": ["English alone selects the checkpoint."],
    },
  )


def write_results(
  path: pathlib.Path,
  random: np.random.Generator,
  added: float,
  *,
  explained: bool = True,
) -> None:
  """Writes the results of a model, and what explains them."""
  results = {
    f"test/{language}/{measure}": float(
      min(0.99, 0.3 + added + 0.02 * number + 0.03 * random.random())
    )
    for number, measure in enumerate(MEASURES)
    for language in GROUPS
  }
  write_json(path, results)
  if not explained:
    return
  folder = path.parent / path.stem
  write_json(
    path.with_suffix(".intervals.json"),
    {name: [value - 0.02, value + 0.03] for name, value in results.items()},
  )
  write_lines(
    folder / "queries.jsonl",
    [
      {
        "test": f"test/{language}",
        "query_id": query_id,
        "measures": {
          measure: results[f"test/{language}/{measure}"] + apart
          for measure in MEASURES
        },
      }
      for language in GROUPS
      for query_id, apart in (("q1", 0.05), ("q2", -0.05))
    ],
  )
  write_lines(
    folder / "examples.jsonl",
    [_example(language, added > 0) for language in GROUPS],
  )
  write_json(folder / "diagnostics.json", _diagnostics(random, added))
  points = []
  for number, language in enumerate(GROUPS):
    apart = 4 * (1 - 3 * added) * np.array([np.cos(number), np.sin(number)])
    for x, y in random.normal(apart, 1.0, (40, 2)).tolist():
      text = PASSAGES[language][1] if x > y else ATTACK
      points.append({"language": language, "x": x, "y": y, "text": text})
  write_json(
    folder / "map.json", {"points": points, "method": "PCA of both columns."}
  )


def _diagnostics(random: np.random.Generator, added: float) -> dict[str, Any]:
  """Returns a number and all other kinds of values."""
  languages = list(GROUPS)
  counts, edges = np.histogram(
    random.normal(0, 0.3 - added, 400), np.linspace(-1, 1, 41)
  )
  cosines = np.full((len(languages),) * 2, 0.1 + added)
  cosines += 0.5 * np.eye(len(languages))
  mix = cosines.tolist()
  mix[2] = None
  return {
    "languages/passages/probe_accuracy": 1.0 - added,
    "languages/passages/delta_abs_quantiles": [0.1, 0.2, 0.4],
    "languages/passages/languages": languages,
    "languages/passages/cosines": cosines.tolist(),
    "languages/passages/delta_edges": edges.tolist(),
    "languages/passages/delta_own": counts.tolist(),
    "languages/top10/languages": languages,
    "languages/top10/mix": mix,
    "languages/top10/pool": [1 / len(languages)] * len(languages),
    "mine/samples": random.normal(0, 1, 50).tolist(),
    "mine/remark": {"text": "of the user's own protocol"},
  }


def _example(language: str, trained: bool) -> dict[str, Any]:
  """Returns a query whose passage has rank 1 after training, and 7 before."""
  others = [
    {
      "passage_id": f"other-{number}",
      "title": "",
      "text": f"{ATTACK} {number}",
      "score": 0.8 - 0.01 * number,
      "relevance": 0 if number == 1 else None,
    }
    for number in range(8)
  ]
  title, text = PASSAGES[language]
  right = {
    "passage_id": "p&1",
    "title": title,
    "text": text,
    "score": 0.9,
    "relevance": 1,
  }
  others.insert(0 if trained else 6, right)
  return {
    "test": f"test/{language}",
    "query_id": "q1",
    "query": QUERIES[language],
    "passages": others,
  }


def write_json(path: pathlib.Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: pathlib.Path, values: Sequence[Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
  path.write_text("".join(lines), encoding="utf-8")
