"""Prepares a run's data, or opens data that was prepared before."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import ml_collections
import tokenizers
from etils import epath

from mlir_jax import config as config_lib
from mlir_jax import contract as contract_lib
from mlir_jax import workdir
from mlir_jax.batches import batch as batch_lib
from mlir_jax.data import (
  cleaning,
  collections,
  guide_vectors,
  guide_writer,
  prepared_copies,
  records,
  source_settings,
  store_writer,
  token_store,
)
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.data.collections import fingerprints, pair_files
from mlir_jax.data.shards import pool
from mlir_jax.evals import selection
from mlir_jax.hosts import multihost
from mlir_jax.hub import warm_start
from mlir_jax.models import layout, pretrained
from mlir_jax.retrieval import model as model_lib
from mlir_jax.storage import copies, digests, locations, reading, writing


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run's data.

  Attributes:
    tests: The collection's retrieval tests.
    translation_tests: The collection's translation tests.
    pad_id: The tokenizer's padding id.
    store: The token store that training reads.
    guide: The vectors of the guide, if the run has one.
    teacher: The vectors of the teacher, if the run has one.
  """

  collection: records.Collection
  tests: tuple[records.RetrievalTest, ...]
  translation_tests: tuple[records.TranslationTest, ...]
  tokenizer: tokenizers.Tokenizer
  pad_id: int
  contract: contract_lib.EncodingContract
  store: token_store.TokenStore
  guide: guide_vectors.GuideVectors | None = None
  teacher: guide_vectors.GuideVectors | None = None

  @property
  def widths(self) -> batch_lib.Widths:
    """The sizes of the optional arrays of the run's batches."""
    return batch_lib.Widths(
      guide=self.guide.width if self.guide else 0,
      teacher=self.teacher.width if self.teacher else 0,
    )

  def frozen(self) -> dict[str, dict[str, Any]]:
    """Returns the descriptions of guide and teacher, of those that are there.

    Their names are those in the run's provenance.
    """
    both = filter(None, (self.guide, self.teacher))
    return {each.kind.name: dict(each.guide) for each in both}


def training_texts(collection: records.Collection) -> Iterator[str]:
  """Yields every text of the three streams, to train a tokenizer on."""
  for stream in token_store.STREAMS:
    for record in getattr(collection, stream)():
      for title, text in records.texts(record):
        if title:
          yield title
        yield text


def fetch_backbone(
  config: ml_collections.ConfigDict, folder: str
) -> pathlib.Path | None:
  """Fetches the pretrained model of a run.

  The run's folder keeps the commit of a hub name, and the step of another run.
  So settings, tokenizer and weights come from one commit or step, even if the
  hub's branch or the other run moves on.

  Returns:
    The model's folder; None if the run starts from scratch.
  """
  model = config.model
  if not model.pretrained:
    return None
  locations.check_packages(model.pretrained)
  kept = epath.Path(folder) / workdir.BACKBONE
  local = copies.local_copy(folder, config.hosts.local_dir)
  asked = {"pretrained": model.pretrained, "revision": model.revision}
  if kept.exists():
    known = reading.read_json(kept)
    if asked.items() <= known.items():
      if known.get("step"):
        step = str(known["step"])
        return warm_start.of_run(model.pretrained, step, local)[0]
      if not isinstance(commit := known.get("commit"), str):
        raise ValueError(f"{kept}: commit is {commit!r}. {reading.RESTORE}")
      return pretrained.fetch(model.pretrained, commit or model.revision)
  if warm_start.is_run(model.pretrained):
    found, step = warm_start.of_run(model.pretrained, model.revision, local)
    described = {**asked, "commit": "", "step": step}
  else:
    found = pretrained.fetch(model.pretrained, model.revision)
    described = {**asked, "commit": pretrained.commit(found)}
  writing.write_aside(str(kept), json.dumps(described, indent=2) + "\n")
  return found


def find_tokenizer(
  config: ml_collections.ConfigDict,
  collection: records.Collection,
  folder: str,
  local: str,
) -> tokenizers.Tokenizer:
  """Opens the run's tokenizer; if there is none yet, loads or trains it.

  Args:
    config: The run's config.
    collection: The collection on which a new tokenizer is trained.
    folder: The run's folder.
    local: The local copy of that folder, where the tokenizer is kept.
  """
  kept = epath.Path(local) / workdir.TOKENIZER
  if kept.exists():
    return tokenizer_lib.load(str(kept.parent))
  if config.tokenizer.path:
    tokenizer = tokenizer_lib.load(config.tokenizer.path)
  elif backbone := fetch_backbone(config, folder):
    source = str(warm_start.read(backbone).transformer)
    tokenizer = tokenizer_lib.load(source)
    tokenizer_lib.check_as_transformers(source, tokenizer)
  else:
    print("Training a tokenizer on the collection.")
    tokenizer = tokenizer_lib.train(
      training_texts(collection), config.tokenizer.vocab_size
    )
  writing.write_aside(str(kept), tokenizer.to_str())
  return tokenizer


