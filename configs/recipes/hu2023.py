"""The setting of Hu et al. (2023), from the download to the tables.

  python configs/recipes/hu2023.py --workdir=W

XLM-R base trains on Natural Questions (of DPR) and WikiMatrix. It is tested on
Mr. TyDi, then on XQuAD-R, in each language. English Mr. TyDi selects the
checkpoint. The data come to the folder data, or to --data=FOLDER. Other flags
go to the training: --config.train.steps=1000. On a pod, run the commands that
it prints: the download on each host, then training and evaluation.

As a config, `--config=hu2023` is the training alone. Variants: `:smoke`, a step
of a tiny encoder from scratch.
"""

import argparse
import signal
import subprocess
import sys

from mlir_jax import config_files

_ROOT = "data"


def get_config(variant=""):
  c = config_files.load(f"xlmr_base:{variant}" if variant else "xlmr_base")
  c.data.root = f"{_ROOT}/hu2023"
  if variant != "smoke":  # The embedded collection has none.
    c.batch.hard_negatives = 1  # DPR's files have BM25's; as many as in DPR.
  return c


def main():
  """Downloads, trains and evaluates; ends at the first step that fails."""
  from mlir_jax.corpora import catalog

  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", required=True, help="the run's folder")
  parser.add_argument("--data", default=_ROOT, help="the folder of the data")
  parser.add_argument("--config", default="hu2023", help="of the training")
  parser.add_argument(
    "--languages", default="", help="a part of the languages: ar,de,en"
  )
  parser.add_argument(
    "--mirror",
    default="",
    help="an address with dpr_nq/, wikimatrix/, mrtydi/ and xquadr/",
  )
  given, of_training = parser.parse_known_args()
  wanted = [name for name in given.languages.split(",") if name]
  xquadr = [
    name for name in wanted if name in catalog.CORPORA["xquadr"].languages
  ]
  steps = [
    _download(given, "hu2023", wanted, given.mirror),
    _download(
      given, "xquadr", xquadr, given.mirror and f"{given.mirror}/xquadr"
    ),
    [
      *("train", f"--config={given.config}", f"--workdir={given.workdir}"),
      *(f"--config.data.root={given.data}/hu2023", *of_training),
    ],
    [
      *("evaluate", f"--workdir={given.workdir}", "--checkpoint=best"),
      *("--collection=folder", f"--root={given.data}/xquadr"),
    ],
  ]
  if wanted and not xquadr:
    print(f"XQuAD-R has none of {given.languages}: it is left out.")
    steps = [steps[0], steps[2]]
  for step in steps:
    print("mlir-jax", *step, flush=True)
    if status := run([sys.executable, "-m", "mlir_jax", *step]):
      sys.exit(status)


def run(command):
  """Runs a command, which gets the signals that this program gets.

  So Ctrl-C lets the training save its state. `subprocess.run` would kill it.

  Returns:
    The command's exit status; 128 and more after a signal.
  """
  # In a group of its own, it does not get a signal of the terminal twice.
  process = subprocess.Popen(command, process_group=0)
  received = []

  def forward(number, _):
    received.append(number)
    process.send_signal(number)

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, forward)
  status = process.wait()
  if received and not status:
    return 128 + received[-1]
  return status if status >= 0 else 128 - status


def _download(given, name, languages, mirror):
  command = ["download", name, f"--output={given.data}"]
  if languages:
    command.append(f"--languages={','.join(languages)}")
  if mirror:
    command.append(f"--mirror={mirror}")
  return command


if __name__ == "__main__":
  main()
