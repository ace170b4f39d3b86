"""Exports a checkpoint as a folder that sentence-transformers loads.

python -m mlir_jax.export --workdir=W --checkpoint=best --output=FOLDER

Separate towers are two models, FOLDER/query and FOLDER/passage. FOLDER appears
only after sentence-transformers reproduces the run's vectors.

python -m mlir_jax.export --index=INDEX --layout=faiss --output=FOLDER

A folder of vectors, from mlir_jax.encode, becomes a flat index of Faiss with
its ids, as pyserini searches it, or pyserini's JSON lines.
"""

import dataclasses
import tempfile

from absl import flags
from etils import epath

from mlir_jax.command_line import program, shared_flags


def export(
  run_folder: str,
  checkpoint: str | int,
  output: str,
  *,
  one_length: bool = False,
  name: str = "",
  truncate_dim: int = 0,
) -> str:
  """Exports a checkpoint.

  Args:
    run_folder: The run's folder.
    checkpoint: "last", "best" on dev, the number of steps, or "average:N" for
      the mean of the parameters of the last N checkpoints.
    output: The new folder. On object storage (gs://), the files are copied to
      it after the check, modules.json last.
    one_length: Whether queries and passages are cut at the length of the
      longest role, too.
    name: The model's name in its card, as on the hub; separate towers get
      "-query" and "-passage" after it. "" for the folder's name.
    truncate_dim: Vectors are cut to their first so many numbers; 0 for as many
      as the run's contract says.

  Returns:
    A sentence about what was written.

  Raises:
    ImportError: if sentence-transformers is not installed.
    ValueError: if the output is not free, the run's folder is not one, or
      `one_length` is given and transformers 4 cannot read the encoder.
    CheckError: if sentence-transformers does not give the run's vectors.
  """
  from mlir_jax.hub import check

  check.require()
  from mlir_jax import workdir
  from mlir_jax.data import source_settings
  from mlir_jax.data import tokenizer as tokenizer_lib
  from mlir_jax.hub import card, folder, run_facts, settings_files
  from mlir_jax.models import layout_files
  from mlir_jax.retrieval import model
  from mlir_jax.storage import copies, locations, writing

  if locations.is_url(output):
    url = locations.absolute(output)
    locations.check_packages(url)
    copies.check_free(url, f"--output={output}")
    with tempfile.TemporaryDirectory() as local:
      path = f"{local}/{url.rpartition('/')[2]}"
      written = export(
        run_folder,
        checkpoint,
        path,
        one_length=one_length,
        name=name,
        truncate_dim=truncate_dim,
      )
      copies.upload_folder(path, url, last=layout_files.MODULES)
    return written.replace(path, url)
  target = folder.check_free(output)
  loaded = model.load_run(run_folder, checkpoint, truncate_dim=truncate_dim)
  # `load_run` always gives both.
  assert loaded.step is not None and loaded.description is not None
  run_path = epath.Path(loaded.path)
  kept = epath.Path(copies.local_copy(loaded.path)) / workdir.TOKENIZER
  tokenizer = tokenizer_lib.load(str(kept.parent))
  contract = settings_files.exported_contract(loaded.contract, one_length)
  # The folder has float32 weights, so others compute in float32.
  encoder_config = dataclasses.replace(loaded.encoder_config, dtype="float32")
  if one_length:
    settings_files.check_one_length(encoder_config)
  config = loaded.description.config
  provenance = dict(loaded.description.provenance)
  left_out = source_settings.left_out(
    # An older config has no such settings.
    source_settings.find(config["data"].get("sources", {}))
  )
  if loaded.averaged:
    provenance["averaged_steps"] = list(loaded.averaged)
  results = run_facts.find_results(
    run_path,
    config,
    loaded.step,
    workdir.evaluated(checkpoint if loaded.averaged else "", truncate_dim),
  )
  largest = 0.0
  with writing.folder_aside(target) as aside:
    for subfolder, tower in folder.towers(loaded.params).items():
      path = aside / subfolder
      folder.write(
        path,
        loaded.params,
        encoder_config,
        contract,
        tokenizer,
        tower=tower,
        provenance=provenance,
        step=loaded.step,
      )
      checked = check.check(
        path, loaded.params, encoder_config, contract, tokenizer, tower
      )
      largest = max(largest, checked.difference)
      (path / layout_files.CARD).write_text(
        card.make(
          _name(name, target.name, subfolder),
          tower,
          config=config,
          encoder_config=encoder_config,
          contract=contract,
          provenance=provenance,
          step=loaded.step,
          rows=run_facts.find_rows(run_path, left_out),
          results=results,
          checked=checked,
        ),
        encoding="utf-8",
      )
  return (
    f"Wrote step {loaded.step:,} to {output}: sentence-transformers"
    f" {checked.version} gives the same vectors, to {largest:.1g}."
  )


