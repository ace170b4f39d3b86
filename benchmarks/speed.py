"""Times training steps and encoding against sentence-transformers on PyTorch.

python benchmarks/speed.py --model=FOLDER --data=PAIRS.json.gz

Both sides have the same weights (FOLDER, in sentence-transformers' layout),
texts, lengths, batch, precision and threads. Before it measures, the benchmark
checks that both compute the same loss and vectors, without dropout. Each side
is a separate process. They take turns after each measurement; the other one
waits. Compilation and warm-up are not measured.

- A training step is a whole step: forward with the model's dropout, in-batch
  negatives, backward, clipping, AdamW. Ours also computes the metrics that the
  loop logs, and skips a step that is not finite. Theirs is
  MultipleNegativesRankingLoss with PyTorch's fused AdamW, its trainer's choice.
- Encoding goes from strings to NumPy arrays. Tokenizing is also measured
  separately.
- On a CPU, each side also multiplies matrices of the encoder's feed-forward
  layer. At this rate, the products of the real tokens alone would take the
  printed share of a step and of encoding.
- --before=FOLDER adds an earlier version of this project, which takes its turn
  like the others. FOLDER is its whole source tree.
- Each side pads in its own way, and prints its share of padding. Ours packs
  queries and passages together into rows. It chooses them as a run of 10,000
  steps does, and compiles each size that the measured batches use. Theirs pads
  each of the two to its longest text. To encode, both sort texts by length.
- --data=A.gz,B.gz reads short texts: line n of A is a question, and line n of B
  its passage. --times=3 repeats the model's layers, because only their number
  matters for speed.

With --device=gpu, the model has XLM-R base's shape with random weights, in
bfloat16. The batch is 512 queries and 1,024 passages of 128 random tokens. The
table also has the model FLOPs utilization. The sides run one after the other,
each with all of the memory. Find the largest batch that fits by hand, with
--queries and --chunk_rows. This part has never been run, because no GPU was
available when it was written.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

MAX_LENGTH = {"query": 32, "passage": 128}
PREFIX = {"query": "query: ", "passage": "passage: "}
SCALE = 50.0  # Multiplies the cosines: 1 / temperature.
LEARNING_RATE = 3e-5
# The number of batches, which are used in turn. It is odd, because only every
# second step is counted, and each batch must be.
STEPS = 9
# The rows are those of a run of so many steps. It knows the lengths of some.
RUN = 10_000
KNOWN = 500
# Steps in one measurement on a GPU, where one step is too short to measure.
GPU_STEPS = 20
XLMR = {"vocab_size": 250_002, "type_vocab_size": 1, "pad_token_id": 1}
# The arguments of a side's process, if they are given.
ARGUMENTS = (
  *("device", "model", "data", "queries", "chunk_rows"),
  *("texts", "encode_batch", "threads"),
)
# Keeps the memory that a step frees for the next one, in huge pages. XLA
# requests a step's memory at once, and otherwise waits each time until the
# system has cleared it. PyTorch gains less. Both sides get this setting.
MALLOC = (
  "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
  ":glibc.malloc.trim_threshold=1099511627776"
)


def write_pairs(paths: Sequence[str], target: str) -> None:
  """Writes pairs of lines of two files as DPR's JSON, gzipped."""
  columns = []
  for path in paths:
    with gzip.open(path, "rt", encoding="utf-8") as file:
      columns.append(file.read().split("\n"))
  rows = [
    {"question": question, "positive_ctxs": [{"title": "", "text": text}]}
    for question, text in zip(*columns, strict=True)
    if question and text
  ]
  with gzip.open(target, "wt", encoding="utf-8") as file:
    json.dump(rows, file)


