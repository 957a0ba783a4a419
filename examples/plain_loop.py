"""kdbench's loss in a training loop of your own: no `[tokens, vocabulary]` tensor is built, whatever the objective.

python examples/plain_loop.py            # tiny models made here; a few seconds on one core
"""

from __future__ import annotations

import torch
from transformers import OPTConfig, OPTForCausalLM

import kdbench


def tiny(hidden: int, seed: int) -> OPTForCausalLM:
    """Make a small causal language model; in your loop, `from_pretrained`."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=512, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, ffn_dim=4 * hidden,
        word_embed_proj_dim=hidden, max_position_embeddings=64,
    )  # fmt: skip
    return OPTForCausalLM(config)


def distil(objective: str, steps: int = 20) -> list[float]:
    """Train a student on random text; return its losses."""
    student, teacher = tiny(32, 0), tiny(64, 1).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 512, (4, 32), generator=generator)
        mask = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        mask[:, :8] = False  # a prompt: never in the loss
        with torch.no_grad():
            taught = teacher.model(ids[:, :-1]).last_hidden_state  # position t predicts token t + 1
        hidden = student.model(ids[:, :-1]).last_hidden_state
        parts = kdbench.linear_loss(
            objective, hidden, student.lm_head.weight, taught, teacher.lm_head.weight, ids[:, 1:], mask
        )
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        losses.append(float(parts.total.detach()))
    return losses


if __name__ == "__main__":
    for name in ("kl", "reverse_kl", "kl+atkd"):
        found = distil(name)
        print(f"{name:12} {found[0]:.4f} → {found[-1]:.4f}")
