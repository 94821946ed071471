"""Compares one optimizer step of DID and SAID and its peak memory with full fine-tuning and peers.

    python benchmarks/step.py [--model minilm] [--dtype float32] [--device cpu] [--d 1000]
        [--batch-size 32] [--length 64] [--threads 1] [--repetitions 7] [--checkpointing]
        [--autocast] [--methods full,lora,did-resident,...] [--authors PATH/intrinsic.py]
        [--json FILE]

The models have random weights and known shapes, and are trained with AdamW. "inference" is the
forward under no_grad, the floor of memory; "forward + backward" computes the gradients of all
weights and takes no optimizer step. LoRA and VeRA are PEFT's with its defaults: they adapt query
and value, and train the head if there is one. "authors" is SAID by the released code of Aghajanyan
et al. (`intrinsic.py` of compacter).

Peak memory is measured in a separate process for each method: by how much resident memory (on CUDA,
the memory that torch allocates) grows from before the model is built to the end of the second step.
Times are medians; all methods take turns in one process, and if memory does not hold all of them
at once, each is built anew for each repetition. "projection" is the share of a step that goes into
writing weights and into the adjoint, measured in additional steps.

On CUDA events time a step, all optimizers except that of "full" are fused, and "/ full" divides by
"full-fused". "GPU busy" sums the time of the kernels and copies in a profiled step, "launches"
counts them: if busy is far below the step's time, the GPU waits for its launches. --autocast runs
the forward in bfloat16, on weights that are in --dtype.
"""

import argparse
import collections
import contextlib
import copy
import gc
import importlib.metadata
import importlib.util
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch
import transformers
from facts import environment, processor, write
from gpu_tables import step_ratio, table
from gpu_timing import elapsed, summary, warm_up
from overhead import gpu_work
from projection import released_code, resident, seconds

import fastfood
import fastfood.projection
from fastfood.layout import lay_out, trainable

SHAPES = {
    "minilm": transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert-base": transformers.BertConfig(),
    "roberta-large": transformers.RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    ),
    "llama-1b": transformers.LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
        use_cache=False,
    ),
    "llama-7b": transformers.LlamaConfig(use_cache=False),
}
TINY = {  # a model that trains first, so that code and its buffers are loaded before memory counts
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
}
TITLES = {
    "inference": "inference",
    "backward": "forward + backward",
    "full": "full, AdamW",
    "full-fused": "full, AdamW, fused",
    "lora": "LoRA, r = 8",
    "vera": "VeRA, r = 256",
    "did-resident": "DID, resident",
    "said-resident": "SAID, resident",
    "did-streamed": "DID, streamed",
    "said-streamed": "SAID, streamed",
    "authors": "SAID, authors",
}
RATES = collections.defaultdict(lambda: 1e-3, {"full": 1e-5, "full-fused": 1e-5})
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
ALLOCATOR = {  # returns freed memory to the system at once, so that the peak counts used memory
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def build_model(config, arguments, device):
    kind = transformers.AutoModelForSequenceClassification
    if config.model_type == "llama":
        kind = transformers.AutoModelForCausalLM
    with torch.device(device):
        model = kind.from_config(config, dtype=getattr(torch, arguments.dtype))
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def wrap(method, model, d, path):
    """The model as `method` trains it."""
    if method in ("lora", "vera"):
        import peft

        causal = model.config.model_type == "llama"
        kind = peft.LoraConfig if method == "lora" else peft.VeraConfig
        settings = {
            "task_type": "CAUSAL_LM" if causal else "SEQ_CLS",
            "target_modules": ["q_proj", "v_proj"] if causal else ["query", "value"],
            "r": 8 if method == "lora" else 256,
        }
        return peft.get_peft_model(model, kind(**settings))
    if method == "authors":
        # with "cpu" it keeps the dtype of the weights
        return released_code(path).intrinsic_dimension_said(
            model, d, None, set(), "fastfood", "cpu"
        )
    form, _, weights = method.partition("-")
    if form in ("did", "said"):
        config = fastfood.SubspaceConfig(d=d, method=form)
        return fastfood.get_subspace_model(model, config, weights=weights)
    return model


class Case:
    """A method on a model; calling it is one step."""

    def __init__(self, method, model, arguments, tiny=False):
        torch.manual_seed(0)
        size, d = (arguments.batch_size, arguments.length), arguments.d
        if tiny:
            size, d = (2, 8), min(d, 100)
        ids = torch.randint(5, model.config.vocab_size, size, device=model.device)
        labels = ids if model.config.model_type == "llama" else ids[:, 0] % 2
        self.batch = {"input_ids": ids, "labels": labels}
        self.kind, self.autocast = model.device.type, arguments.autocast
        self.method, self.model = method, wrap(method, model, d, arguments.authors)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = 0 if method == "inference" else sum(p.numel() for p in trained)
        fused = method == "full-fused" or (self.kind == "cuda" and method != "full")
        self.optimizer = torch.optim.AdamW(trained, lr=RATES[method], fused=fused or None)

    def __call__(self):
        if self.method == "inference":
            with torch.no_grad():
                self._forward(self.model.eval())
            return
        self._forward(self.model).loss.backward()
        if self.method != "backward":
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _forward(self, model):
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.autocast):
            return model(**self.batch)


