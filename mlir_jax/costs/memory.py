"""The memory that a compiled step takes."""

import jax


def of_program(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns the bytes that a program takes of each device's memory.

  Args:
    compiled: For any platform.

  Returns:
    "arguments", "outputs", "aliased" (outputs that take the place of donated
    arguments), "temporaries", "program", and their "total", which counts
    aliased bytes once. On a TPU the temporaries include those in its on-chip
    memory (at most 128 MiB). XLA's own peak is not used: on a TPU it leaves out
    arguments that are not donated.
  """
  stats = compiled.memory_analysis()
  assert stats is not None  # XLA gives it for each of its platforms.
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "aliased": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "program": stats.generated_code_size_in_bytes,
  }
  return parts | {"total": sum(parts.values()) - 2 * parts["aliased"]}
