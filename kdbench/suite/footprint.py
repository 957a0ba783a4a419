"""What a model of known size takes: operations a token, bytes while it learns. From numbers alone; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.suite import cost

LINEARS = 7  # of a layer, to which adapters are put: four of attention, two or three of the rest
WEIGHT_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # bitsandbytes: int8; NF4, with an fp32 scale for every 64 weights


@dataclass(frozen=True)
class Size:
    """A model's numbers.

    Attributes:
        parameters: all of them, tied ones once.
        multiplied: those that a token is multiplied with: not the embeddings it is looked up in, the head once.
        layers, width: of the body.
        hidden: width of what enters the output head.
    """

    parameters: int
    multiplied: int
    layers: int
    width: int
    hidden: int

    def forward_flop(self, length: int) -> float:
        """Return the operations of a forward pass, a token of a row of `length`: products, and attention over the row.

        Attention counts the whole row, as kernels without a causal shortcut do.
        """
        return 2.0 * self.multiplied + 4.0 * self.layers * self.width * length

    def learning_flop(self, length: int) -> float:
        """Return the operations of a forward and a backward pass, a token."""
        return 3.0 * self.forward_flop(length)


@dataclass(frozen=True)
class Footprint:
    """Peak bytes of a worker that trains one student, by what takes them.

    Attributes:
        states: weights, gradients and AdamW's two moments, all in fp32; of several processes, one's part, with what it
            puts together while it computes: the embeddings, the head, and a layer.
        casts: bf16 copies of the weights that autocast keeps for the backward pass.
        activations: kept for the backward pass of one micro-batch: an estimate.
        teacher: the whole teacher: the examination measures the distance to it, on whatever signal one learns.
        loss: a chunk of it, and the gradient of the output head.
    """

    states: int
    casts: int
    activations: int
    teacher: int
    loss: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.states + self.casts + self.activations + self.teacher + self.loss


def frozen(model: Size, vocabulary: int, bits: str | None = None) -> int:
    """Return the bytes of a model that does not learn, in fp32; with `bits`, only embeddings and head are."""
    few = 0 if bits is None else model.multiplied - vocabulary * model.hidden
    return 4 * (model.parameters - few) + (round(WEIGHT_BYTES[bits] * few) if bits else 0)


def learning(
    student: Size,
    teacher: Size | None,
    rows: int,
    length: int,
    vocabulary: int,
    bf16: bool,
    bits: str | None = None,
    processes: int = 1,
    rank: int = 0,
    checkpointed: bool = False,
) -> Footprint:
    """Return what training takes with micro-batches of `rows`.

    Args:
        bits: of the teacher: `8bit`, `4bit`, or None.
        processes: that train together; the numbers are of one of them.
        rank: of the adapters that alone are trained, about seven matrices a layer; 0: all weights are.
        checkpointed: layers keep their input alone, and one at a time is computed again.
    """
    adapters = 2 * rank * LINEARS * student.layers * student.width
    states = 4 * student.parameters + 16 * adapters if rank else 16 * student.parameters
    kept = student.layers + cost.KEPT if checkpointed else cost.KEPT * student.layers
    if processes > 1:
        outside = student.parameters - student.multiplied + vocabulary * student.hidden
        states = states // processes + 8 * (outside + (student.parameters - outside) // student.layers)
    return Footprint(
        states=states,
        casts=2 * student.parameters if bf16 else 0,
        activations=(2 if bf16 else 4) * kept * rows * length * student.width,
        teacher=frozen(teacher, vocabulary, bits) if teacher else 0,
        loss=cost.CHUNK_BYTES + 4 * vocabulary * student.hidden,
    )


def rows_that_fit(size: Footprint, rows: int, usable: float, spread: bool = False) -> int:
    """Return the largest micro-batch, in halvings of `rows`, that fits; 0 where not even a single row does.

    Args:
        spread: the teacher takes only what room is left, and lies elsewhere with the rest.
    """
    fixed, a_row = size.total - size.activations - (size.teacher if spread else 0), size.activations / rows
    while rows and fixed + a_row * rows > usable:
        rows //= 2
    return rows