def resolve_encoding(
  config: ml_collections.ConfigDict,
  found: layout.Layout | None,
  kept: contract_lib.EncodingContract | None = None,
) -> contract_lib.PartialContract:
  """Decides how texts are encoded, with no field left open.

  A field has the value of the config, else that of the token store or of the
  pretrained model's folder, else our default.

  Args:
    config: The run's config.
    found: What the pretrained model's folder says.
    kept: The contract of a token store that was built before. It replaces
      what the folder says.

  Raises:
    ValueError: if the folder does not decide a field, nor does the config.
  """
  sources = source_settings.find(config.data.sources.to_dict())
  of_config = dataclasses.replace(
    contract_lib.PartialContract.from_dict(config.encoding.to_dict()),
    prompts=source_settings.prompts(sources),
  )
  if kept:
    return of_config.over(kept.partial())
  if not found:
    return of_config.over(config_lib.ENCODING)
  set_here = {
    name: value for name, value in of_config.fields() if value is not None
  }
  undecided = [
    f"  encoding.{name}: {reason}"
    for name, reason in found.undecided.items()
    if name not in set_here
  ]
  if undecided:
    raise ValueError(
      f"{found.folder} does not say how to encode; set these:\n"
      + "\n".join(undecided)
    )
  lost = (found.encoding.prompts or {}).keys() - (
    of_config.prompts or {}
  ).keys()
  if lost:
    print(
      f"{found.folder} was trained with prompts of the sources"
      f" {', '.join(map(repr, sorted(lost)))}. This run has none of theirs: its"
      " prompts are those of data.sources alone."
    )
  for name, value in found.encoding.fields():
    if name not in set_here and value is not None:
      print(f"encoding.{name} is {value!r}, as {found.folder} says.")
  return of_config.over(found.encoding).over(config_lib.ENCODING)


def _key(
  config: ml_collections.ConfigDict,
  contract: contract_lib.EncodingContract,
  source: str,
) -> str:
  """Returns a hash of all that the bytes of a token store depend on."""
  return digests.of_value(
    {
      "format": token_store.FORMAT,
      "data": config.data.to_dict(),
      "seed": config.seed,
      "contract": contract.to_dict(),
      "source": source,
    }
  )


def _with_store(
  collection: records.Collection,
  store: token_store.TokenStore,
  config: ml_collections.ConfigDict,
) -> records.Collection:
  """Checks that a store was built from the files of a collection.

  The store alone is read for training, so its files may be gone. Those that are
  there must be the same.

  Returns:
    The collection. If files are gone, it has the groups that it had before, and
    its streams raise ValueError.

  Raises:
    ValueError: if files have changed, or there are others.
  """
  kept, found = store.meta["files"], collection.files
  changed = ""
  if gone := sorted(kept.keys() - found.keys()):
    if any(kept.get(name) != found[name].read_hash() for name in found):
      changed = f"files under data.root={config.data.root}"
  elif store.source != (source := collection.fingerprint()):
    changed = fingerprints.changed(
      store.source, source, config.data.collection, config.data.root
    )
  if changed:
    raise ValueError(
      f"Training data have changed since {store.path} was built: {changed}."
      " Restore them, or start in another --workdir."
    )
  if not gone:
    return collection
  names = records.printable(", ".join(gone[:3])) + ", …" * bool(gone[3:])
  message = f"training files are gone, {len(gone):,} of {len(kept):,} ({names})"
  print(f"{message}: training reads the token store, which holds their texts.")

  def refuse() -> NoReturn:
    raise ValueError(f"{message}.")

  return dataclasses.replace(
    collection,
    groups=store.meta["report_groups"],
    **dict.fromkeys(records.STREAMS, refuse),
    parts=None,
  )


def prepare_together(
  config: ml_collections.ConfigDict,
  folder: str,
  check: Callable[[tokenizers.Tokenizer, contract_lib.EncodingContract], None],
  from_step: int | None = None,
) -> Prepared:
  """Calls `prepare` in all processes of a run, in process 0 first.

  The arguments are those of `prepare`.

  Raises:
    multihost.LostError: if a process does not come in time.
    ValueError: as `prepare` does; or if the prepared data or the devices differ
      between processes. The message names the difference.
  """
  multihost.report("preparing")
  with multihost.first("it prepares the data"):
    prepared = prepare(config, folder, check, from_step)
  backbone = epath.Path(folder) / workdir.BACKBONE
  multihost.check_in(
    "prepared",
    {
      **{
        f"contract.{name}": value
        for name, value in workdir.flatten(prepared.contract.to_dict()).items()
      },
      "token store": prepared.store.fingerprint,
      **{
        kind.name: prepared.frozen().get(kind.name)
        for kind in (guide_vectors.GUIDE, guide_vectors.TEACHER)
      },
      "backbone": backbone.read_text() if backbone.exists() else "",
      "device": jax.devices()[0].device_kind,
      "devices of a process": jax.local_device_count(),
    },
  )
  return prepared


