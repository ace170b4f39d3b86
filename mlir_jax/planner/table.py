"""The rows of a plan as text and as a Markdown table."""

from collections.abc import Sequence

from mlir_jax.planner import chips, rows


def _gib(size: float) -> str:
  return f"{size / 2**30:,.2f} GiB"


def _rows(row: rows.Row) -> str:
  """Describes the rows of a step: "query 16 x 128, passage 96 x 256"."""
  return ", ".join(
    f"{group} " + " + ".join(f"{n:,} x {length}" for n, length in blocks)
    for group, blocks in row.blocks.items()
  )


def to_text(row: rows.Row, chip: chips.Chip) -> str:
  """Renders the costs of a step on one chip, in a few lines."""
  title = (
    f"Batch {row.batch:,} ({row.texts:,.0f} texts), "
    + (f"in {row.chunks:,} chunks of {row.chunk:,}" if row.chunk else "at once")
    + f", {row.sharding}"
  )
  if row.problem:
    return f"{title}: {row.problem}."
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in row.memory.items())
  lines = [
    f"{title}; compiled in {row.compile_seconds:.0f} s.",
    f"  {row.tokens:,.0f} tokens in {_rows(row)}; padding {row.padding:.1%}",
    "  On each chip:",
    f"  memory: {parts}, of {_gib(chip.memory)}",
    f"  operations: {row.flops / 1e12:,.2f} T, of which MFU counts"
    f" {row.model_flops / 1e12:,.2f} T",
    f"  to and from HBM: {row.traffic / 1e9:,.2f} GB or more",
  ]
  for found in row.collectives:
    turns = " x ".join(f"{turns:,}" for turns in found["loops"])
    where = f" in a loop of {turns} turns" if turns else ""
    lines.append(
      f"  {found['kind']}: {found['runs']:,}{where},"
      f" {found['sent_bytes'] / 1e6:,.2f} MB sent"
    )
  bounds = ", ".join(
    f"{name} {seconds * 1e3:,.2f} ms" for name, seconds in row.seconds.items()
  )
  lines.append(
    f"  at full rate: {bounds}; {row.binds} binds: MFU {row.mfu:.0%} at most"
  )
  return "\n".join(lines)


def to_markdown(made: Sequence[rows.Row], chip: chips.Chip) -> str:
  """Renders all rows as a Markdown table."""
  columns = (
    *("batch", "chunk", "chunks", "sharding", "rows x tokens", "padding"),
    f"GiB of {chip.memory / 2**30:.0f}",
    *("compute ms", "HBM ms", "ICI ms", "binds"),
    *("MFU <=", "texts/s <=", "chip-hours >="),
  )
  lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
  for row in made:
    cells = [
      f"{row.batch:,}",
      f"{row.chunk:,}" if row.chunk else "all",
      f"{row.chunks:,}",
      row.sharding,
      _rows(row),
      f"{row.padding:.1%}" if row.blocks else "",
    ]
    if row.problem:
      cells += [row.problem, *[""] * (len(columns) - len(cells) - 1)]
    else:
      cells += [
        f"{row.memory['total'] / 2**30:.2f}",
        *(f"{seconds * 1e3:,.1f}" for seconds in row.seconds.values()),
        row.binds,
        f"{row.mfu:.0%}",
        f"{row.texts_per_second:,.0f}",
        f"{row.chip_hours:,.1f}",
      ]
    lines.append(" | ".join(cells))
  return "\n".join(f"| {line} |" for line in lines)