# Name of a layout to the name of its file that is written last.
_LAYOUTS = {"faiss": "index", "pyserini": "embeddings.jsonl"}


def export_index(index: str, layout: str, output: str) -> str:
  """Writes a folder of vectors in another program's layout.

  Args:
    index: The folder of vectors; it may be on object storage.
    layout: "faiss" for the files index (an IndexFlatIP) and docid, or
      "pyserini" for embeddings.jsonl.
    output: The new folder; it may be on object storage.

  Returns:
    A sentence about what was written.

  Raises:
    ValueError: if the output is not free, or there are no vectors.
    UnreadableError: if a file of the vectors is damaged; it names the file.
    ImportError: if faiss-cpu is needed and not installed.
  """
  from mlir_jax.hub import folder
  from mlir_jax.retrieval import faiss_layout, pyserini_layout, vector_folder
  from mlir_jax.storage import copies, locations, writing

  if locations.is_url(output):
    url = locations.absolute(output)
    locations.check_packages(url)
    copies.check_free(url, f"--output={output}")
    with tempfile.TemporaryDirectory() as local:
      written = export_index(index, layout, f"{local}/index")
      copies.upload_folder(f"{local}/index", url, last=_LAYOUTS[layout])
    return written.replace(f"{local}/index", url)
  target = folder.check_free(output)
  write = {"faiss": faiss_layout.write, "pyserini": pyserini_layout.write}
  vectors = vector_folder.read(index)
  with writing.folder_aside(target) as aside:
    write[layout](vectors, aside)
  return f"Wrote {vectors.shape[0]:,} vectors and their ids to {output}."


def _name(given: str, folder: str, subfolder: str) -> str:
  """Returns a model's name: the given one, else the path of its folder."""
  if given:  # A hub name has only one slash.
    return f"{given}-{subfolder}" if subfolder else given
  return f"{folder}/{subfolder}" if subfolder else folder


def main():
  """Exports what the flags name."""
  if not _NAME.value.isprintable():
    raise ValueError(f"--name={_NAME.value!r} has control characters.")
  if bool(_WORKDIR.value) == bool(_INDEX.value):
    raise ValueError("Give either --workdir, a run's folder, or --index.")
  if bool(_INDEX.value) != bool(_LAYOUT.value):
    raise ValueError("Give both --index and --layout, or none of them.")
  if _INDEX.value and _LAYOUT.value:
    print(export_index(_INDEX.value, _LAYOUT.value, _OUTPUT.value))
    return
  print(
    export(
      _WORKDIR.value,
      _CHECKPOINT.value,
      _OUTPUT.value,
      one_length=_ONE_LENGTH.value,
      name=_NAME.value,
      truncate_dim=_TRUNCATE_DIM.value,
    )
  )


if __name__ == "__main__":
  _WORKDIR = shared_flags.define_workdir()
  _CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", shared_flags.CHECKPOINT_HELP
  )
  _TRUNCATE_DIM = shared_flags.define_truncate_dim()
  _OUTPUT = shared_flags.define_path("output", "The new folder.")
  _ONE_LENGTH = flags.DEFINE_bool(
    "one_length",
    False,
    "Queries and passages are cut at the longest role's length."
    " sentence-transformers 5, too, reads such a folder.",
  )
  _NAME = flags.DEFINE_string(
    "name", "", "The model's name in its card, e.g. that on the hub."
  )
  _INDEX = shared_flags.define_path(
    "index", "In place of a run: a folder of vectors, from mlir_jax.encode."
  )
  _LAYOUT = flags.DEFINE_enum(
    "layout",
    None,
    tuple(_LAYOUTS),
    "The layout of the vectors: faiss (index and docid) or pyserini"
    " (embeddings.jsonl).",
  )
  program.start(main, required=("output",))