def _find_guide(
  config: ml_collections.ConfigDict, folder: str, local: str
) -> guide_writer.Guide | None:
  """Finds the guide of the IR loss, or its vectors; None without a guide."""
  name, revision = config.loss.ir.guide, config.loss.ir.guide_revision
  if not name:
    return None
  return guide_writer.Guide(guide_vectors.GUIDE, name, revision, folder, local)


def _find_teacher(
  config: ml_collections.ConfigDict,
  folder: str,
  local: str,
  contract: contract_lib.EncodingContract,
) -> guide_writer.Guide | None:
  """Finds the teacher of the distillation loss; None without this loss.

  The teacher without a name is the model that the run starts from. It encodes
  by the run's own contract.
  """
  settings, model = config.loss.distillation, config.model
  if not settings.weight:
    return None

  def load_start(mesh: jax.sharding.Mesh) -> model_lib.Model:
    backbone = fetch_backbone(config, folder)
    assert backbone is not None  # See `training.checks`.
    return model_lib.load_folder(str(backbone), mesh, contract=contract)

  return guide_writer.Guide(
    guide_vectors.TEACHER,
    settings.teacher or model.pretrained,
    settings.teacher_revision if settings.teacher else model.revision,
    folder,
    local,
    language=settings.language,
    load=None if settings.teacher else load_start,
  )


def prepare(
  config: ml_collections.ConfigDict,
  folder: str,
  check: Callable[[tokenizers.Tokenizer, contract_lib.EncodingContract], None],
  from_step: int | None = None,
  processes: int = 0,
  beam: str | None = None,
) -> Prepared:
  """Prepares a run's data, or opens what was prepared before.

  The tests are read, too, so that a bad one is found before the first step.

  Args:
    config: The run's config.
    folder: The run's folder.
    check: Raises ValueError if the model does not fit the tokenizer and the
      contract. It is called before texts are tokenized, which may take hours.
    from_step: The checkpoint that the user named to continue from, if any.
    processes: Processes that read and tokenize; 0 for one on each core.
    beam: The flags of Apache Beam, which then reads and tokenizes.

  Raises:
    ValueError: if the folder belongs to another experiment, its token store was
      built from other files, or a setting or record cannot be used. The message
      names the field, or file, line and field.
  """
  locations.check_packages(folder)
  workdir.claim(
    config.to_dict(), folder, config_lib.default().to_dict(), from_step
  )
  local = copies.local_copy(folder, config.hosts.local_dir)
  store = prepared_copies.open_store(folder, local)
  path = epath.Path(local) / workdir.TOKEN_STORE
  bad_records = records.BadRecords(config.data.on_bad_record)
  collection = collections.load(
    config.data.collection,
    config.data.root,
    bad_records,
    config.data.tatoeba_root,
    # A store holds them.
    require_pairs=bool(config.batch.retrieval) and not store,
    pairs=pair_files.Settings.of_config(config.data.to_dict()),
    sets=config.data.sets.to_dict(),
    rules=cleaning.Rules.of_config(config.data.to_dict()),
    selects=selection.parse(config.eval.selection).reads,
  )
  sources = source_settings.find(config.data.sources.to_dict())
  known = None if store else collection.sources()
  if known is not None:
    source_settings.check_known(sources, known)
  found = None
  if not store and (backbone := fetch_backbone(config, folder)):
    found = warm_start.read(backbone)
  encoding = resolve_encoding(config, found, store and store.contract)
  tokenizer = find_tokenizer(config, collection, folder, local)
  pad_id = tokenizer_lib.pad_id(tokenizer)
  contract = encoding.complete(tokenizer)
  if store:
    contract_lib.check_same(contract, store.contract, str(path))
    collection = _with_store(collection, store, config)
  source = "" if store else collection.fingerprint()
  check(tokenizer, contract)
  guide = _find_guide(config, folder, local)
  teacher = _find_teacher(config, folder, local, contract)
  if not store:
    store = store_writer.build(
      str(path),
      collection,
      contract,
      tokenizer,
      pad_id,
      shuffle_parallel=config.data.shuffle_parallel,
      seed=config.seed,
      source=source,
      bad_records=bad_records,
      shards=config.data.shards,
      workers=store_writer.Workers(
        functools.partial(collections.open_for_training, config.data.to_dict()),
        processes or pool.cores(),
        _key(config, contract, source),
        beam,
      ),
    )
    prepared_copies.keep(folder, local)
  if known is None:
    known = (g.source for s in token_store.STREAMS for g in store.groups(s))
    source_settings.check_known(sources, known)
  vectors = [
    model and model.vectors(store, collection, tokenizer, bad_records)
    for model in (guide, teacher)
  ]
  tests = collection.tests()
  translation_tests = collection.translation_tests()
  test_notes = [note for test in tests for note in test.notes]
  # A file that was just read has its lines in both.
  notes = dict.fromkeys([*store.meta["notes"], *collection.notes()])
  print("\n".join([*notes, *test_notes, store.summary()]))
  for each in filter(None, vectors):
    print(each.summary())
  print(records.describe_bad("test", bad_records.drain()))
  return Prepared(
    collection, tests, translation_tests, tokenizer, pad_id, contract, store,
    *vectors,
  )  # fmt: skip
