"""Every setting of a run: its default, its meaning and its range."""

import ml_collections
from ml_collections.config_dict import placeholder

from mlir_jax import contract


def default() -> ml_collections.ConfigDict:
  """Returns all fields with their defaults; a config file overrides some.

  The paper (Hu et al. 2023) could not be read whole. Where it is silent
  (temperatures, weights, batch sizes, pooling, lengths) the value is our
  choice, and the comment says so.
  """
  from mlir_jax.losses import registry  # Here, so that --help needs no jax.

  c = ml_collections.ConfigDict()

  c.seed = 0  # For initial parameters, dropout and the order of the data.

  # --- Data: what is read, and in which proportions. ---
  c.data = data = ml_collections.ConfigDict()
  # "cldr" (embedded, nothing to download), "folder" (files under data.root in
  # the layout of docs/data.md), "sets" (data.sets alone), or your own function,
  # "my_project.data:load".
  data.collection = "cldr"
  data.root = ""  # The folder of the collection "folder", here or on gs://.
  # The language of question-passage pairs that name theirs neither in a field
  # nor in the name of their file.
  data.language = "en"
  # The format of all files in ir/: "" recognizes each one's by its fields. Else
  # "dpr", "tevatron", "tevatron_by_id", "flag_embedding", "columns", or NAME:
  data.format = ""
  # Your own formats: data.formats.NAME = "my_project.formats:Format".
  data.formats = ml_collections.ConfigDict()
  # "use": a question's own prompt (FlagEmbedding) takes the place of
  # encoding.query.prefix, which must then be "". "ignore": all have the prefix.
  data.prompts = "use"
  # Data sets that a library finds by name; they are added to the collection:
  # data.sets.NAME = "ir_datasets:mr-tydi/sw/test", "datasets:OWNER/NAME
  # stream=parallel languages=en-de" or "tfds:NAME/CONFIG stream=retrieval". See
  # docs/data.md.
  data.sets = ml_collections.ConfigDict()
  # Settings of a source: data.sources.NAME = "weight=2 query_prompt='…'", where
  # NAME is that of ir/NAME.jsonl, parallel/NAME.en-de.tsv or data.sets.NAME. If
  # a source of a stream has a weight, all of them share its positions by
  # weight, 1 where none is given; else all rows are one pool. weight=0 leaves a
  # source out. query_prompt and passage_prompt precede its texts in place of
  # encoding.query.prefix and encoding.passage.prefix; query_prompt='' leaves
  # the prefix out. See docs/sources.md.
  data.sources = ml_collections.ConfigDict()
  # A folder of line-aligned files, named as in LASER's Tatoeba; "" for none.
  data.tatoeba_root = ""
  data.on_bad_record = "error"  # Or "skip": bad records are counted and shown.
  # The token store has so many shards. Each is made by one process, so set at
  # least the number of cores, or of Beam's workers. A text of several shards is
  # in each of them: 8 shards of Debian's data hold 5% more characters than one.
  data.shards = 8
  # Control experiment: pairs each parallel sentence with a wrong translation.
  data.shuffle_parallel = False
  # Translations that are probably wrong are left out, and counted.
  data.cleaning = cleaning = ml_collections.ConfigDict()
  # The lowest margin score, where a file says it: 1.04 is WikiMatrix's own
  # advice, 1.06 keeps fewer and better pairs, 0 keeps all.
  cleaning.margin = 1.04
  # The longer side has at most so many times the characters of the shorter one;
  # 0 for any. English has about 3 times the characters of Chinese.
  cleaning.length_ratio = 0.0
  # The greatest share of the words of the side with fewer words that are in the
  # other side, too: 0.9 drops copies that were not translated; 1 keeps all.
  cleaning.shared_words = 1.0
  # Drops a pair if py3langid (the extra "langid") says that a side is in
  # another language, with at least this probability; 0 keeps all.
  cleaning.wrong_language = 0.0
  # A language is drawn with a probability ~ size ** (1 / temperature): 1 is
  # proportional to size; a larger value is flatter. Our choice. If sources have
  # weights, this holds inside each source.
  data.language_temperature = 2.0
  # Masked language modelling (batch.masked): which tokens are predicted.
  data.masking = ml_collections.ConfigDict()
  data.masking.kind = "word"  # Whole words; or "span": several in a row.
  data.masking.rate = 0.15  # Share of a text's tokens (Devlin et al. 2019).
  # "tf_data" uses tensorflow; "in_process" makes the same batches in a thread,
  # without tensorflow; "auto" is tf_data where tensorflow is installed.
  data.reader = "auto"
  data.prefetch = 2  # Batches that are prepared ahead.

  # --- Tokenizer: for models that do not bring their own. ---
  c.tokenizer = tokenizer = ml_collections.ConfigDict()
  # A folder with tokenizer.json. With "" a pretrained model brings its own;
  # from scratch, a Unigram tokenizer is trained on the collection.
  tokenizer.path = ""
  tokenizer.vocab_size = 8000  # Of a tokenizer that is trained here.

  # --- Encoding contract: how a text becomes a vector; saved with every
  #     checkpoint. A field that is None takes the value of the pretrained
  #     model's sentence-transformers folder, or else that of ENCODING below,
  #     which is our choice. ---
  c.encoding = encoding = ml_collections.ConfigDict()
  encoding.pooling = placeholder(str)  # "mean", "cls" or "last".
  # Vectors have unit length; contrastive losses need this.
  encoding.normalize = placeholder(bool)
  # Vectors are cut to their first so many numbers, in training, too; 0 keeps
  # all. See loss.matryoshka.
  encoding.truncate_dim = placeholder(int)
  # Goes between a passage's title and its text.
  encoding.title_joiner = placeholder(str)
  for role in contract.ROLES:
    encoding[role] = ml_collections.ConfigDict()
    encoding[role].prefix = placeholder(str)  # E.g. "query: ".
    # In tokens, with the special tokens; longer texts are cut.
    encoding[role].max_length = placeholder(int)

  # --- Model: a pretrained one, or a BERT of this shape from scratch. ---
  c.model = model = ml_collections.ConfigDict()
  # A local folder or a hub name in the Hugging Face layout, an export, or the
  # folder of another run; "" for a model from scratch.
  model.pretrained = ""
  # For a hub name: a branch, tag or commit; "" for the main branch. For a run:
  # "last", "best" or a step; "" for the best checkpoint, or for the last one if
  # none was evaluated.
  model.revision = ""
  model.towers = "tied"  # Or "separate": Hu et al. (2023), Figure 2.
  # These five shape a model from scratch; a pretrained one has its own.
  model.hidden_size = 128  # Width of hidden states and vectors.
  model.num_layers = 2  # Transformer layers.
  model.num_heads = 4  # Attention heads.
  model.intermediate_size = 512  # Width of the feed-forward layers.
  model.max_positions = 512  # The longest text, in tokens.
  # A dense layer after pooling makes vectors of this width. 0: no such layer,
  # or the pretrained model's own.
  model.projection_size = 0
  model.dropout = 0.1  # Of hidden states and attention, in training.
  # Of attention alone; None for the same rate as model.dropout.
  model.attention_dropout = placeholder(float)
  model.dtype = "float32"  # Or "bfloat16": for activations, not parameters.
  # Recomputation in the backward pass saves memory. "none" keeps all that a
  # layer computes, "dots" the results of its dense layers, "layer" its input.
  model.remat = "none"
  # "cudnn" is fused attention on NVIDIA GPUs; it needs dtype=bfloat16,
  # attention_dropout=0 and heads of 8, 16, ... 128 values. It reads which
  # tokens see each other from an array of 2 bytes for each pair of tokens of a
  # row: rows x length^2, for all heads. In the backward pass, each layer also
  # writes an array of that size, which nothing reads.
  model.attention = "xla"
  # Training runs equal layers as a scan: XLA compiles one of them, not all. The
  # step holds a second copy of the layers' parameters and of their gradients;
  # with mesh.fsdp, a second copy of each device's part. In a ModernBERT, a turn
  # of the scan has as many layers as the pattern of windows.
  model.scan_layers = False

  # --- Batch: global sizes, over all devices and hosts. Our choices. ---
  c.batch = batch = ml_collections.ConfigDict()
  batch.retrieval = 128  # Question-passage pairs.
  batch.hard_negatives = 0  # Per question, in addition to in-batch negatives.
  batch.parallel = 64  # Sentence pairs.
  batch.monolingual = 64  # Sentences: third points of the language loss.
  batch.masked = 0  # Monolingual sentences for masked language modelling.
  # "mixed": a batch has texts of all sources. "one_source": its questions and
  # passages are from one source, and so are its translations; sources alternate
  # over the steps. So negatives are of one kind, as BGE and E5 train.
  batch.mixing = "mixed"
  # Texts are packed into rows of tokens. So many rows are encoded at a time,
  # over all devices. It bounds memory and keeps gradients exact, but every text
  # is encoded twice. 0: all rows at once.
  batch.chunk_rows = 0
  batch.row_length = 0  # Tokens of a row; 0 chooses by the texts' lengths.

  # --- Losses: total = w_ir IR + w_sem semantic + w_lang language
  #     + w_mlm masked_lm + w_dist distillation
  #     + w_score score_distillation. The fields of loss.NAME are those of the
  #     loss's class in mlir_jax/losses, with their comments and ranges. Your
  #     own loss:
  #     loss.extra.NAME = {"target": "my_project.losses:Margin", "weight": 0.1}
  #     and the other fields of its class. See docs/extending.md. ---
  c.loss = ml_collections.ConfigDict(registry.defaults())
  # Matryoshka learning: "256,128,64" trains the losses that compare vectors on
  # the first 256, 128 and 64 numbers of each vector, too, with equal weights.
  # "" trains whole vectors alone. encoding.truncate_dim then cuts vectors.
  c.loss.matryoshka.dimensions = ""

  # --- Optimizer: AdamW, linear warm-up, then decay. ---
  c.optim = optim = ml_collections.ConfigDict()
  optim.learning_rate = 1e-3  # The peak, at the end of the warm-up.
  optim.warmup_steps = 100  # From a learning rate of 0 to the peak.
  # "cosine", "linear" or "constant"; the decay ends at train.steps.
  optim.decay = "cosine"
  optim.final_fraction = 0.0  # Of the peak, at the last step.
  optim.b1 = 0.9  # Decay of the first moment.
  optim.b2 = 0.999  # Decay of the second moment.
  optim.eps = 1e-8  # Added to the denominator.
  optim.weight_decay = 0.01  # Not applied to biases and layer norms.
  optim.clip_norm = 1.0  # Largest global gradient norm; 0 for no clipping.

  # --- Mesh: devices along the axes "data" and "model". ---
  c.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # Devices that share the batch; -1 for all that are left.
  # Devices along "model". Nothing is split over this axis yet, so these devices
  # repeat the same work.
  mesh.model = 1
  # Shards parameters and optimizer state over "data". During a step each device
  # still holds the whole towers and, with chunks, their gradients.
  mesh.fsdp = False

  # --- Training. ---
  c.train = train = ml_collections.ConfigDict()
  train.steps = 1000  # Of the whole run; the decay ends there.
  train.log_every = 10  # Steps between lines of metrics.jsonl.
  train.checkpoint_every = 500  # In steps. The last step is always saved.
  # The last so many checkpoints are kept, and the best one by eval.selection.
  train.keep = 2
  # A step with a loss or gradient that is not finite is skipped. The run fails
  # after so many skipped steps in a row.
  train.max_nonfinite_steps = 10
  # Before the first step, check on a small model that chunked, sharded
  # gradients equal the plain ones.
  train.self_check = True
  # Folder of compiled programs, for a fast next start: in the workdir, or an
  # absolute path; "" keeps none. JAX_COMPILATION_CACHE_DIR takes precedence.
  train.compilation_cache = "compiled"

  # --- Several processes (--distributed). ---
  c.hosts = hosts = ml_collections.ConfigDict()
  # Seconds that a process waits for all others at a check-in.
  hosts.check_in_seconds = 600.0
  # A process that is silent for so many seconds is lost, and the run ends.
  hosts.silent_seconds = 120.0
  # With a --workdir on object storage, each host needs local copies of some
  # files. They are in this folder; "" for a folder in the user's cache.
  hosts.local_dir = ""

  # --- Evaluation. ---
  c.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every = 500  # Steps between dev evaluations; 0 for none.
  # What selects the best checkpoint. English alone keeps other languages
  # zero-shot. "dev/ja/ndcg@10" is another one; several with "," between them,
  # or "*" for all languages with a dev set, mean their mean.
  evaluation.selection = "dev/en/mrr@100"
  evaluation.at_start = True  # The whole table also before the first step.
  # During training, a dev set searches at most so many passages: all judged
  # ones and a fixed sample of the others. 0 for the whole corpus.
  evaluation.dev_passages = 0
  evaluation.batch_size = 256  # Texts of 64 tokens, encoded at a time.
  evaluation.top_k = 100  # Passages that are retrieved per query.
  # Further measures, with "," between them: "nDCG@20,AP,mrr@10". They are named
  # as in ir-measures or in papers.
  evaluation.measures = ""
  # Your own evaluators: eval.extra.NAME = "my_project.evals:gap".
  evaluation.extra = ml_collections.ConfigDict()
  # Protocols of the table: eval.protocols.NAME = "lareqa", "lareqa_paragraph",
  # "clir", "mining", "languages" or "my_project.evals:protocol". See
  # docs/protocols.md.
  evaluation.protocols = ml_collections.ConfigDict()
  # A folder of translations, like parallel/ of a collection, that are not
  # trained on. Each dev evaluation measures on them how far vectors depend on
  # the language. Pairs with a text of a test are left out. "" for none.
  evaluation.diagnostics_root = ""

  c.lock()
  c.loss.extra.unlock()
  c.eval.extra.unlock()
  c.eval.protocols.unlock()
  c.data.formats.unlock()
  c.data.sets.unlock()
  c.data.sources.unlock()
  return c