def repeat_layers(folder: str, times: int, target: str) -> None:
  """Copies a model and repeats all its layers some times."""
  from safetensors import numpy as safetensors

  shutil.copytree(folder, target)
  with open(f"{folder}/config.json", encoding="utf-8") as file:
    config = json.load(file)
  count = config["num_hidden_layers"]
  config["num_hidden_layers"] = count * times
  with open(f"{target}/config.json", "w", encoding="utf-8") as file:
    json.dump(config, file)
  weights = {}
  for name, array in safetensors.load_file(
    f"{folder}/model.safetensors"
  ).items():
    of_layer = re.fullmatch(r"(.*\blayer\.)(\d+)(\..*)", name)
    if not of_layer:
      weights[name] = array
      continue
    before, number, after = of_layer.groups()
    for turn in range(times):
      weights[f"{before}{int(number) + turn * count}{after}"] = array
  safetensors.save_file(
    weights, f"{target}/model.safetensors", {"format": "pt"}
  )


def read_pairs(path: str) -> list[tuple[str, str]]:
  """Returns (question, title and text of its passage) in random order."""
  with gzip.open(path, "rt", encoding="utf-8") as file:
    rows = json.load(file)
  pairs = []
  for row in np.random.default_rng(0).permutation(len(rows)):
    passage = rows[row]["positive_ctxs"][0]
    text = f"{passage['title']} {passage['text']}".strip()
    pairs.append((rows[row]["question"], text))
  return pairs


class Side:
  """The base of both sides, which all have the methods of `Ours`.

  Attributes:
    settings: The command line.
    ids: Role to the token ids of each text of each batch.
    pairs: All questions and passages.
    texts: Passages to encode.
    taken: Steps taken.
  """

  def __init__(self, settings: argparse.Namespace):
    """Reads the texts."""
    self.settings = settings
    self.taken = 0
    self.pairs = []
    count = settings.queries
    if settings.device == "gpu":
      random = np.random.default_rng(0)
      self.texts = []
      self.ids = {
        role: [random.integers(4, 250_000, (rows, 128)).tolist()]
        for role, rows in (("query", count), ("passage", 2 * count))
      }
      return
    pairs = self.pairs = read_pairs(settings.data)
    end = STEPS * count
    self.texts = [pair[1] for pair in pairs[end : end + settings.texts]]
    self.ids = {}
    for column, role in enumerate(MAX_LENGTH):
      texts = [PREFIX[role] + pair[column] for pair in pairs[:end]]
      encoded = self.tokenizer(role).encode_batch(texts)
      ids = [text.ids for text in encoded]
      self.ids[role] = [ids[i : i + count] for i in range(0, end, count)]

  def tokenizer(self, role: str):
    """Returns the model's tokenizer, which cuts texts as the role requires."""
    import tokenizers

    path = f"{self.settings.model}/tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH[role])
    return tokenizer

  def factors(self) -> list[np.ndarray]:
    """Returns 1,024 hidden states, and weights of the feed-forward layer."""
    with open(f"{self.settings.model}/config.json", encoding="utf-8") as file:
      config = json.load(file)
    random = np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return [
      random.standard_normal(shape, np.float32)
      for shape in ((1024, hidden), (hidden, inner))
    ]

  def steps(self) -> int:
    """Returns the number of steps in one measurement."""
    return GPU_STEPS if self.settings.device == "gpu" else 1


