"""Makes a LoRA adapter with random weights for a tiny model, in the files that PEFT writes, without any download.

Its weights are large enough that a base answers otherwise with it than without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RANK = 8
ALPHA = 16
SPREAD = 0.5


def write_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write random weights for the query and value projections of every layer, and their configuration."""
    import torch
    from safetensors.torch import save_file

    shape = json.loads((base / "config.json").read_text())
    hidden, head = shape["hidden_size"], shape["head_dim"]
    widths = {
        "q_proj": shape["num_attention_heads"] * head,
        "v_proj": shape["num_key_value_heads"] * head,
    }
    torch.manual_seed(seed)
    weights = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, width in widths.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(RANK, hidden) * SPREAD
            weights[f"{at}.lora_B.weight"] = torch.randn(width, RANK) * SPREAD
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(widths),
        "base_model_name_or_path": str(base),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))
    save_file(weights, folder / "adapter_model.safetensors")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_adapter(options.folder, options.base, options.seed)


if __name__ == "__main__":
    main()