# The fields of `encoding` that neither the config nor a pretrained model gives.
ENCODING = contract.PartialContract(
  pooling="mean",
  normalize=True,
  title_joiner=" ",
  truncate_dim=0,
  query=contract.PartialRole(prefix="", max_length=32),
  passage=contract.PartialRole(prefix="", max_length=128),
  sentence=contract.PartialRole(prefix="", max_length=64),
)

# The range of each number of `default`, as intervals: "[" and "]" include an
# end, "(" and ")" do not. All ends are finite, so NaN and infinity are refused.
# The step computes in float32. No range has a number that becomes 0 there or
# overflows. `config_checks.ranges` adds the fields of the losses.
RANGES = {
  "seed": "[0, 4294967295]",  # JAX's keys take the low 32 bits.
  "data.shards": "[1, 1e5]",
  "data.language_temperature": "[0.001, 1e6]",
  "data.cleaning.margin": "[0, 100]",
  "data.cleaning.length_ratio": "0 or [1, 1e6]",
  "data.cleaning.shared_words": "[0, 1]",
  "data.cleaning.wrong_language": "[0, 1]",
  "data.masking.rate": "(0, 1)",
  "data.prefetch": "[1, 1000]",
  "tokenizer.vocab_size": "[8, 1e7]",
  "encoding.truncate_dim": "[0, 1e6]",
  "encoding.query.max_length": "[4, 1e6]",  # Two tokens and two special ones.
  "encoding.passage.max_length": "[4, 1e6]",
  "encoding.sentence.max_length": "[4, 1e6]",
  "model.hidden_size": "[1, 1e5]",
  "model.num_layers": "[1, 1000]",
  "model.num_heads": "[1, 1000]",
  "model.intermediate_size": "[1, 1e6]",
  "model.max_positions": "[4, 1e6]",
  "model.projection_size": "[0, 1e5]",
  "model.dropout": "[0, 1)",
  "model.attention_dropout": "[0, 1)",
  "batch.retrieval": "[0, 1e7]",
  "batch.hard_negatives": "[0, 1000]",
  "batch.parallel": "[0, 1e7]",
  "batch.monolingual": "[0, 1e7]",
  "batch.masked": "[0, 1e7]",
  "batch.chunk_rows": "[0, 1e7]",
  "batch.row_length": "[0, 1e5]",
  "optim.learning_rate": "[0, 10]",
  "optim.warmup_steps": "[0, 2e9]",
  "optim.final_fraction": "[0, 1]",
  "optim.b1": "[0, 0.999999]",  # In float32 a larger value may be 1.
  "optim.b2": "[0, 0.999999]",
  "optim.eps": "[1e-16, 1]",  # See `optim.make_optimizer`.
  "optim.weight_decay": "[0, 10]",
  "optim.clip_norm": "0 or [1e-6, 1e6]",
  "mesh.data": "-1 or [1, 1e6]",
  "mesh.model": "[1, 1e6]",
  "train.steps": "[1, 2e9]",  # The step's number is an int32.
  "train.log_every": "[1, 2e9]",
  "train.checkpoint_every": "[1, 2e9]",
  "train.keep": "[1, 1e6]",
  "train.max_nonfinite_steps": "[1, 2e9]",
  "hosts.check_in_seconds": "[1, 1e6]",
  "hosts.silent_seconds": "[1, 1e6]",
  "eval.every": "[0, 2e9]",
  "eval.batch_size": "[1, 1e6]",
  "eval.dev_passages": "[0, 1e9]",
  "eval.top_k": "[100, 1e6]",  # MRR@100 and R@100 need 100.
}

