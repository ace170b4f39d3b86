"""The public corpora that `mlir-jax download` knows."""

import os
import pathlib

from mlir_jax.corpora import (
  corpus,
  debian,
  dpr_nq,
  libreoffice,
  msmarco,
  nq,
  translations,
  wikipedia,
  xquadr,
)

_GITHUB = "https://raw.githubusercontent.com"
_META = "https://dl.fbaipublicfiles.com"

DPR_NQ = corpus.Corpus(
  name="dpr_nq",
  summary="Natural Questions as DPR trains on it: English pairs",
  licence="CC BY-SA 3.0",
  base=f"{_META}/dpr/data/retriever",
  languages=("en",),
  list_files=dpr_nq.list_files,
  build=dpr_nq.build,
)
WIKIMATRIX = corpus.Corpus(
  name="wikimatrix",
  summary="mined translations of Wikipedia, with English",
  licence="CC BY-SA",
  base=f"{_META}/laser/WikiMatrix/v1",
  languages=translations.WIKIMATRIX,
  list_files=translations.list_wikimatrix,
  build=translations.build_wikimatrix,
)
MR_TYDI = corpus.Corpus(
  name="mrtydi",
  summary="Mr. TyDi 1.1, tests in 11 languages; English has about 5 GB",
  licence="Apache 2.0; passages: CC BY-SA",
  base="https://git.uwaterloo.ca/jimmylin/mr.tydi/-/raw/master/data",
  languages=tuple(wikipedia.MR_TYDI),
  list_files=wikipedia.list_mr_tydi,
  build=wikipedia.build_mr_tydi,
)

XQUAD_R = corpus.Corpus(
  name="xquadr",
  summary="XQuAD-R (LAReQA), tests; passages are sentences or paragraphs",
  licence="CC BY-SA 4.0",
  base=_GITHUB,
  languages=xquadr.LANGUAGES,
  list_files=xquadr.list_files,
  build=xquadr.build,
  variants=(xquadr.SENTENCES, xquadr.PARAGRAPHS),
)
MIRACL = corpus.Corpus(
  name="miracl",
  summary="MIRACL 1.0, its dev part as tests in 18 languages",
  licence="Apache 2.0; passages: CC BY-SA",
  base="https://huggingface.co/datasets/miracl",
  languages=tuple(wikipedia.MIRACL),
  list_files=wikipedia.list_miracl,
  build=wikipedia.build_miracl,
)

_ALL = (
  corpus.Corpus(
    name="debian",
    summary="descriptions of Debian's packages: pairs, translations, tests",
    licence="the packages' own",
    base="https://deb.debian.org/debian",
    languages=debian.LANGUAGES,
    list_files=debian.list_files,
    build=debian.build,
    variants=debian.RELEASES,
  ),
  corpus.Corpus(
    name="libreoffice",
    summary="LibreOffice's help: pairs, aligned paragraphs, text, tests",
    licence="MPL 2.0; parts Apache 2.0",
    base="https://deb.debian.org/debian",
    languages=libreoffice.LANGUAGES,
    list_files=libreoffice.list_files,
    build=libreoffice.build,
    variants=debian.RELEASES,
  ),
  corpus.Corpus(
    name="nq",
    summary="QED's part of Natural Questions: English pairs, dev and test",
    licence="CC BY-SA 3.0; distractors: CC BY 4.0, CC BY-SA 4.0",
    base=_GITHUB,
    languages=("en",),
    list_files=nq.list_files,
    build=nq.build,
  ),
  XQUAD_R,
  DPR_NQ,
  WIKIMATRIX,
  MR_TYDI,
  MIRACL,
  corpus.Corpus(
    name="msmarco",
    summary="MS MARCO's passages: English pairs, a test over 8.8 million",
    licence="for research that is not commercial (Microsoft's terms)",
    base="https://msmarco.z22.web.core.windows.net/msmarcoranking",
    languages=("en",),
    list_files=msmarco.list_files,
    build=msmarco.build,
  ),
  corpus.Corpus(
    name="tatoeba",
    summary="translation tests with English (for data.tatoeba_root)",
    licence="CC BY 2.0 FR",
    base=f"{_GITHUB}/facebookresearch/LASER/main/data/tatoeba/v1",
    languages=translations.TATOEBA,
    list_files=translations.list_tatoeba,
    build=translations.copy_tatoeba,
  ),
  corpus.Corpus(
    name="ntrex",
    summary="1,997 news sentences in many languages",
    licence="CC BY-SA 4.0",
    base=f"{_GITHUB}/MicrosoftTranslator/NTREX/main/NTREX-128",
    languages=translations.NTREX,
    list_files=translations.list_ntrex,
    build=translations.build_ntrex,
  ),
  corpus.Mixture(
    name="hu2023",
    summary="dpr_nq, wikimatrix and mrtydi: what Hu et al. (2023) train on",
    parts=(DPR_NQ, WIKIMATRIX, MR_TYDI),
    # Of Mr. TyDi and XQuAD-R. WikiMatrix has no Thai.
    languages=tuple(sorted({*wikipedia.MR_TYDI, *xquadr.LANGUAGES})),
  ),
)
CORPORA: dict[str, corpus.Corpus | corpus.Mixture] = {
  each.name: each for each in _ALL
}


def hint(folder: str | os.PathLike) -> str:
  """Returns which command makes a missing folder, or "" if none does.

  Args:
    folder: The folder that a setting names; its own name may be a corpus's.
  """
  path = pathlib.Path(folder)
  if path.name not in CORPORA:
    return ""
  return f" `mlir-jax download {path.name} --output={path.parent}` makes it."
