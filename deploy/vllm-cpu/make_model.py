"""Makes a tiny language model with random weights, and its tokenizer, without any download.

Good for everything but the meaning of its answers: real vLLM loads it and serves it at hundreds of tokens per second on
one CPU core. The tokenizer is a byte-level BPE trained on the sources of Python's standard library. Heads are
32 wide at least, since vLLM's attention on a CPU knows no narrower ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
# Begin and end of what a reasoning model thinks, which its chat template begins.
THINKING = ("<think>", "</think>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if not (loop.last and continue_final_message) %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = "{% if add_generation_prompt %}<think>\n{% endif %}"
CONTEXT_TOKENS = 2048
HEAD_DIM = 32


def sources(limit: int = 60) -> Iterator[str]:
    """Text to train the tokenizer on."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py"))[:limit]:
        yield path.read_text(encoding="utf-8", errors="ignore")


def write_tokenizer(folder: Path, vocabulary: int, *, thinks: bool) -> int:
    """Train and write the tokenizer; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sources(), trainer)
    if thinks:
        # Not special, as with most models: what is special is no part of the text, where a parser looks for them.
        tokenizer.add_tokens(list(THINKING))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE + (THINKS if thinks else ""),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return int(tokenizer.get_vocab_size())


def write_model(folder: Path, shape: argparse.Namespace, vocabulary: int) -> None:
    """Write random weights and their configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    hidden = shape.heads * HEAD_DIM
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=max(1, shape.heads // 2),
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
    )
    torch.manual_seed(shape.seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    model.save_pretrained(folder)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", choices=["llama", "qwen2"], default="llama")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thinks", action="store_true", help="its chats begin with <think>")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(options.folder, options.vocabulary, thinks=options.thinks)
    write_model(options.folder, options, vocabulary)


if __name__ == "__main__":
    main()