# The words that a text field may be.
CHOICES = {
  "data.collection": ("cldr", "folder", "sets"),
  "data.on_bad_record": ("error", "skip"),
  "data.prompts": ("use", "ignore"),
  "data.masking.kind": ("word", "span"),
  "batch.mixing": ("mixed", "one_source"),
  "data.reader": ("auto", "tf_data", "in_process"),
  "encoding.pooling": ("mean", "cls", "last"),
  "model.towers": ("tied", "separate"),
  "model.dtype": ("float32", "bfloat16"),
  "model.remat": ("none", "dots", "layer"),
  "model.attention": ("xla", "cudnn"),
  "optim.decay": ("cosine", "linear", "constant"),
}

# Fields that may also name the user's own code; see `extensions`.
TARGETS = ("data.collection",)

# Groups in which each field is a text of a name that the user chooses: it names
# the user's own code (see `extensions`), a data set of a library, or says how a
# source is used.
NAMED = (
  "eval.extra",
  "eval.protocols",
  "data.formats",
  "data.sets",
  "data.sources",
)

# Fields that are or may be paths. A "~" at their start is the user's home.
PATHS = (
  "data.root",
  "data.tatoeba_root",
  "tokenizer.path",
  "model.pretrained",
  "loss.ir.guide",
  "loss.distillation.teacher",
  "eval.diagnostics_root",
  "train.compilation_cache",
  "hosts.local_dir",
)

# Fields of earlier versions, and what to set instead.
REPLACED = {
  "batch.chunk": (
    "texts are packed, several into a row, so set batch.chunk_rows, in rows of"
    " the longest text. About batch.chunk times the texts' mean length, divided"
    " by the greatest, takes the same memory or less"
  ),
  "batch.buckets": (
    "texts are packed into rows, and nothing takes its place; batch.row_length"
    " sets the rows' length"
  ),
}
