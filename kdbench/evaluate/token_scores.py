"""What a model, and its teacher, say about each held-out token: the rows of a cell's `tokens.parquet`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.files import read_table

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from kdbench.api import Dist

FILE = "tokens.parquet"
PLACE = ("row", "position", "target")  # where a token stands; equal in two files only if both read the same text
ALWAYS = (*PLACE, "log_prob", "entropy", "top1_prob", "top1_correct")  # the columns that every such file has
TOP = 10  # how many of the likeliest tokens `top10_overlap` looks at
BINS = 15
QUANTILES = {"q10": 0.1, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return quartiles and outer deciles by their names in `QUANTILES`."""
    return dict(zip(QUANTILES, np.quantile(values, [*QUANTILES.values()]).tolist(), strict=True))


def score(student: Dist, teacher: Dist | None) -> dict[str, Tensor]:
    """Return each token's scores, name → `[N]`: fp32, or bool for yes and no.

    Returns:
        `log_prob` of the target and `entropy`, in nats; `top1_prob`, the largest probability, and `top1_correct`,
        whether it is the target's. With a teacher: `teacher_log_prob`, `teacher_entropy` and `kl_to_teacher` KL(p‖q)
        in nats, `top1_agreement`, whether both find the same token likeliest, and `top10_overlap`, the share of the
        teacher's ten likeliest tokens that are among the student's ten (of a smaller vocabulary: all of it).
    """
    from kdbench.divergences import kl

    top1 = student.logits.argmax(-1)
    found = {
        "log_prob": student.log_prob_target,
        "entropy": student.entropy,
        "top1_prob": student.log_probs.gather(-1, top1[:, None])[:, 0].exp(),
        "top1_correct": top1 == student.target,
    }
    if teacher is not None:
        found["teacher_log_prob"] = teacher.log_prob_target
        found["teacher_entropy"] = teacher.entropy
        found["kl_to_teacher"] = kl(teacher.log_probs, student.log_probs)
        found["top1_agreement"] = teacher.logits.argmax(-1) == top1
        found["top10_overlap"] = _overlap(teacher.logits, student.logits)
    return found


def _overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    size = min(TOP, ours.shape[-1])
    first, second = (logits.topk(size, -1, sorted=False).indices for logits in (ours, theirs))
    return (first[:, :, None] == second[:, None, :]).any(-1).float().mean(-1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: Σ_b n_b / N · |share correct − mean confidence| over `bins` bins.

    Bins hold equally many tokens, ordered by confidence: of a language model most tokens are unsure, and bins of equal
    width would leave the upper ones almost empty (Nixon et al. 2019, "adaptive calibration error", of the top class).
    Finite samples bias it upwards, by about √(p (1 − p) / n) of a bin of n tokens: compare it at equal counts only.

    Args:
        confidence: the largest probability of each token, `[N]`.
        correct: whether it was the target's, `[N]`.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = (confidence[order].astype(float) - correct[order].astype(float)) / max(1, len(order))
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)))


def to_parquet(columns: Mapping[str, np.ndarray]) -> bytes:
    """Return the file's bytes, the same for the same columns; they hold neither a date nor a path."""
    import pyarrow
    from pyarrow import parquet

    floats = [name for name, values in columns.items() if values.dtype == np.float32]
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.table(dict(columns)), buffer, compression="zstd", use_byte_stream_split=floats,
        use_dictionary=[name for name in columns if name not in floats],
    )  # fmt: skip
    return buffer.getvalue()


def read(folder: Path) -> pandas.DataFrame | None:
    """Return a cell's token scores, a row a token; None for cells examined before they were kept.

    Raises:
        StoreError: the file holds something else.
    """
    path = folder / FILE
    return read_table(path, texts=(), numbers=ALWAYS) if path.is_file() else None
