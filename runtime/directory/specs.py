"""What an engine runs, as data: tensors, calls, stages, and the AR step as a program of ops."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Phase = Literal["first", "filling", "steady", "any"]
BufferKind = Literal["io", "state", "prompt"]
Group = Literal["prompt", "encode", "diffuse", "decode", "finalize"]
Role = Literal[
    "activation",
    "count",
    "embeds",
    "kv",
    "latent",
    "length",
    "noise",
    "noise_scale",
    "picture",
    "pixels",
    "position",
    "queue",
    "ring_rows",
    "ring_tokens",
    "sigma",
    "timestep",
]
"""What the numbers of a buffer mean, for whoever has to make some up or to compare them."""
TrackName = Literal["encode", "diffuse", "decode", "finalize"]
StreamName = Literal["encode", "diffuse", "decode"]


class Model(BaseModel):
    """Plain data of the manifest: frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Model):
    """Shape, dtype name (``bfloat16``) and strides of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]


class BufferSpec(TensorSpec):
    """A tensor that the session allocates once, as zeros, at a fixed address."""

    kind: BufferKind
    """``io`` and ``state`` are cleared when a stream starts, and only the latter is read before it
    is written; ``prompt`` lives as long as the prompt."""
    role: Role = "activation"


class Ref(Model):
    """A tensor by name: a buffer or a weight, or some leading-dimension rows of one."""

    name: str
    kind: Literal["buffer", "weight"] = "buffer"
    rows: tuple[int, int] | None = None
    """First row and the one after the last; all of them unless given."""

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        return f"{self.name}{rows}"


def buffer(name: str, rows: tuple[int, int] | None = None) -> Ref:
    """Return the reference of a buffer."""
    return Ref(name=name, rows=rows)


def weight(name: str, rows: tuple[int, int] | None = None) -> Ref:
    """Return the reference of a weight."""
    return Ref(name=name, kind="weight", rows=rows)


class Call(Model):
    """One run of a package: the tensors that it takes, in the order in which it takes them."""

    package: str
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...] = ()
    states: tuple[Ref, ...] = ()
    """Read and overwritten."""
    weights: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[Ref, ...]:
        """The package's flat argument list."""
        return (*self.inputs, *self.outputs, *self.states, *map(weight, self.weights))


class StageSpec(Model):
    """A list of calls that is captured and replayed as one CUDA graph."""

    name: str
    """Unique, such as ``dit[0:30].steady``."""
    group: Group
    phase: Phase
    calls: tuple[Call, ...]
    makes: Ref | None = None
    """The result that tells how exact the stage is; None: the keys and values that it writes."""

    def reads(self) -> set[str]:
        """Return the buffers that hold something for the stage when it begins."""
        return set(self._accesses()[0])

    def writes(self) -> set[str]:
        """Return the buffers that the stage changes."""
        return set(self._accesses()[1])

    def _accesses(self) -> tuple[dict[str, None], dict[str, None]]:
        read: dict[str, None] = {}
        written: dict[str, None] = {}
        for call in self.calls:
            for ref in (*call.inputs, *call.states):
                if ref.kind == "buffer" and ref.name not in written:
                    read[ref.name] = None
            for ref in (*call.outputs, *call.states):
                written[ref.name] = None
        return read, written


class Replay(Model):
    """Run a stage."""

    op: Literal["replay"]
    stage: str

    def __str__(self) -> str:
        return f"replay {self.stage}"


class Copy(Model):
    """Copy one tensor to another; the source broadcasts."""

    op: Literal["copy"]
    source: Ref
    target: Ref

    def __str__(self) -> str:
        return f"copy {self.source} -> {self.target}"


class Noise(Model):
    """Fill a tensor with standard normal noise from the stream's generator."""

    op: Literal["noise"]
    target: Ref

    def __str__(self) -> str:
        return f"noise -> {self.target}"