def fresh_case(method, model, arguments):
    """A case on a copy of the model, or on a new one if the model is None."""
    if model is None:
        return Case(method, build_model(SHAPES[arguments.model], arguments, "cuda"), arguments)
    return Case(method, copy.deepcopy(model), arguments)


def available(device):
    """The bytes of memory that are free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def child(method, arguments):
    """Prints the peak while the method's model is built and takes two steps, and what it trains."""
    cuda = arguments.device == "cuda"
    if not cuda:  # too large a model is then an error here, before the kernel kills some process
        resource.setrlimit(resource.RLIMIT_DATA, (available("cpu"),) * 2)
    shape = SHAPES[arguments.model]
    tiny = type(shape)(**shape.to_diff_dict() | TINY)
    case = Case(method, build_model(tiny, arguments, arguments.device), arguments, tiny=True)
    case(), case()
    del case
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value
        before = resident("VmRSS")
    case = Case(method, build_model(shape, arguments, arguments.device), arguments)
    case(), case()
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    print(json.dumps({"peak": peak - before, "trainable": case.trainable}))


def impossible(method, model, arguments):
    """Why a method is not tried on this machine, or None."""
    if method in ("lora", "vera") and not importlib.util.find_spec("peft"):
        return "peft is not installed"
    if method != "authors":
        return None
    if arguments.device == "cuda":
        return "its transform on CUDA is an extension to be built apart"
    state = sum(20 << (p.numel() - 1).bit_length() for p in model.parameters())
    if state > available("cpu"):
        return f"its state of 20 bytes for each padded entry takes {state / 1e9:.1f} GB"
    return None


def run_children(methods, model, arguments):
    """A row for each method: its peak and what it trains, or the reason why it did not run."""
    rows = []
    for method in methods:
        row = {"method": method, "step": TITLES[method]}
        rows.append(row)
        reason = impossible(method, model, arguments)
        if not reason:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", method]
            result = subprocess.run(
                command, env=os.environ | ALLOCATOR, capture_output=True, text=True
            )
            if result.returncode == 0:
                row |= json.loads(result.stdout.splitlines()[-1])
                print(f"{method}: {row['peak'] / 1e6:,.0f} MB", file=sys.stderr)
                continue
            row["failed"] = True
            reason = (result.stderr.splitlines() or [f"exit status {result.returncode}"])[-1]
        row["reason"] = reason
        print(f"{TITLES[method]}: not run, {reason}", flush=True)
    return rows


def time_of(run, device):
    """The seconds that run() takes, by the GPU's clock on CUDA."""
    return elapsed(run, 1) if device == "cuda" else seconds(run)


def time_steps(methods, model, arguments, together):
    """The seconds of each method's steps, by method, and the cases that were kept."""
    times, cases = {method: [] for method in methods}, {}
    for repetition in range(arguments.repetitions + together):
        for method in methods:
            once = method == "authors"  # minutes each
            if once and repetition:
                continue
            case = cases.get(method) or fresh_case(method, model, arguments)
            if together:
                cases[method] = case
            if arguments.device == "cuda" or not (together or once):
                case()
            value = time_of(case, arguments.device)
            if once or repetition or not together:
                times[method].append(value)
            del case
            gc.collect()
    return times, cases


def projection_share(case, device, repetitions):
    """The median share of a step that goes into writing weights and into the adjoint.

    The adjoint's input is not timed, though streaming makes these gradients by products.
    """
    inside, shares = [], []

    def timed(function):
        def run(*args, **kwargs):
            results = []
            inside.append(time_of(lambda: results.append(function(*args, **kwargs)), device))
            return results[0]

        return run

    case()
    names = ("perturb_", "perturbed", "spread", "spread_adjoint")
    parts = [(fastfood.Fastfood, name) for name in names]
    parts.append((fastfood.projection.ops, "project_rows_adjoint_sum"))
    with contextlib.ExitStack() as patches:
        for owner, name in parts:
            patches.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        for _ in range(repetitions):
            inside.clear()
            step = time_of(case, device)
            shares.append(sum(inside) / step)
    return statistics.median(shares)


def inspect_step(case, arguments):
    """The projection's share and how busy a GPU is, which additional steps measure."""
    row = {}
    if case.method.startswith(("did", "said")):
        repetitions = min(3, arguments.repetitions)
        row["projection"] = projection_share(case, arguments.device, repetitions)
    if arguments.device == "cuda":
        case()
        row |= gpu_work(case)
    return row


