"""Downloads a public corpus and lays it out as a collection.

python -m mlir_jax.download --output=data debian tatoeba

It makes data/debian and data/tatoeba; the public files stay in data/downloads.
Without a name it lists the corpora. An interrupted download goes on where it
stopped. The checksums of the first download are kept, and checked later. For a
variant, write NAME:VARIANT, as in xquadr:paragraphs.
"""

from absl import flags

from mlir_jax.command_line import program, shared_flags


def main(names: list[str]):
  """Downloads what the command line names."""
  from mlir_jax.corpora import building, catalog, downloads
  from mlir_jax.storage import locations

  if not names:
    width = max(map(len, catalog.CORPORA))
    for name, each in catalog.CORPORA.items():
      print(f"{name:<{width}}  {each.summary}")
    return
  output = locations.absolute(_OUTPUT.value or "data")
  mirror = _MIRROR.value
  if mirror and not mirror.startswith(("http://", "https://")):
    raise ValueError(f"--mirror={mirror}: give an http or https address.")
  if mirror and len(names) > 1:
    raise ValueError("--mirror is for one corpus: name one.")
  plans = [
    building.plan(name, output, _LANGUAGES.value, mirror) for name in names
  ]
  if _DRY_RUN.value:
    for planned in plans:
      print(f"{planned.url or planned.folder}, from:")
      for file in planned.list_files():
        target = planned.raw / file.path
        print(
          f"  {file.url}\n    to {target}: {downloads.format_size(file.size)},"
          f" {downloads.state(file, planned.raw)}"
        )
    return
  locations.check_output(output, f"--output={output}")
  for planned in plans:
    for note in building.bring(planned):
      print(note)


if __name__ == "__main__":
  _OUTPUT = shared_flags.define_path(
    "output",
    "The folder of all corpora; data, in the current folder, if unset.",
  )
  _LANGUAGES = flags.DEFINE_list(
    "languages", [], "The languages that are wanted, as the corpus names them."
  )
  _MIRROR = flags.DEFINE_string(
    "mirror", "", "An address in place of the corpus's public one."
  )
  _DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only lists the files, their places and known sizes."
  )
  program.start(main, required=(), takes_files=True)