class Ours(Side):
  """This project, built from the same parts as a run."""

  def __init__(self, settings: argparse.Namespace):
    """Builds and compiles."""
    super().__init__(settings)
    import jax
    import tokenizers

    from mlir_jax import config as config_lib
    from mlir_jax import contract as contract_lib
    from mlir_jax import sharding
    from mlir_jax.batches import packing, row_plans
    from mlir_jax.models import architecture, encoder, pretrained
    from mlir_jax.retrieval import encoding
    from mlir_jax.training import build, step

    self.jax = jax
    config = self.config = config_lib.default()
    config.batch.retrieval = settings.queries
    config.batch.parallel = config.batch.monolingual = 0
    config.batch.chunk_rows = settings.chunk_rows
    config.loss.semantic.weight = config.loss.language.weight = 0.0
    config.loss.ir.temperature = 1 / SCALE
    config.optim.learning_rate = LEARNING_RATE
    config.optim.warmup_steps = 0
    config.optim.decay = "constant"
    mesh = self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
    if settings.device == "gpu":
      shape = self.shape = architecture.EncoderConfig(
        **XLMR, hidden_size=768, num_layers=12, num_heads=12,
        intermediate_size=3072, max_positions=514, layer_norm_eps=1e-5,
        family="xlm-roberta", dtype="bfloat16",
      )  # fmt: skip
      params = encoder.init_params(shape, "tied", jax.random.key(0))
      tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"?": 0}, unk_token="?")
      )
    else:
      self.shape, params = pretrained.load(settings.model)
      params = encoder.with_towers(params, "tied")
      tokenizer = self.passage_tokenizer = self.tokenizer("passage")
    said = contract_lib.PartialContract(
      **{
        role: contract_lib.PartialRole(PREFIX.get(role), MAX_LENGTH.get(role))
        for role in contract_lib.ROLES
      }
    )
    self.contract = said.over(config_lib.ENCODING).complete(tokenizer)
    batches = [
      queries + passages
      for queries, passages in zip(*self.ids.values(), strict=True)
    ]
    self.lengths = np.array([[len(ids) for ids in batch] for batch in batches])
    known = np.concatenate([self.lengths, self._lengths_of_others()])
    plans = row_plans.choose(
      {"passage": known},
      {"passage": int(known.max())},
      RUN if self.pairs else len(known),
      chunk_rows=settings.chunk_rows,
      compilation=row_plans.compilation(mesh.devices.flat[0].platform),
    )
    self.plans = plans
    # The rows of each batch; a step uses the first plan that holds its texts.
    self.blocks = [
      next(
        plan["passage"]
        for plan in plans.plans
        if packing.fits(of_batch, plan["passage"])
      )
      for of_batch in self.lengths
    ]
    self.batches = [
      sharding.place_batch(self._batch(*each), mesh)
      for each in zip(batches, self.blocks, strict=True)
    ]
    schedule, optimizer = build.make_optimizer(config)

    def init(params):
      return step.init_state(params, optimizer)

    self.shardings = sharding.state_shardings(
      jax.eval_shape(init, params), mesh, fsdp=False
    )
    self.state = jax.jit(
      init, out_shardings=self.shardings, donate_argnums=0
    )(jax.device_put(params, self.shardings.params))  # fmt: skip
    jitted = build.jit_step(
      config, self.contract, schedule, optimizer, mesh, self.shardings,
      self.shape,
    )  # fmt: skip
    started = time.perf_counter()
    self.compiled = {}
    for blocks, batch in zip(self.blocks, self.batches, strict=True):
      if blocks not in self.compiled:
        self.compiled[blocks] = jitted.lower(self.state, batch).compile()
    self.compile_seconds = time.perf_counter() - started
    if self.texts:
      self.text_encoder = encoding.TextEncoder(
        self.contract, tokenizer,
        encoding.make_embed(self.shape, self.contract), mesh,
        settings.encode_batch,
      )  # fmt: skip

  def _lengths_of_others(self) -> np.ndarray:
    """Returns the lengths of the texts of other steps, int [steps, texts]."""
    texts = self.lengths.shape[1]
    if not self.pairs:
      return np.zeros((0, texts), int)
    of_roles = []
    for column, role in enumerate(MAX_LENGTH):
      encoded = self.tokenizer(role).encode_batch_fast(
        [PREFIX[role] + pair[column] for pair in self.pairs]
      )
      of_roles.append(np.array([len(text.ids) for text in encoded]))
    random = np.random.default_rng(1)
    drawn = random.integers(
      len(self.pairs), size=(KNOWN - len(self.lengths), texts // 2)
    )
    return np.concatenate([lengths[drawn] for lengths in of_roles], axis=1)

  def _batch(self, texts: list[list[int]], blocks: Sequence):
    """Returns a batch like the reader's; queries come before passages.

    Args:
      texts: The ids of each text.
      blocks: The batch's rows.
    """
    from mlir_jax.batches import batch as batch_lib
    from mlir_jax.batches import identity, packing

    lengths = np.array([len(ids) for ids in texts])
    packed = packing.pack(lengths, blocks)
    filled = []
    for block, number in zip(blocks, packed.numbers, strict=True):
      there = number[number >= 0]
      tokens = np.concatenate([np.zeros(0, int), *(texts[n] for n in there)])
      rows, _, _ = packing.lay_out(number, block.length, tokens, lengths[there])
      filled.append(batch_lib.TextRows(*rows, number))
    slot = packed.slot
    count = self.settings.queries
    # Column 0 has the positives, column 1 a hard negative for each.
    passage = slot[count:].reshape(-1, count).T
    number = np.arange(passage.size, dtype=np.uint64).reshape(-1, count).T
    text = identity.split(number)
    question = identity.split(np.arange(count, dtype=np.uint64))
    return batch_lib.Batch(
      texts={"passage": tuple(filled)},
      retrieval=batch_lib.Retrieval(
        query=slot[:count],
        query_text=question,
        query_sequence=question,
        passage=passage,
        passage_text=text,
        passage_sequence=text,
        passage_valid=np.ones(passage.shape, bool),
        positive_sequence=text[:, :1],
      ),
    )

  def describe(self) -> dict:
    """Returns versions, padding, and what a step takes."""
    from mlir_jax.batches import packing
    from mlir_jax.costs import flops

    matrix = (
      self.settings.queries,
      len(self.ids["passage"][0]),
      self.shape.output_size,
    )
    memory = max(
      compiled.memory_analysis().temp_size_in_bytes
      for compiled in self.compiled.values()
    )
    steps = len(self.lengths)
    counts = flops.Texts(
      self.lengths[0].size,
      self.lengths.sum() / steps,
      (self.lengths.astype(int) ** 2).sum() / steps,
    )
    computed = sum(map(packing.tokens, self.blocks)) / steps
    rows = [
      " + ".join(f"{block.rows} x {block.length}" for block in blocks)
      for blocks in self.compiled
    ]
    return {
      "with": f"jax {self.jax.__version__}",
      "rows": " or ".join(rows),
      "real tokens": round(counts.tokens),
      "tokens in a step": round(computed),
      "padding": f"{1 - counts.tokens / computed:.1%}",
      "padding of the run": f"{self.plans.padding:.1%}",
      "flops": flops.train_step(self.shape, [counts], [], [matrix]).model,
      "flops of encoding": self._encoding_flops(),
      "temporaries": f"{memory / 2**20:,.0f} MiB",
      "compiled in": f"{self.compile_seconds:.1f} s ({len(rows)} sizes)",
    }

  def _encoding_flops(self) -> int:
    """Returns the operations of encoding the texts, without padding."""
    from mlir_jax.costs import flops

    if not self.texts:
      return 0
    texts = [PREFIX["passage"] + text for text in self.texts]
    encoded = self.passage_tokenizer.encode_batch_fast(texts)
    lengths = np.array([len(text.ids) for text in encoded])
    counts = flops.Texts(len(lengths), lengths.sum(), (lengths**2).sum())
    return flops.encode(self.shape, counts)

  def check(self) -> tuple[float, np.ndarray]:
    """Returns the first batch's loss, its vectors and those of the texts."""
    from mlir_jax import sharding
    from mlir_jax.losses import registry
    from mlir_jax.training import build

    encode = build.make_encode(
      self.shape, self.contract, self.mesh, self.shardings.params
    )
    ir = registry.make(self.config.loss)["ir"]

    @self.jax.jit
    def run(params, batch):
      outputs = encode(params, batch, None)
      loss, _ = ir(outputs, batch, sharding.replicate(self.mesh))
      return loss, outputs["queries"], outputs["passages"]

    loss, queries, passages = run(self.state.params, self.batches[0])
    vectors = queries, *np.swapaxes(passages, 0, 1), self._encode()
    return float(loss), np.concatenate(vectors)

  def _encode(self):
    return self.text_encoder.encode(self.state.params, "passage", self.texts)

  def step(self) -> float:
    """Returns the seconds of a training step."""
    started = time.perf_counter()
    for _ in range(self.steps()):
      number = self.taken % len(self.batches)
      compiled = self.compiled[self.blocks[number]]
      self.state, metrics = compiled(self.state, self.batches[number])
      self.taken += 1
    self.jax.device_get(metrics)
    return (time.perf_counter() - started) / self.steps()

  def encode(self) -> float:
    """Returns the seconds of encoding the texts."""
    started = time.perf_counter()
    self._encode()
    return time.perf_counter() - started

  def tokenize(self) -> float:
    """Returns the seconds of tokenizing them."""
    texts = [PREFIX["passage"] + text for text in self.texts]
    started = time.perf_counter()
    self.passage_tokenizer.encode_batch_fast(texts)
    return time.perf_counter() - started

  def product(self) -> float:
    """Returns the FLOP/s of a product of the feed-forward layer."""
    left, right = map(self.jax.numpy.asarray, self.factors())
    product = self.jax.jit(lambda left, right: left @ right)
    return product_rate(
      left.shape[0] * right.size,
      lambda: product(left, right).block_until_ready(),
    )

  def matmul(self) -> float:
    """Returns the FLOP/s of a product of large bfloat16 matrices."""
    # Random numbers, because a GPU multiplies matrices of ones faster.
    matrix = self.jax.random.normal(
      self.jax.random.key(0), (8192, 8192), "bfloat16"
    )
    product = self.jax.jit(lambda matrix: matrix @ matrix)
    return rate(lambda: product(matrix), self.jax.block_until_ready)


class Theirs(Side):
  """sentence-transformers, in a loop like its trainer's."""

  def __init__(self, settings: argparse.Namespace):
    """Loads the model."""
    super().__init__(settings)
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers.sentence_transformer import losses

    self.torch = torch
    self.versions = (
      f"sentence-transformers {sentence_transformers.__version__},"
      f" torch {torch.__version__}, transformers {transformers.__version__}"
    )
    if settings.device == "gpu":
      shape = transformers.XLMRobertaConfig(
        **XLMR, max_position_embeddings=514, layer_norm_eps=1e-5
      )
      self.model = mean_pooled(torch, transformers.XLMRobertaModel(shape))
      self.model.to("cuda")
    else:
      torch.set_num_threads(settings.threads)
      self.model = sentence_transformers.SentenceTransformer(
        settings.model, device="cpu", trust_remote_code=False
      )
      self.model.max_seq_length = MAX_LENGTH["passage"]
    self.loss = losses.MultipleNegativesRankingLoss(self.model, scale=SCALE)
    parameters = list(self.model.parameters())
    self.optimizer = torch.optim.AdamW(
      [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
      ],
      lr=LEARNING_RATE,
      weight_decay=0.01,
      fused=True,
    )
    count = settings.queries
    self.batches = []
    for queries, passages in zip(*self.ids.values(), strict=True):
      columns = [queries]
      columns += [
        passages[i : i + count] for i in range(0, len(passages), count)
      ]
      self.batches.append([self._features(column) for column in columns])

  def _features(self, texts):
    pad = self.torch.nn.utils.rnn.pad_sequence
    rows = [self.torch.tensor(ids) for ids in texts]
    device = self.model.device
    return {
      "input_ids": pad(rows, True, 1).to(device),
      "attention_mask": pad(
        [self.torch.ones_like(row) for row in rows], True
      ).to(device),
    }

  def describe(self) -> dict:
    """Returns versions and padding."""
    shapes = [
      [tuple(column["input_ids"].shape) for column in batch]
      for batch in self.batches
    ]
    tokens = [sum(rows * n for rows, n in batch) for batch in shapes]
    texts = sorted(self.texts, key=len, reverse=True)
    size = self.settings.encode_batch
    lengths = [
      [
        len(text.ids)
        for text in self.tokenizer("passage").encode_batch(
          [PREFIX["passage"] + text for text in texts[i : i + size]]
        )
      ]
      for i in range(0, len(texts), size)
    ]
    padded = sum(len(batch) * max(batch) for batch in lengths)
    return {
      "with": self.versions,
      "padded to": " + ".join(f"{rows} x {n}" for rows, n in shapes[0])
      + " in the first step",
      "tokens in a step": round(statistics.mean(tokens)),
      "tokens of encoding": f"{padded} for {sum(map(sum, lengths))} real ones",
    }

  def _loss(self):
    """Returns the next batch's loss."""
    batch = self.batches[self.taken % len(self.batches)]
    on_gpu = self.settings.device == "gpu"
    with (
      self.torch.autocast("cuda", self.torch.bfloat16)
      if on_gpu
      else contextlib.nullcontext()
    ):
      return self.loss([dict(column) for column in batch], None)

  def check(self) -> tuple[float, np.ndarray]:
    """Returns the first batch's loss, its vectors and those of the texts."""
    self.model.eval()
    with self.torch.inference_mode():
      loss = self._loss().item()
      vectors = [
        self.model(dict(column))["sentence_embedding"].numpy()
        for column in self.batches[0]
      ]
    return loss, np.concatenate([*vectors, self._encode()])

  def _encode(self):
    return self.model.encode(
      self.texts,
      prompt=PREFIX["passage"],
      batch_size=self.settings.encode_batch,
      show_progress_bar=False,
    )

  def step(self) -> float:
    """Returns the seconds of a training step."""
    self.model.train()
    started = time.perf_counter()
    for _ in range(self.steps()):
      loss = self._loss()
      loss.backward()
      self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
      self.optimizer.step()
      self.optimizer.zero_grad()
      self.taken += 1
    loss.item()
    if self.settings.device == "gpu":
      self.torch.cuda.synchronize()
    return (time.perf_counter() - started) / self.steps()

  def encode(self) -> float:
    """Returns the seconds of encoding the texts."""
    self.model.eval()
    started = time.perf_counter()
    self._encode()
    return time.perf_counter() - started

  def tokenize(self) -> float:
    """Returns the seconds of tokenizing them."""
    size = self.settings.encode_batch
    texts = sorted(self.texts, key=len)
    started = time.perf_counter()
    for start in range(0, len(texts), size):
      batch = texts[start : start + size]
      self.model.preprocess(batch, prompt=PREFIX["passage"])
    return time.perf_counter() - started

  def product(self) -> float:
    """Returns the FLOP/s of a product of the feed-forward layer."""
    left, right = map(self.torch.from_numpy, self.factors())
    with self.torch.inference_mode():
      return product_rate(left.shape[0] * right.numel(), lambda: left @ right)

  def matmul(self) -> float:
    """Returns the FLOP/s of a product of large bfloat16 matrices."""
    matrix = self.torch.randn(
      8192, 8192, dtype=self.torch.bfloat16, device="cuda"
    )
    return rate(
      lambda: matrix @ matrix, lambda _: self.torch.cuda.synchronize()
    )


SIDES = {"ours": Ours, "theirs": Theirs}


def mean_pooled(torch, encoder):
  """Makes a model for their losses, without a tokenizer."""

  class Model(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.encoder = encoder

    @property
    def device(self):
      return self.encoder.device

    def forward(self, features):
      states = self.encoder(**features).last_hidden_state.float()
      mask = features["attention_mask"][:, :, None]
      mean = (states * mask).sum(1) / mask.sum(1)
      vectors = torch.nn.functional.normalize(mean, dim=-1)
      return features | {"sentence_embedding": vectors}

  return Model()


def rate(product, wait, times: int = 50) -> float:
  """Returns the FLOP/s of a product of matrices of 8,192 x 8,192."""
  wait(product())
  started = time.perf_counter()
  for _ in range(times):
    result = product()
  wait(result)
  return times * 2 * 8192**3 / (time.perf_counter() - started)


def product_rate(size: int, product, times: int = 20) -> float:
  """Returns the FLOP/s of a product on a CPU: the median of some times.

  Args:
    size: The product of its three dimensions.
    product: Computes it.
    times: The number of measurements.
  """
  seconds = []
  for _ in range(times + 1):
    started = time.perf_counter()
    product()
    seconds.append(time.perf_counter() - started)
  return 2 * size / statistics.median(seconds[1:])


def serve(settings: argparse.Namespace) -> None:
  """Runs one side's process: answers commands, line by line."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # Output of libraries goes to stderr.
  side = SIDES[settings.side](settings)
  for line in sys.stdin:
    command = line.strip()
    before = time.process_time()
    answer = getattr(side, command)()
    if command == "check":
      np.save(f"{settings.exchange}/{settings.side}.npy", answer[1])
      answer = answer[0]
    elif isinstance(answer, float):
      runs = side.steps() if command == "step" else 1
      answer = [answer, (time.process_time() - before) / runs]
    print(json.dumps(answer), file=answers)


class Process:
  """A side in a separate process."""

  def __init__(self, side: str, settings: argparse.Namespace, exchange: str):
    """Starts the process."""
    script = __file__
    arguments = [
      f"--{name}={value}"
      for name in ARGUMENTS
      if (value := getattr(settings, name))
    ]
    threads = str(settings.threads)
    variables = {
      "GLIBC_TUNABLES": MALLOC,
      "HF_HUB_OFFLINE": "1",
      "JAX_PLATFORMS": "cuda" if settings.device == "gpu" else "cpu",
      "OMP_NUM_THREADS": threads,
      "RAYON_NUM_THREADS": threads,
      "TOKENIZERS_PARALLELISM": "true",
      "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",  # Of a GPU; the default is 3/4.
    }
    if side == "before":
      script, side = f"{settings.before}/benchmarks/speed.py", "ours"
      exchange = f"{exchange}/before"
      os.mkdir(exchange)
      variables["PYTHONPATH"] = settings.before
    self._process = subprocess.Popen(
      [
        *(sys.executable, script, *arguments),
        *(f"--side={side}", f"--exchange={exchange}"),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | variables,
    )

  def __call__(self, command: str):
    """Sends a command and returns the answer."""
    self._process.stdin.write(command + "\n")
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise SystemExit("A side has ended; its error is printed above.")
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def measure(
  sides: dict[str, Process], command: str, repeats: int
) -> dict[str, np.ndarray]:
  """Maps each side to [repeats, 2]: seconds, and CPU seconds of all cores."""
  found = {name: [] for name in sides}
  for _ in range(repeats):
    for name, side in sides.items():
      side(command)  # Not counted, because the other side used the caches.
      found[name].append(side(command))
  return {name: np.array(values) for name, values in found.items()}


def head(sides: Sequence[str]) -> str:
  """Returns the first two lines of the table."""
  others = [name for name in sides if name != "ours"]
  cells = ["", *sides]
  for name in others:
    cells += [f"{name} / ours (quartiles)", "of CPUs"]
  return f"\n| {' | '.join(cells)} |\n{'|---' * len(cells)}|"


def row(name: str, found: dict[str, np.ndarray]) -> str:
  """Returns a line of the table: medians, and quartiles of the ratios."""
  cells = [name]
  for times in found.values():
    wall, cpu = 1e3 * np.median(times, axis=0)
    cells.append(f"{wall:,.0f} ms ({cpu:,.0f} of CPUs)")
  for side in found:
    if side != "ours":
      ratios = found[side] / found["ours"]
      low, middle, high = np.quantile(ratios[:, 0], (0.25, 0.5, 0.75))
      cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})")
      cells.append(f"{np.median(ratios[:, 1]):.2f}")
  return f"| {' | '.join(cells)} |"


def check(sides: dict[str, Process], exchange: str) -> None:
  """Raises SystemExit unless both sides compute the same."""
  losses = [sides[name]("check") for name in SIDES]
  vectors = [np.load(f"{exchange}/{name}.npy") for name in SIDES]
  apart = np.abs(vectors[0] - vectors[1]).max()
  print(
    f"Without dropout: losses {losses[0]:.6f} and {losses[1]:.6f};"
    f" {len(vectors[0]):,} vectors, at most {apart:.1e} apart."
  )
  if apart > 1e-5 or abs(losses[0] - losses[1]) > 1e-4:
    raise SystemExit("The sides do not compute the same.")


def describe(name: str, side: Process) -> dict:
  """Prints and returns a side's facts."""
  facts = side("describe")
  print(f"{name}:", ", ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
  return facts


def compare(settings: argparse.Namespace, exchange: str) -> None:
  """Checks, measures, and prints the table."""
  names = ["ours", *(["before"] if settings.before else []), "theirs"]
  sides = {name: Process(name, settings, exchange) for name in names}
  facts = {name: describe(name, side) for name, side in sides.items()}
  check(sides, exchange)
  print(head(names))
  found = {}
  for command in ("step", "encode", "tokenize"):
    found[command] = measure(sides, command, settings.repeats)
    name = f"{command} {settings.texts:,} texts"
    name = "training step" if command == "step" else name
    print(row(name, found[command]), flush=True)
  print()
  needed = {
    "step": facts["ours"]["flops"],
    "encode": facts["ours"]["flops of encoding"],
  }
  for name in SIDES:
    # The best of some, because other programs may slow down a product.
    rate = max(sides[name]("product")[0] for _ in range(5))
    shares = [
      f"{needed[command] / rate / np.median(found[command][name][:, 0]):.0%}"
      f" of {command}"
      for command in needed
    ]
    print(
      f"{name}: {rate / 1e9:,.0f} GFLOP/s in a product. The products of the"
      f" real tokens alone take {' and '.join(shares)}."
    )
  for side in sides.values():
    side.close()


def compare_on_gpu(settings: argparse.Namespace, exchange: str) -> None:
  """Measures one side, then the other, and prints the table."""
  steps, flops = {}, 0
  for name in SIDES:
    side = Process(name, settings, exchange)
    flops = describe(name, side).get("flops", flops)  # Of both: ours.
    steps |= measure({name: side}, "step", settings.repeats)
    seconds = np.median(steps[name][:, 0])
    done, peak = flops / seconds, side("matmul")[0]
    side.close()
    print(
      f"{name}: {1e3 * seconds:,.0f} ms, {done / 1e12:.0f} TFLOP/s,"
      f" {done / peak:.0%} of {peak / 1e12:.0f} in a product of large matrices",
      flush=True,
    )
  print(head(list(SIDES)))
  print(row("training step", steps))


def main():
  """Runs the benchmark, or one side of it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--model", help="folder of weights and tokenizer")
  parser.add_argument("--data", help="pairs: DPR's JSON, or two files; gzipped")
  parser.add_argument("--times", type=int, default=1, help="to repeat layers")
  parser.add_argument("--queries", type=int, help="of a step; 64, or 512")
  parser.add_argument(
    "--chunk_rows", type=int, default=0, help="our batch.chunk_rows"
  )
  parser.add_argument("--texts", type=int, default=1024, help="to encode")
  parser.add_argument("--encode_batch", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  parser.add_argument("--before", help="source tree of an earlier version")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--exchange", help=argparse.SUPPRESS)
  settings = parser.parse_args()
  if settings.device == "cpu" and not (settings.model and settings.data):
    parser.error("--model and --data are needed, or --device=gpu.")
  if not settings.queries:
    settings.queries = 512 if settings.device == "gpu" else 64
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
  if settings.side:
    serve(settings)
    return
  load = os.getloadavg()[0]
  print(
    f"{platform.machine()}, Python {platform.python_version()},"
    f" {settings.threads} threads; load before the start {load:.1f}",
    flush=True,
  )
  if settings.device == "cpu" and load + settings.threads > os.cpu_count() + 1:
    print(
      "The machine is busy. PyTorch's threads wait for each other, awake, and"
      " lose more by that than ours: the ratios will be too high.",
      flush=True,
    )
  run = compare_on_gpu if settings.device == "gpu" else compare
  with tempfile.TemporaryDirectory() as exchange:
    if settings.device == "cpu":
      if settings.times > 1:
        repeat_layers(settings.model, settings.times, f"{exchange}/model")
        settings.model = f"{exchange}/model"
      if "," in settings.data:
        write_pairs(settings.data.split(","), f"{exchange}/pairs.json.gz")
        settings.data = f"{exchange}/pairs.json.gz"
    run(settings, exchange)


if __name__ == "__main__":
  main()