def print_hardware(arguments):
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text().split() if cpuinfo.exists() else []
    flags = " ".join(flag for flag in FLAGS if flag in words)
    if arguments.device == "cuda":
        print(torch.cuda.get_device_name())
    libraries = [lib for lib in ("transformers", "peft") if importlib.util.find_spec(lib)]
    versions = [f"{lib} {importlib.metadata.version(lib)}" for lib in libraries]
    print(f"{processor()} ({flags}), {arguments.threads} thread(s)")
    print(", ".join([f"torch {torch.__version__}", *versions]))
    print("`python " + shlex.join(["benchmarks/step.py", *sys.argv[1:]]) + "`", flush=True)


def print_sizes(model, arguments):
    """Prints the sizes that a reader can compare peaks with."""
    segments, groups = lay_out(trainable(model), fastfood.SubspaceConfig(d=1, method="did"))
    width, D = getattr(torch, arguments.dtype).itemsize, sum(s.numel for s in segments)
    sizes = [sum(s.numel for s in segments if s.group == group) for group in range(len(groups))]
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    print(
        f"D = {D:,}, {arguments.dtype}: weights {weights / 1e6:,.1f} MB, one flat copy "
        f"{width * D / 1e6:,.1f} MB, largest block {width * max(sizes) / 1e6:,.1f} MB, "
        f"largest tensor {width * max(s.numel for s in segments) / 1e6:,.1f} MB",
        flush=True,
    )


def print_table(rows, device):
    cuda, cells = device == "cuda", []
    for row in rows:
        ms = f"{1e3 * row['times']['step']['median']:,.{1 if cuda else 0}f}"
        cells.append([row["step"], f"{row['trainable']:,}", ms, step_ratio(row, rows)])
        cells[-1] += [f"{1e3 * row['busy']:,.1f}", f"{row['launches']:,}"] if cuda else []
        cells[-1].append(f"{row['projection']:.1%}" if "projection" in row else "")
        cells[-1].append(f"{row['peak'] / 1e6:,.0f}")
    busy = ["GPU busy, ms", "launches"] if cuda else []
    heads = ["step", "trainable", "ms", "/ full", *busy, "projection", "peak, MB"]
    print("", *table(heads, cells), sep="\n")


def save(rows, arguments):
    """Writes the results so far to the file of --json, if it is given."""
    names = ("model", "dtype", "batch_size", "length", "d", "checkpointing", "autocast", "device")
    for row in rows:
        row |= {name: getattr(arguments, name) for name in names}
    if arguments.json:
        write(arguments.json, environment(arguments.device), rows)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--d", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--autocast", action="store_true", help="the forward in bfloat16")
    parser.add_argument("--methods", default=",".join(TITLES), help="names between commas")
    parser.add_argument("--authors", help="intrinsic.py of compacter")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--child", choices=TITLES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    methods = [m for m in arguments.methods.split(",") if m != "authors" or arguments.authors]
    if not set(methods) <= set(TITLES):
        parser.error(f"--methods: wanted names among {','.join(TITLES)}, got {arguments.methods}")
    return arguments, methods


def measure(methods, arguments):
    """The rows of the methods; the file of --json is rewritten after each stage."""
    cuda = arguments.device == "cuda"
    model = build_model(SHAPES[arguments.model], arguments, "meta")
    print_sizes(model, arguments)
    rows = run_children(methods, model, arguments)
    save(rows, arguments)
    working = {row["method"]: row for row in rows if "peak" in row}
    # On CUDA models are built fast, and a second one to copy from may not fit.
    model = None if cuda else build_model(SHAPES[arguments.model], arguments, "cpu")
    if cuda:
        warm_up()
    together = sum(row["peak"] for row in working.values()) < available(arguments.device)
    if not together:
        print("each built anew for each repetition, as memory does not hold all at once")
    times, cases = time_steps(working, model, arguments, together)
    for method, row in working.items():
        row["times"] = {"step": summary(times[method])}
    save(rows, arguments)
    for method, row in working.items():
        case = cases.get(method) or fresh_case(method, model, arguments)
        row |= inspect_step(case, arguments)
        del case
        gc.collect()
    save(rows, arguments)
    return rows


def main():
    arguments, methods = parse()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's
    if arguments.child:
        return child(arguments.child, arguments)
    print_hardware(arguments)
    rows = measure(methods, arguments)
    print_table([row for row in rows if "peak" in row], arguments.device)
    # On a CPU a method may fail for lack of memory, and `make bench` has further tables to print.
    return arguments.device == "cuda" and any("failed" in row for row in rows)


if __name__ == "__main__":
    sys.exit(main())