class Fill(Model):
    """Set every element of a tensor."""

    op: Literal["fill"]
    target: Ref
    value: int

    def __str__(self) -> str:
        return f"fill {self.value} -> {self.target}"


class Advance(Model):
    """Add to every element of a tensor."""

    op: Literal["advance"]
    target: Ref
    by: int

    def __str__(self) -> str:
        return f"advance {self.target} by {self.by}"


def replay(stage: str) -> Replay:
    """Return the op that runs a stage."""
    return Replay(op="replay", stage=stage)


def copy(source: Ref, target: Ref) -> Copy:
    """Return the op that copies ``source`` to ``target``."""
    return Copy(op="copy", source=source, target=target)


def noise(target: Ref) -> Noise:
    """Return the op that fills ``target`` with noise."""
    return Noise(op="noise", target=target)


def fill(target: Ref, value: int) -> Fill:
    """Return the op that sets ``target``."""
    return Fill(op="fill", target=target, value=value)


def advance(target: Ref, by: int) -> Advance:
    """Return the op that adds to ``target``."""
    return Advance(op="advance", target=target, by=by)


Op = Annotated[Replay | Copy | Noise | Fill | Advance, Field(discriminator="op")]


class Track(Model):
    """What one CUDA stream does in an AR step, in order."""

    name: TrackName
    """Its name in timings."""
    stream: StreamName
    """Tracks of one stream follow each other; those of different streams run beside each other,
    except where one reads what another writes."""
    hand_over: tuple[Op, ...] = ()
    """Copies of what other tracks made, before the clock of this one starts: with buffers of its
    own a track can work on while the other makes the next."""
    takes: Ref | None = None
    """Where the step's input frames go first."""
    ops: tuple[Op, ...]
    gives: Ref | None = None
    """The step's output frames, once the ops are done."""


class StepSpec(Model):
    """An AR step as a straight line of ops: no loops, no conditions but the phase."""

    phase: Phase
    """``first``, ``filling`` while the window is not full, ``steady``."""
    starts_at: int
    """The first AR step of a stream that runs so; the next spec's ends it."""
    tracks: tuple[Track, ...]
    """In the order in which the host submits them."""

    @property
    def takes(self) -> Ref | None:
        """Where the input frames go, if the step takes any."""
        return next((track.takes for track in self.tracks if track.takes), None)

    @property
    def gives(self) -> Ref | None:
        """Where the output frames lie, if the step finishes any."""
        return next((track.gives for track in self.tracks if track.gives), None)


class Condition(Model):
    """What the host prepares once and the stream then follows, until it is given anew."""

    name: str
    """What :meth:`Session.prepare` calls it: ``prompt``."""
    source: Literal["text"]
    """What the host makes the input of."""
    input: Ref
    ops: tuple[Op, ...]
    """What turns the input into the buffers that the AR steps read."""


class StreamSpec(Model):
    """The numbers of a stream that its user sees."""

    height: int
    width: int
    frame_rate: int
    """Pixel frames a second that the model was trained for."""
    first_frames_in: int
    frames_in: int
    """Input frames of the first and of every later AR step; 0 for text to video."""
    first_frames_out: int
    frames_out: int
    """Output frames of the first and of every later chunk."""
    latent_frames: int
    """Latent frames of a chunk after the first."""
    lookahead_frames: int
    """Input frames that must follow a frame before its output can be made."""
    drain_steps: int
    """AR steps after the last input until its chunk comes out."""

    @property
    def takes_frames(self) -> bool:
        """Whether the stream turns input frames into output frames (else text to video)."""
        return self.frames_in > 0


def all_ops(track: Track) -> Iterator[Op]:
    """Yield a track's ops in the order in which they run."""
    yield from track.hand_over
    yield from track.ops


def op_refs(op: Op) -> tuple[Ref, ...]:
    """Return the tensors that an op names: sources first, its target last."""
    match op:
        case Replay():
            return ()
        case Copy():
            return op.source, op.target
        case _:
            return (op.target,)
