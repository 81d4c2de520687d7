"""Time decoding beside Hugging Face's `generate`, and the rate of reading memory.

The sides take turns in one process, and the best of some runs of each counts. Reading the prompt
is in the time of both. llama.cpp is measured by llama_cpp.py.

    python benchmarks/generation/decode.py > benchmarks/generation/decode.txt
"""

import copy
import time

import torch
import transformers
from transformers import GPT2Config, LlamaConfig

from rung.device import describe_device
from rung.generation.decoder import Decoder, generate_tokens
from rung.generation.sampling import Sampling
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM

REPEATS = 4
NEW = 200  # tokens
LLAMA = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=688,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
WEIGHTS = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}


def best(run, tokens):
    """Tokens a second of the fastest of some runs, the first not counted."""
    run()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return tokens / min(seconds)


def with_hugging_face(model, ids, new):
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[
            :, ids.shape[1] :
        ]


def with_rung(decoder, ids, new):
    with torch.inference_mode():
        steps = generate_tokens(
            decoder, ids.tolist(), Sampling(temperature=0, max_new_tokens=new), ()
        )
        return torch.tensor(list(steps)).T


def memory_limit(size):
    """How often a second so many bytes can be read, by all threads, from a piece of memory of that
    size.
    """
    piece = torch.ones(size // 4)
    return best(lambda: [piece.sum() for _ in range(20)], 20)


def compare(model, peer, batch, prompt, new):
    ids = torch.randint(
        3, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)
    )
    rates = {}
    for name in ("float32", "bfloat16"):
        theirs = peer if name == "float32" else copy.deepcopy(peer).to(torch.bfloat16)
        rates[f"HF {name}"] = best(
            lambda theirs=theirs: with_hugging_face(theirs, ids, new), batch * new
        )
    for name, weights in WEIGHTS.items():
        decoder = Decoder(model, weights)
        rates[f"rung {name}"] = best(
            lambda decoder=decoder: with_rung(decoder, ids, new), batch * new
        )
    same = (with_hugging_face(peer, ids, new) == with_rung(Decoder(model), ids, new)).float().mean()
    ratios = (f"{rates['rung ' + n] / rates['HF ' + n]:>6.1f}x" for n in ("float32", "bfloat16"))
    print(
        f"{batch:>5}{prompt:>8}" + "".join(f"{rate:>10,.0f}" for rate in rates.values()),
        *ratios,
        f"{same:>8.1%}",
    )


def show(title, model, peer, cases):
    weights = sum(p.numel() for p in model.parameters())
    limit = {
        name: memory_limit(weights * size)
        for name, size in (("float32", 4), ("bfloat16", 2), ("int8", 1))
    }
    print(f"\n{title}: {weights / 1e6:.1f} M weights; memory allows a text", end=" ")
    print(", ".join(f"{rate:,.0f} tokens/s in {name}" for name, rate in limit.items()))
    sides = ("HF", "HF bf16", "rung", "rung bf16", "rung int8", "ratio", "bf16", "same")
    print(
        f"{'batch':>5}{'prompt':>8}"
        + "".join(f"{side:>10}" for side in sides[:5])
        + "".join(f"{s:>8}" for s in sides[5:])
    )
    for batch, prompt, new in cases:
        compare(model, peer, batch, prompt, new)


def main():
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"{describe_device(torch.device('cpu'))}"
        f", {versions}; tokens a second, the best of {REPEATS}, "
        f"{NEW} new tokens"
    )
    model, peer = LlamaForCausalLM(LLAMA).eval(), transformers.LlamaForCausalLM(LLAMA).eval()
    peer.load_state_dict(model.state_dict())
    show("Llama", model, peer, [(b, p, NEW) for b in (1, 16) for p in (16, 512)])
    small = GPT2Config()
    model, peer = GPT2LMHeadModel(small).eval(), transformers.GPT2LMHeadModel(small).eval()
    peer.load_state_dict(model.state_dict())
    show("GPT-2 small", model, peer, [(1, 16, 50)])


if __name__ == "__main__":
    main()
