"""Keeps prepared data on object storage, and brings them to a machine."""

from etils import epath

from mlir_jax import workdir
from mlir_jax.data import token_store
from mlir_jax.storage import copies

_META = "meta.json"  # Of a token store. If it is there, the store is whole.


def open_store(folder: str, local: str) -> token_store.TokenStore | None:
  """Opens the token store of a run, if there is one.

  From object storage, the tokenizer and the store are copied to the local copy,
  but for the tokens: each shard's are copied when they are first read.

  Args:
    folder: The run's folder.
    local: Its local copy. The token store of another run is removed from it.

  Raises:
    token_store.TokenStoreError: if the token store is not whole.
  """
  path = epath.Path(local) / workdir.TOKEN_STORE
  if folder == local:
    return token_store.TokenStore.open(str(path)) if path.exists() else None
  _fetch(folder, local)
  if not path.exists():
    return None
  remote = f"{folder}/{workdir.TOKEN_STORE}"
  return token_store.TokenStore.open(str(path), remote=remote)


def _fetch(folder: str, local: str) -> None:
  """Copies prepared data, see `open_store`."""
  copies.fetch(folder, local, workdir.TOKENIZER)
  ours = epath.Path(local) / workdir.TOKEN_STORE
  theirs = epath.Path(folder) / workdir.TOKEN_STORE
  metas = [path / _META for path in (theirs, ours)]
  known = [path.read_bytes() if path.exists() else None for path in metas]
  if known[0] != known[1]:
    ours.rmtree(missing_ok=True)
    if known[0]:
      print(f"Copying {theirs} to {ours}.")
      copies.fetch_folder(folder, local, workdir.TOKEN_STORE)


def keep(folder: str, local: str) -> None:
  """Copies prepared data to object storage; meta.json is the last file."""
  if folder == local:
    return
  copies.upload(folder, local, workdir.TOKENIZER)
  copies.upload_folder(
    f"{local}/{workdir.TOKEN_STORE}",
    f"{folder}/{workdir.TOKEN_STORE}",
    last=_META,
  )
